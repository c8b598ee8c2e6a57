"""The least HTTP/1.1 client: one kept connection, requests made beforehand, one send and few reads each."""

from __future__ import annotations

import json
import socket
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
    """A connection that waits for each answer before the next request."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        if stream.family != socket.AF_UNIX:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._kept = b""

    @classmethod
    def to_port(cls, port: int) -> HttpConnection:
        return cls(socket.create_connection(("127.0.0.1", port)))

    @classmethod
    def to_path(cls, path: str) -> HttpConnection:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(path)
        return cls(stream)

    def ask(self, sent: bytes) -> bytes:
        """Send a request; the body of its answer, which must be a 2xx."""
        self._stream.sendall(sent)
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
