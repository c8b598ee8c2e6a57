"""The HTTP dialect of the listener: one connection, one request after another.

A WebSocket upgrade to any path that nobody else claims is guestd's own protocol; what clients of AgentCore ask for goes
to service/agentcore; everything else is told what is here. The first request's head is read here, bounded, before
anything heavier is imported for it.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from guestd.transport.ahead import Ahead

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from guestd.service.session import Session
    from guestd.transport.access import Access
    from guestd.transport.websocket import WebSocketLink

_log = logging.getLogger("guestd.http")
_MODULE = "guestd.transport.http1"
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


async def serve_http(
    sock: socket.socket,
    peer: str,
    session: Session,
    access: Access,
    serve: Callable[[WebSocketLink], Awaitable[None]],
) -> None:
    """Serve whoever is there until they, or guestd, close. `serve` takes native WebSocket links."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    await serve_stream(Ahead(stream), peer, sock.family, session, access, serve)


async def serve_stream(
    stream: Ahead,
    peer: str,
    family: int,
    session: Session,
    access: Access,
    serve: Callable[[WebSocketLink], Awaitable[None]],
) -> None:
    """The same over any stream."""
    timeout = session.settings.limits.handshake
    with trio.fail_after(timeout):
        whole = await stream.read_head()
    if not whole:
        await refuse_long_head(stream, peer, timeout)
        return
    if _MODULE not in sys.modules:
        # The first one costs 25 ms: not on the loop's time.
        await trio.to_thread.run_sync(import_module, _MODULE)
    from guestd.transport.http1 import HttpConnection

    await HttpConnection(stream, peer, family, session, access, serve).run()


async def refuse_long_head(stream: Ahead, peer: str, timeout: float) -> None:
    """Say so, and close."""
    _log.info("%s: answered an HTTP request with 431", peer)
    with trio.move_on_after(timeout):
        await stream.send_all(_TOO_LONG)
        await stream.farewell()
