"""A collector for a test: takes OTLP over HTTP as a real one would, and decodes it with the published classes; or lies.

How it answers is one of MANNERS: some take nothing, some never answer, some never stop to.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

#: Far above what anything takes: a hang is to become a failure.
PATIENCE = 30.0
_REQUESTS: dict[str, type[Any]] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
MANNERS: dict[str, bytes | None] = {
    "well": _OK,
    "silent": None,
    "garbage": b"\x00\xff\x13 this is no HTTP\r\n\r\n\r\n" * 40,
    "busy": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
    "limiting": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "refusing": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nwho?",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of",
    "endless": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 65536,
    "trickling": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX: ",
}


@dataclass(frozen=True)
class Span:
    """One span, with what it came with."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    start: float
    end: float
    failed: bool
    why: str
    state: str
    scope: str


@dataclass(frozen=True)
class Log:
    body: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    severity: int
    event: str


@dataclass(frozen=True)
class Point:
    """One point of a metric: a number, or of a histogram the count."""

    name: str
    value: float
    attributes: dict[str, Any]
    unit: str
    kind: str
    monotonic: bool
    sum: float = 0.0


@dataclass
class Collector:
    """What has come so far."""

    endpoint: str
    manner: str = "well"
    spans: list[Span] = field(default_factory=list[Span])
    logs: list[Log] = field(default_factory=list[Log])
    points: list[Point] = field(default_factory=list[Point])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    requests: int = 0
    connections: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def until(self, look: Callable[[], Any]) -> Any:  # noqa: ANN401  what is looked for
        """What `look` finds, once it finds something."""
        due = time.monotonic() + PATIENCE
        with self.changed:
            while not (found := look()):
                left = due - time.monotonic()
                assert left > 0, (
                    f"it did not come; there are spans {[each.name for each in self.spans]}, {len(self.logs)} logs,"
                    f" metrics {sorted({each.name for each in self.points})}"
                )
                self.changed.wait(left)
            return found

    def span(self, name: str | None = None, **attributes: object) -> Span:
        """The span of that name with these attributes (underscores for dots), once it has come."""
        return self.until(lambda: next(iter(self.found(name, **attributes)), None))

    def found(self, name: str | None = None, **attributes: object) -> list[Span]:
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [
            span
            for span in list(self.spans)
            if (name is None or span.name == name)
            and all(span.attributes.get(k) == v for k, v in wanted.items())
        ]

    def log(self, event: str) -> Log:
        return self.until(
            lambda: next((each for each in list(self.logs) if each.event == f"guestd.{event}"), None)
        )

    def point(self, name: str, **attributes: object) -> Point:
        """The newest point of that metric."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return self.until(
            lambda: next(
                (
                    each
                    for each in reversed(list(self.points))
                    if each.name == name and all(each.attributes.get(k) == v for k, v in wanted.items())
                ),
                None,
            )
        )

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """Decode one request. Raises what a real collector would refuse it for."""
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert headers["content-type"] == "application/x-protobuf"
        request = _REQUESTS[path]()
        assert request.ParseFromString(body) == len(body)
        with self.changed:
            self.headers.append(headers)
        self.decoded(request)

    def decoded(self, request: Any) -> None:  # noqa: ANN401  one of three
        """Keep what a request holds."""
        with self.changed:
            self.requests += 1
            for each in getattr(request, "resource_spans", ()):
                self.spans += _spans(each)
            for each in getattr(request, "resource_logs", ()):
                self.logs += _logs(each)
            for each in getattr(request, "resource_metrics", ()):
                self.points += _points(each)
            self.changed.notify_all()


@contextlib.contextmanager
def collecting(manner: str = "well") -> Generator[Collector]:
    """Run one around a block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        collector = Collector(f"http://127.0.0.1:{listener.getsockname()[1]}", manner)
        threads: list[threading.Thread] = []
        open_: list[socket.socket] = []
        failures: list[BaseException] = []

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with collector.changed:
                    collector.connections += 1
                    collector.changed.notify_all()
                open_.append(sock)
                thread = threading.Thread(target=serve, args=(sock,))
                threads.append(thread)
                thread.start()

        def serve(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):
                try:
                    _serve(sock, collector)
                except (AssertionError, KeyError) as error:
                    failures.append(error)

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield collector
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for sock in open_:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
        assert not failures, failures


