"""The least HTTP/1.1 client: one kept connection, requests made beforehand, one send and few reads each."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from bench.measure import SubjectFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

_READ = 1024 * 1024
#: Answers that have no body although they name no length.
_EMPTY = frozenset({"204", "304"})


def request(method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request with a JSON body."""
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(payload)}"]
    if payload:
        lines.append("Content-Type: application/json")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


class HttpConnection:
    """A connection that waits for each answer before the next request.

    Servers close one that was idle, as it is between two rows; then the next request takes a new one.
    """

    def __init__(self, family: socket.AddressFamily, address: str | tuple[str, int]) -> None:
        self._family, self._address = family, address
        self._stream = self._connected()
        self._kept = b""

    @classmethod
    def to_port(cls, port: int) -> HttpConnection:
        return cls(socket.AF_INET, ("127.0.0.1", port))

    @classmethod
    def to_path(cls, path: str) -> HttpConnection:
        return cls(socket.AF_UNIX, path)

    def ask(self, sent: bytes) -> bytes:
        """Send a request; the body of its answer, which must be a 2xx."""
        self._kept += self._first_words(sent)
        while b"\r\n\r\n" not in self._kept:
            self._kept += self._receive()
        head, _, body = self._kept.partition(b"\r\n\r\n")
        status_line, *header_lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)
        }
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body, self._kept = self._chunks(body)
        elif "content-length" in headers:
            body, self._kept = self._counted(body, int(headers["content-length"]))
        elif status_line.split(" ")[1] not in _EMPTY:
            body, self._kept = self._rest(body), b""
        else:
            body, self._kept = b"", body
        if not status_line.startswith("HTTP/1.1 2"):
            raise SubjectFailed(f"answered {status_line[9:]}: {body[:200]!r}")
        return body

    def close(self) -> None:
        self._stream.close()

    def _first_words(self, sent: bytes) -> bytes:
        with suppress(ConnectionResetError, BrokenPipeError):
            self._stream.sendall(sent)
            if received := self._stream.recv(_READ):
                return received
        self._stream.close()
        self._stream = self._connected()
        self._stream.sendall(sent)
        return self._receive()

    def _connected(self) -> socket.socket:
        stream = socket.socket(self._family)
        try:
            stream.connect(self._address)
        except OSError:
            stream.close()
            raise
        if self._family == socket.AF_INET:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def _counted(self, raw: bytes, size: int) -> tuple[bytes, bytes]:
        parts = [raw]
        missing = size - len(raw)
        while missing > 0:
            parts.append(self._receive())
            missing -= len(parts[-1])
        raw = b"".join(parts)
        return raw[:size], raw[size:]

    def _rest(self, raw: bytes) -> bytes:
        """A body without a length ends with the connection."""
        parts = [raw]
        while part := self._stream.recv(_READ):
            parts.append(part)
        return b"".join(parts)

    def _chunks(self, raw: bytes) -> tuple[bytes, bytes]:
        body = b""
        while True:
            while b"\r\n" not in raw:
                raw += self._receive()
            size_text, _, raw = raw.partition(b"\r\n")
            size = int(size_text.split(b";")[0], 16)
            while len(raw) < size + 2:
                raw += self._receive()
            body, raw = body + raw[:size], raw[size + 2 :]
            if size == 0:
                return body, raw

    def _receive(self) -> bytes:
        received = self._stream.recv(_READ)
        if not received:
            raise SubjectFailed("it closed the connection in the middle of an answer")
        return received
