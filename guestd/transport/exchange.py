"""One request and its answer, on h11. Imported with the first HTTP request.

Each exchange has an h11 connection of its own and leaves what it did not read to the next, so a request that is
pipelined is answered in its turn. A body is read as far as somebody asks for it and sent as far as the client takes it:
nothing is gathered in between. A client that neither sends nor takes anything for `stall` is dropped.
"""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import trio

from guestd.errors import BadRequest, GuestdError, PeerTooSlow, ProtocolViolation
from guestd.transport.ahead import HEAD_MAX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_websocket import WebSocketConnection

    from guestd.transport.ahead import Ahead

    RawHeaders = Sequence[tuple[bytes, bytes]]

_PIECE = 64 * 1024
#: A refused request's body is read to its end when that is near; else the connection is closed.
_REST = 64 * 1024
_REST_PATIENCE = 1.0
RECEIVE_BUFFER_SIZE = 64 * 1024


class Exchange:
    """See the module. One task reads the request, one writes the answer; they may be two."""

    def __init__(self, stream: Ahead, peer: str, stall: float) -> None:
        """Raises h11.RemoteProtocolError when what was read ahead is no request."""
        self._stream = stream
        self._stall = stall
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX + 4)
        self._sending = trio.Lock()
        self.peer = peer
        #: Bytes of an answer have been sent: what goes wrong from now on can only end the connection.
        self.began = False
        #: Another protocol is spoken now.
        self.switched = False
        #: Called when guestd wants to leave.
        self.leaving: list[Callable[[], None]] = []
        # A WebSocket's library wants to read the request by itself, from its first byte.
        self._ahead = one_host(stream.take())
        self._h11.receive_data(self._ahead)
        request = self._h11.next_event()
        if not isinstance(request, h11.Request):
            raise h11.RemoteProtocolError("there is no request")
        self._request = request
        self.method = request.method.decode("ascii")
        self.target = origin_form(request.target.decode("ascii", "replace"))

    # -------------------------------------------------------------------------------------- the request

    @property
    def headers(self) -> RawHeaders:
        """As they came, in upper and lower case."""
        return self._request.headers.raw_items()

    @property
    def http_version(self) -> bytes:
        return self._request.http_version

    def header(self, name: bytes) -> bytes | None:
        """The first of that name, which is given in lower case."""
        return next((value for key, value in self._request.headers if key == name), None)

    def words(self, name: bytes) -> list[bytes]:
        """All that stands between commas in all headers of that name, in lower case."""
        return [
            word.strip().lower()
            for key, value in self._request.headers
            if key == name
            for word in value.split(b",")
        ]

    @property
    def wants_websocket(self) -> bool:
        return b"websocket" in self.words(b"upgrade")

    async def receive(self) -> bytes:
        """The next piece of the body; b"" at its end."""
        while True:
            if self._h11.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
            try:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    self._h11.receive_data(bytes(await self._receive()))
                    continue
            except h11.RemoteProtocolError as error:
                raise ProtocolViolation(f"the request's body is not what its headers say: {error}") from None
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""
            raise ProtocolViolation("the request ended before its body")

    async def _receive(self) -> bytes | bytearray:
        with trio.move_on_after(self._stall):
            return await self._stream.receive_some(_PIECE)
        raise PeerTooSlow(f"nothing more of the request has come for {self._stall:g} s (agentcore.stall)")

    async def body(self, most: int, patience: float) -> bytes:
        """All of a body that has to be understood at once."""
        found = bytearray()
        with trio.move_on_after(patience):
            while piece := await self.receive():
                found += piece
                if len(found) > most:
                    raise BadRequest(f"the request's body has more than the {most} bytes that are read here")
            return bytes(found)
        raise PeerTooSlow(f"the request's body was not whole after {patience:g} s (limits.handshake)")

    async def hung_up(self) -> None:
        """Wait until the client closes, breaks off, or says that it sends no more. Only once its request is read."""
        if not self._h11.trailing_data[1]:
            with suppress(trio.BrokenResourceError):
                await self._stream.closed()

    @property
    def is_read(self) -> bool:
        return self._h11.their_state in {h11.DONE, h11.MUST_CLOSE, h11.CLOSED}

    # --------------------------------------------------------------------------------------- the answer

    async def answer(self, status: int, headers: RawHeaders, body: bytes = b"") -> None:
        """A whole answer."""
        head = [*headers, (b"Content-Length", b"%d" % len(body))]
        self.began = True
        await self._write(
            h11.Response(status_code=status, headers=head, reason=HTTPStatus(status).phrase.encode()),
            h11.Data(data=body if self.method != "HEAD" else b""),
            h11.EndOfMessage(),
        )

    async def begin(self, status: int, headers: RawHeaders, reason: bytes = b"") -> None:
        """The head of an answer whose body comes piece by piece. Without a length it is sent in chunks."""
        self.began = True
        await self._write(h11.Response(status_code=status, headers=list(headers), reason=reason))

    async def inform(self, status: int, headers: RawHeaders, reason: bytes = b"") -> None:
        """An answer before the answer. 101 ends HTTP here. A client of HTTP/1.0 knows of no such thing."""
        if self.http_version == b"1.0":
            return
        self.switched = self.began = status == 101
        if self.switched:
            # What came behind the request is the other protocol's.
            self._settle()
        await self._write(h11.InformationalResponse(status_code=status, headers=list(headers), reason=reason))

    async def send(self, data: bytes) -> None:
        await self._write(h11.Data(data=data))

    async def end(self, trailers: RawHeaders = ()) -> None:
        # In HTTP/1.0 there is no place for them.
        await self._write(h11.EndOfMessage(headers=list(trailers if self.http_version != b"1.0" else ())))

    async def _write(self, *events: h11.Event) -> None:
        async with self._sending:
            data = b"".join(self._h11.send(event) or b"" for event in events)
            await self.write(data)

    async def write(self, data: bytes | bytearray) -> None:
        """Bytes as they are: what HTTP has become after 101."""
        rest = memoryview(data)
        while rest:
            # In pieces, so that a slow client is told from one that takes nothing.
            with trio.move_on_after(self._stall) as waiting:
                await self._stream.send_all(rest[:_PIECE])
            if waiting.cancelled_caught:
                raise trio.BrokenResourceError(
                    f"the client took nothing for {self._stall:g} s (agentcore.stall)"
                )
            rest = rest[_PIECE:]

    async def read(self) -> bytes | bytearray:
        """The other direction, after 101."""
        return self._stream.take() or await self._stream.receive_some(_PIECE)

    async def finish(self) -> bool:
        """Put everything in order behind the answer. Can there be another request?"""
        if self.switched or self._h11.our_state is not h11.DONE:
            return False
        if not self.is_read and not self._h11.they_are_waiting_for_100_continue:
            await self._read_rest()
        if self._h11.their_state is not h11.DONE:
            return False
        self._settle()
        return True

    def _settle(self) -> None:
        """Leave what h11 has not used to whoever reads next."""
        self._stream.put_back(self._h11.trailing_data[0])

    async def _read_rest(self) -> None:
        left = _REST
        with suppress(GuestdError), trio.move_on_after(_REST_PATIENCE):
            while left > 0 and (piece := await self.receive()):
                left -= len(piece)

    # -------------------------------------------------------------------------------------- WebSockets

    async def websocket(
        self, headers: RawHeaders, most: int, serve: Callable[[WebSocketConnection], Awaitable[None]],
        *, patience: float, subprotocol: str | None = None,
    ) -> None:  # fmt: skip
        """Take the upgrade, and serve it."""
        from trio_websocket import wrap_server_stream

        self._stream.put_back(self._ahead)
        self.switched = self.began = True
        async with trio.open_nursery() as nursery:
            with trio.fail_after(patience):
                request = await wrap_server_stream(
                    nursery, self._stream, max_message_size=most, receive_buffer_size=RECEIVE_BUFFER_SIZE
                )
                websocket = await request.accept(subprotocol=subprotocol, extra_headers=list(headers))
            await serve(websocket)
            nursery.cancel_scope.cancel()

    def check_websocket(self) -> None:
        """Raises what is wrong with an upgrade, while it can still be said with a status."""
        if self.method != "GET" or self.http_version != b"1.1":
            version = self.http_version.decode("ascii")
            raise BadRequest(
                f"a WebSocket is asked for with GET in HTTP/1.1, not {self.method} in HTTP/{version}"
            )
        if b"upgrade" not in self.words(b"connection"):
            raise BadRequest("a WebSocket needs `Connection: Upgrade`")
        if self.header(b"transfer-encoding") is not None or int(self.header(b"content-length") or 0):
            # Its bytes could not be told from the WebSocket's own.
            raise BadRequest("a request for a WebSocket has no body")
        key = self.header(b"sec-websocket-key")
        if not key or self.header(b"sec-websocket-version") != b"13":
            raise BadRequest("a WebSocket needs Sec-WebSocket-Key, and Sec-WebSocket-Version: 13")


def origin_form(target: str) -> str:
    """What is asked for, without the place where it is: a request may name both, as one to a proxy does."""
    scheme, found, rest = target.partition("://")
    if not found or scheme.lower() not in {"http", "https"}:
        return target
    at = min((rest.find(each) for each in "/?" if each in rest), default=len(rest))
    return rest[at:] if rest[at : at + 1] == "/" else f"/{rest[at:]}"


def one_host(data: bytes) -> bytes:
    """The same request with one Host header, where it has several that say the same.

    Clients that sign theirs give it to a library that sends one of its own. Several that differ stay, to be refused.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    hosts = [line for line in lines if line[:5].lower() == b"host:"]
    if len(hosts) < 2 or len({line[5:].strip() for line in hosts}) > 1:
        return data
    return b"\r\n".join([*(line for line in lines if line not in hosts), hosts[0]]) + end + rest