def _serve(sock: socket.socket, collector: Collector) -> None:
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(rest) < length:
            piece = sock.recv(65536)
            if not piece:
                return
            rest += piece
        body, data = rest[:length], rest[length:]
        answer = MANNERS[collector.manner]
        if collector.manner == "well":
            collector.take(first.split()[1], headers, body)
        else:
            with collector.changed:
                collector.requests += 1
                collector.changed.notify_all()
        if answer is None:
            # Until whoever asked has had enough.
            while sock.recv(65536):
                pass
            return
        sock.sendall(answer)
        if collector.manner in {"garbage", "cut"}:
            return
        while collector.manner in {"endless", "trickling"}:
            sock.sendall(b"x" * 65536 if collector.manner == "endless" else b"x")
            if collector.manner == "trickling":
                time.sleep(0.05)  # it is what it does, not something that is waited for


def plain(attributes: Any) -> dict[str, Any]:  # noqa: ANN401  of any message
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:  # noqa: ANN401  one of many
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, which) if which else None


def _spans(found: Any) -> list[Span]:  # noqa: ANN401  a ResourceSpans
    return [
        Span(
            name=span.name, trace_id=span.trace_id.hex(), span_id=span.span_id.hex(),
            parent=span.parent_span_id.hex(), attributes=plain(span.attributes),
            resource=plain(found.resource.attributes), start=span.start_time_unix_nano / 1e9,
            end=span.end_time_unix_nano / 1e9, failed=span.status.code == 2, why=span.status.message,
            state=span.trace_state, scope=scope.scope.name,
        )
        for scope in found.scope_spans
        for span in scope.spans
    ]  # fmt: skip


def _logs(found: Any) -> list[Log]:  # noqa: ANN401  a ResourceLogs
    return [
        Log(
            each.body.string_value, plain(each.attributes), plain(found.resource.attributes), each.severity_number,
            each.event_name,
        )
        for scope in found.scope_logs
        for each in scope.log_records
    ]  # fmt: skip


def _points(found: Any) -> list[Point]:  # noqa: ANN401  a ResourceMetrics
    points: list[Point] = []
    for scope in found.scope_metrics:
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind)
            for point in data.data_points:
                histogram = kind == "histogram"
                value = point.count if histogram else getattr(point, point.WhichOneof("value"))
                points.append(
                    Point(
                        metric.name, value, plain(point.attributes), metric.unit, kind,
                        bool(getattr(data, "is_monotonic", False)), point.sum if histogram else 0.0,
                    )
                )  # fmt: skip
    return points


@contextlib.contextmanager
def collecting_grpc() -> Generator[Collector]:
    """The same over gRPC, which always behaves well."""
    import grpc

    pool = futures.ThreadPoolExecutor(2)
    server = grpc.server(pool)
    collector = Collector(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")

    def export(request: Any, context: Any) -> bytes:  # noqa: ANN401  as gRPC has it
        del context
        collector.decoded(request)
        # Every answer that has nothing to say is empty.
        return b""

    for signal, request in (
        ("trace.v1.Trace", ExportTraceServiceRequest),
        ("metrics.v1.Metrics", ExportMetricsServiceRequest),
        ("logs.v1.Logs", ExportLogsServiceRequest),
    ):
        unary: Any = grpc.unary_unary_rpc_method_handler
        handler: Any = unary(export, request_deserializer=request.FromString)
        name = f"opentelemetry.proto.collector.{signal}Service"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait(PATIENCE)
        pool.shutdown()
