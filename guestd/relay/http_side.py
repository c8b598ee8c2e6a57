"""HTTP/1.1 on one end of a relayed connection, and which headers go on to the other end."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import h11

from guestd.relay.pump import send_rest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestd.relay.ends import End
    from guestd.relay.pump import Gone

    Headers = list[tuple[bytes, bytes]]

_READ = 64 * 1024
#: What concerns one connection, and not the next.
_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"expect"}
#: What says how long a body is.
FRAMING = {b"content-length", b"transfer-encoding"}


class Side:
    """HTTP/1.1 on one end."""

    def __init__(self, end: End, role: type[h11.CLIENT | h11.SERVER], sent: Gone) -> None:
        self.end = end
        self.http = h11.Connection(our_role=role)
        self._sent = sent

    async def next(self) -> h11.Event | type[h11.PAUSED]:
        """The next event."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return cast("h11.Event | type[h11.PAUSED]", event)
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(await self._receive())

    async def send(self, *events: h11.Event) -> None:
        """These, in one go."""
        data = b"".join(self.http.send(event) or b"" for event in events)
        if data:
            await _send_rest_now(self.end, data, self._sent)

    async def _receive(self) -> bytes:
        while True:
            try:
                return self.end.receive(_READ)
            except BlockingIOError:
                await self.end.readable()


async def _send_rest_now(end: End, data: bytes, gone: Gone) -> None:
    """All of it, the first of it at once."""
    view = memoryview(data)
    try:
        sent = end.send(view)
    except BlockingIOError:
        sent = 0
    gone.bytes += sent
    await send_rest(end, view[sent:], gone)


def header_of(message: h11.Request, name: bytes) -> bytes:
    """What it says under that name; nothing where it does not."""
    for each, value in message.headers:
        if each == name:
            return value.strip()
    return b""


def headers_to_pass(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Those that are about the message, and not about the connection that it came on."""
    named = {
        word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")
    }
    return [(name, value) for name, value in headers if name not in _HOP and name not in named]


def request_headers_to_pass(request: h11.Request) -> Headers:
    """Those with which a request goes on."""
    headers = headers_to_pass(request.headers)
    # HTTP/1.0 does without, which what is sent on cannot.
    return headers if header_of(request, b"host") else [(b"host", b"localhost"), *headers]
