"""The WebSocket dialect: each binary message is one native frame without its length.

Imported when the first such client comes. Only the connection's writer sends, since a send that is cancelled
half way leaves half a message on the wire: `flush` cancelled means the link is done with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from guestd.errors import ProtocolViolation
from guestd.wire.frames import HANDSHAKE_FRAME_LIMIT, HEAD, parse_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from guestd.service.link import Outgoing
    from guestd.wire.frames import Frame

#: What `length` takes in a native frame's head.
_LENGTH_SIZE = 4
_CLOSE_PATIENCE = 1.0


class WebSocketLink:
    """See service/link.py for the promises."""

    def __init__(self, websocket: WebSocketConnection, peer: str) -> None:
        self.peer = peer
        self._websocket = websocket
        self._limit = HANDSHAKE_FRAME_LIMIT
        self._queue: list[bytes] = []

    def allow(self, limit: int) -> None:
        self._limit = limit
        # The library fixes the bound when a connection is made, before anybody knows who is there.
        self._websocket._max_message_size = limit + HEAD  # noqa: SLF001  see above

    async def receive(self) -> Frame | None:
        try:
            message = await self._websocket.get_message()
        except ConnectionClosed:
            return None
        if isinstance(message, str):
            raise ProtocolViolation("a text message; frames are binary messages")
        return parse_message(memoryview(message), self._limit)

    def send_now(self, frames: Sequence[Outgoing]) -> bool:
        for head, data in frames:
            message = head[_LENGTH_SIZE:]
            self._queue.append(message if data is None else message + data)
        return False

    async def flush(self) -> bool:
        try:
            if self._queue:
                await self._websocket.send_message(self._queue[0])
                del self._queue[0]
        except ConnectionClosed as closed:
            raise trio.BrokenResourceError from closed
        return not self._queue

    @property
    def unsent(self) -> int:
        return sum(map(len, self._queue))

    async def close(self) -> None:
        with trio.move_on_after(_CLOSE_PATIENCE):
            await self._websocket.aclose()


async def serve_native(
    websocket: WebSocketConnection, peer: str, serve: Callable[[WebSocketLink], Awaitable[None]]
) -> None:
    """Serve whoever has come this way."""
    link = WebSocketLink(websocket, peer)
    await serve(link)
    await link.close()
