"""What carries OTLP to the collector: the exporters of the OpenTelemetry packages, held to bounds of their own making.

They take what they need from the OTEL_* variables: address, headers, certificates, compression. What a collector
answers is bounded here, which the packages do not do: some bytes, and a time for the whole of it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from guestd.telemetry.outlet.queue import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from requests import PreparedRequest, Response

#: Of an answer. A collector says nothing, or what it did not take.
_ANSWER_MAX = 64 * 1024
_PIECE = 8192
_GRPC = "grpc"
SIGNALS = ("traces", "metrics", "logs")
#: Answers behind which the same may be sent again. Whoever says anything else does not want it tomorrow either.
_AGAIN = frozenset({408, 429, 502, 503, 504})


def wanted(signal: str) -> bool:
    """By OTEL_TRACES_EXPORTER and its like."""
    return os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip().lower() != "none"


def timeout_of(signal: str, usual: float) -> float:
    """How long one request may take: by the variables, in seconds as the packages have it, else by the setting."""
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"):
        try:
            found = float(os.environ.get(name, ""))
        except ValueError:
            continue
        if 0 < found < float("inf"):
            return found
    return usual


def protocol_of(signal: str) -> str:
    """How that signal is sent."""
    names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((os.environ[name].strip().lower() for name in names if os.environ.get(name)), "http/protobuf")


class Sender:
    """Sends batches of one signal. What the exporter says in its log is the reason that is told."""

    def __init__(self, signal: str, timeout: float) -> None:
        self.signal = signal
        self._heard = _Ear()
        self._session: Any = None
        self.exporter = self._make(timeout)

    def _make(self, timeout: float) -> Any:  # noqa: ANN401  one of six classes without a common one
        if protocol_of(self.signal) == _GRPC:
            module = f"opentelemetry.exporter.otlp.proto.grpc.{_MODULES[self.signal]}"
            logging.getLogger("opentelemetry.exporter.otlp.proto.grpc").addHandler(self._heard)
            return _class(module, _CLASSES[self.signal])(timeout=timeout)
        self._session = bounded_session(timeout)
        module = f"opentelemetry.exporter.otlp.proto.http.{_MODULES[self.signal]}"
        logging.getLogger(module).addHandler(self._heard)
        return _class(module, _CLASSES[self.signal])(timeout=timeout, session=self._session)

    def __call__(self, batch: Any) -> Outcome:  # noqa: ANN401  what its exporter takes
        self._heard.last = None
        if self._session is not None:
            self._session.status, self._session.retry_after = None, 0.0
        try:
            result = self.exporter.export(batch)
        except Exception as error:  # noqa: BLE001  whatever a collector makes an exporter do
            return Outcome(f"{type(error).__name__}: {error}"[:500])
        if getattr(result, "name", "") == "SUCCESS":
            return Outcome()
        why = (self._heard.last or "the collector did not take it")[:500]
        status = None if self._session is None else self._session.status
        if self._session is None or status is None:
            return Outcome(why)
        return Outcome(
            f"{why} (HTTP status {status})", final=status not in _AGAIN, retry_after=self._session.retry_after
        )


_MODULES = {"traces": "trace_exporter", "metrics": "metric_exporter", "logs": "_log_exporter"}
_CLASSES = {"traces": "OTLPSpanExporter", "metrics": "OTLPMetricExporter", "logs": "OTLPLogExporter"}


def _class(module: str, name: str) -> Callable[..., Any]:
    from importlib import import_module

    return getattr(import_module(module), name)


class _Ear(logging.Handler):
    """Keeps the last thing that an exporter has said in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._local = threading.local()

    @property
    def last(self) -> str | None:
        return getattr(self._local, "last", None)

    @last.setter
    def last(self, text: str | None) -> None:
        self._local.last = text

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def bounded_session(timeout: float) -> Any:  # noqa: ANN401  requests is imported where it is used alone
    """A requests.Session that reads no more of an answer than is needed, nor for longer than `timeout`."""
    import requests

    class Bounded(requests.Session):
        #: Of the last answer.
        status: int | None = None
        retry_after = 0.0

        def send(self, request: PreparedRequest, **how: Any) -> Response:  # noqa: ANN401  as requests has it
            due = time.monotonic() + timeout
            how["stream"] = True
            response = super().send(request, **how)
            self.status = response.status_code
            asked = response.headers.get("Retry-After", "")
            self.retry_after = (
                float(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 10 else 0.0
            )
            response._content = _read(response, due)  # noqa: SLF001  read, by other rules
            response._content_consumed = True  # noqa: SLF001  as above
            return response

    session = Bounded()
    # Nothing of ~/.netrc: credentials are in the headers. Proxies and certificates of the environment are heeded.
    session.auth = _no_auth
    return session


def _no_auth(request: PreparedRequest) -> PreparedRequest:
    return request


def _read(response: Response, due: float) -> bytes:
    """The answer, or its beginning. An answer that does not end costs its connection and is none of ours."""
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in response.iter_content(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size >= _ANSWER_MAX or time.monotonic() > due:
                response.close()
                break
    except Exception:  # noqa: BLE001  the status has been said; how the rest breaks off changes nothing
        response.close()
    return b"".join(pieces)
