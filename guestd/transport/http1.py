"""A connection of the HTTP dialect, request by request. Imported with the first of them, since h11 takes its time."""

from __future__ import annotations

import logging
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import trio

from guestd.service.agentcore.surface import Surface
from guestd.transport.exchange import Exchange
from guestd.transport.http import refuse_long_head
from guestd.transport.websocket import serve_native
from guestd.wire.frames import HANDSHAKE_FRAME_LIMIT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guestd.errors import GuestdError
    from guestd.service.session import Session
    from guestd.transport.access import Access
    from guestd.transport.ahead import Ahead
    from guestd.transport.websocket import WebSocketLink

_log = logging.getLogger("guestd.http")
_TEXT = (
    b"This is guestd. It speaks its own protocol here, natively or in WebSocket messages; connect with "
    b"`guestctl --to ADDR status`.\n"
)
_NO_PAGES = b"A web page may connect only where a token is asked for: set token_file in the guest.\n"
_PLAIN = (b"Content-Type", b"text/plain; charset=utf-8")
_CLOSE = (b"Connection", b"close")
#: For the answer that is on its way when guestd leaves.
_GOODBYE_PATIENCE = 1.0
_FOREIGN = {b"cross-site", b"same-site"}


class HttpConnection:
    """A peer of the session for as long as it speaks HTTP, or what a surface has made of that."""

    def __init__(
        self, stream: Ahead, peer: str, family: int, session: Session, access: Access,
        serve: Callable[[WebSocketLink], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.peer = peer
        self._stream = stream
        self._session = session
        self._serve = serve
        self._surface = Surface.of(session)
        self._token = access.http_token_for(family)
        # A browser lets any page send requests to any address of its machine, and says whose page it is.
        self._pages = access.has_token or family not in {socket.AF_INET, socket.AF_INET6}
        self._scope = trio.CancelScope()
        self._exchange: Exchange | None = None
        self._answered = trio.Event()
        self._leaving = False
        self._asks: Callable[[float], Awaitable[bool]] | None = None

    async def run(self) -> None:
        """Until either side closes."""
        self._session.connections.add(self)
        self._session.served += 1
        try:
            with self._scope:
                while await self._one() and not self._leaving and await self._another():
                    pass
                await self._stream.farewell()
        finally:
            self._session.connections.discard(self)

    async def _another(self) -> bool:
        """Wait for the head of the next request."""
        settings = self._session.settings
        try:
            with trio.move_on_after(settings.agentcore.keep_alive):
                if not self._stream.bytes:
                    first = await self._stream.receive_some()
                    if not first:
                        return False
                    self._stream.put_back(bytes(first))
                with trio.fail_after(settings.limits.handshake):
                    if await self._stream.read_head():
                        return True
                await refuse_long_head(self._stream, self.peer, settings.limits.handshake)
        except trio.EndOfChannel:
            pass
        return False

    async def _one(self) -> bool:
        """Deal with one request, whose head is there. Can there be another?"""
        if self._session.leaving:
            # Closed without an answer, it comes again, to the one after this.
            return False
        try:
            exchange = Exchange(self._stream, self.peer, self._session.settings.agentcore.stall)
        except h11.RemoteProtocolError as error:
            _log.info("%s: sent what is no HTTP request: %s", self.peer, error)
            status = error.error_status_hint
            await self._answer_plainly(b"%d %s" % (status, HTTPStatus(status).phrase.encode()))
            return False
        self._exchange, self._answered = exchange, trio.Event()
        try:
            await self._respond(exchange)
            return await exchange.finish()
        except h11.LocalProtocolError as error:
            # What the workload says and its own head do not agree: all that is left is to break off.
            _log.warning(
                "%s: %s %s: the answer was broken off: %s", self.peer, exchange.method, exchange.target, error
            )
            return False
        finally:
            self._exchange = None
            self._answered.set()

    async def _respond(self, exchange: Exchange) -> None:
        is_page = exchange.header(b"origin") is not None or exchange.header(b"sec-fetch-site") in _FOREIGN
        route = self._surface.route(exchange)
        if route is None and not exchange.wants_websocket:
            await self._refuse(exchange, 426, _TEXT, (b"Upgrade", b"websocket"))
        elif is_page and not (self._pages or (route is not None and self._token is not None)):
            await self._refuse(exchange, 403, _NO_PAGES)
        elif route is None:
            # From here on it is a native connection, which is counted as such.
            self._session.connections.discard(self)
            await exchange.websocket(
                (), HANDSHAKE_FRAME_LIMIT,
                lambda websocket: serve_native(websocket, self.peer, self._serve),
                patience=self._session.settings.limits.handshake,
            )  # fmt: skip
        else:
            await self._surface.respond(exchange, route, self._token, self)

    async def _refuse(self, exchange: Exchange, status: int, text: bytes, *more: tuple[bytes, bytes]) -> None:
        _log.info("%s: answered an HTTP request with %d", self.peer, status)
        await exchange.answer(status, [*more, _CLOSE, _PLAIN], text)

    async def _answer_plainly(self, status: bytes) -> None:
        with trio.move_on_after(self._session.settings.limits.handshake):
            await self._stream.send_all(
                b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status
            )

    # ------------------------------------------------------------------------------- as a peer of the session

    def asked_by(self, ask: Callable[[float], Awaitable[bool]] | None) -> None:
        """How to ask this peer whether it is there, while that can be asked."""
        self._asks = ask

    async def goodbye(self, error: GuestdError) -> None:
        """No request after this one; what is being answered is told, and has a moment to end."""
        del error
        self._leaving = True
        exchange = self._exchange
        if exchange is None:
            self._scope.cancel()
            return
        for tell in list(exchange.leaving):
            tell()
        with trio.move_on_after(_GOODBYE_PATIENCE):
            await self._answered.wait()

    async def is_there(self, patience: float) -> bool:
        """HTTP has no question that could be asked in the middle of an answer; a silent connection is given up."""
        if self._asks is not None:
            return await self._asks(patience)
        return self._exchange is not None

    def drop(self, why: str) -> None:
        _log.warning("%s: dropped: %s", self.peer, why)
        self._scope.cancel()
