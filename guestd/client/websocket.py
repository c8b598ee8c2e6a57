"""The WebSocket dialect: each binary message is one frame without its length. Imported only for ws addresses.

trio-websocket's reader runs as a task of its own. Two of its habits shape this file: a refused handshake is raised out
of that task, and a stream that ends before the handshake never wakes whoever waits for it. So the task is
watched, and how it ends is what the waiting side gets to know.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from guestd.errors import ConnectionLost, Unavailable
from guestd.wire.frames import FRAME_LIMIT, HANDSHAKE_FRAME_LIMIT, parse_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from guestd.client.link import Chunk, Outgoing
    from guestd.wire.frames import Frame

_Carrier: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"
#: Five times the bulk throughput of the library's default of 4 KiB.
_RECEIVE_SIZE = 65536
#: The length, which a message does not need.
_LENGTH = 4


class WebSocketLink:
    """See the module."""

    preface = b""

    def __init__(self, websocket: WebSocketConnection, stream: _Carrier) -> None:
        self._websocket = websocket
        self._stream = stream
        self._limit = HANDSHAKE_FRAME_LIMIT

    def send_now(self, head: Chunk, data: Chunk) -> int:  # noqa: ARG002 - the shape of a link
        return 0

    async def send(self, frames: Sequence[Outgoing]) -> None:
        try:
            for head, data in frames:
                await self._websocket.send_message(b"".join((head[_LENGTH:], data)))
        except ConnectionClosed as error:
            raise ConnectionLost(_reason(error)) from error

    async def receive(self) -> Frame | None:
        try:
            message = await self._websocket.get_message()
        except ConnectionClosed as error:
            if error.reason is not None and error.reason.code == 1000:
                return None
            raise ConnectionLost(_reason(error)) from error
        if isinstance(message, str):
            raise ConnectionLost("a text message came; this protocol has binary ones only")
        return parse_message(memoryview(message), self._limit)

    def greeted(self) -> None:
        self._limit = FRAME_LIMIT

    async def aclose(self) -> None:
        try:
            await self._websocket.aclose()
        finally:
            # A WebSocket that was cut counts as closed, and leaves its stream open.
            await trio.aclose_forcefully(self._stream)


class _Watch:
    """Stands in for the nursery that trio-websocket starts its reader in: notes how the reader ends."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.opening = trio.CancelScope()
        self.error: Exception | None = None

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        self._nursery.start_soon(self._run, function, *args)

    async def _run(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        try:
            await function(*args)
        except Exception as error:  # noqa: BLE001 - the peer chose the bytes, and three libraries have errors for them
            self.error = error
        self.opening.cancel()


async def open_websocket(
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
    host: str,
    path: str,
    tasks: trio.Nursery,
) -> WebSocketLink:
    """Shake hands over a connected stream."""
    watch = _Watch(tasks)
    websocket: WebSocketConnection | None = None
    with watch.opening:
        websocket = await wrap_client_stream(
            cast("trio.Nursery", watch),
            stream,
            host,
            path,
            max_message_size=FRAME_LIMIT,
            receive_buffer_size=_RECEIVE_SIZE,
        )
    if websocket is not None:
        return WebSocketLink(websocket, stream)
    if isinstance(watch.error, ConnectionRejected):
        body = bytes(watch.error.body or b"").decode("utf-8", "replace").strip()[:200]
        raise Unavailable(
            f"it answered HTTP {watch.error.status_code} instead of a WebSocket: {body or 'no text'}"
        )
    raise Unavailable(
        "it ended the WebSocket handshake half-way; is it guestd, and is the path right?"
    ) from watch.error


async def secure(stream: trio.SocketStream, host: str) -> trio.SSLStream[trio.SocketStream]:
    """TLS, with the certificates this machine trusts."""
    context = ssl.create_default_context()
    secured = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        raise Unavailable(f"the TLS handshake failed: {error.__cause__ or error}") from error
    return secured


def _reason(error: ConnectionClosed) -> str:
    reason = error.reason
    if reason is None:
        return "the WebSocket was closed"
    return f"the WebSocket was closed with {reason.code} {reason.name}{': ' + reason.reason if reason.reason else ''}"
