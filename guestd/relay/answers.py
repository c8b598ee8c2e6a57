"""What a relay itself says in HTTP, where its target cannot: short, for whoever looks at a program that fails. Pure."""

from __future__ import annotations

_REASONS = {
    400: "Bad Request",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
#: Exporters and other clients that know it come again after so many seconds.
_RETRY_AFTER = 5


def reason(status: int) -> bytes:
    return _REASONS[status].encode()


def headers(status: int, text: bytes) -> list[tuple[bytes, bytes]]:
    found = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % len(text)),
        (b"Connection", b"close"),
    ]
    if status == 503:
        found.append((b"Retry-After", b"%d" % _RETRY_AFTER))
    return found


def body(relay: str, text: str) -> bytes:
    return f"guestd, relay {relay}: {text}\n".encode()


def answer(status: int, relay: str, text: str) -> bytes:
    """All of it, as bytes to send."""
    said = body(relay, text)
    lines = [b"HTTP/1.1 %d %s" % (status, reason(status))]
    lines += [b"%s: %s" % header for header in headers(status, said)]
    return b"\r\n".join([*lines, b"", said])
