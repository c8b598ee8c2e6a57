"""The HTTP dialect of the listener: a WebSocket upgrade; everything else is told what is here.

The head of the request is read here, bounded, before anything heavier is imported for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from guestd.wire.frames import HANDSHAKE_FRAME_LIMIT

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from guestd.transport.websocket import WebSocketLink

_log = logging.getLogger("guestd.http")
#: h11 allows 16 KiB for a request's head, nginx 8 KiB a line.
_HEAD_MAX = 16 * 1024
_TEXT = (
    b"This is guestd. It speaks its own protocol here, natively or in WebSocket messages; connect with "
    b"`guestctl --to ADDR status`.\n"
)
_NOT_A_WEBSOCKET = (
    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
)
_NO_PAGES_TEXT = b"A web page may connect only where a token is asked for: set token_file in the guest.\n"
_NO_PAGES = (
    b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_NO_PAGES_TEXT), _NO_PAGES_TEXT)
)
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


async def serve_http(
    sock: socket.socket,
    peer: str,
    timeout: float,
    serve: Callable[[WebSocketLink], Awaitable[None]],
    *,
    pages: bool,
) -> None:
    """Read the head; upgrade and serve, or answer. `timeout` bounds what happens before `serve`.

    `pages`: may a web page connect? A browser lets any page open a WebSocket to any address of its machine, and says
    whose page it is in `Origin`.
    """
    stream = _Prefixed(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
    with trio.fail_after(timeout):
        head = await stream.read_head(_HEAD_MAX)
    answer = None
    if head is None:
        answer = _TOO_LONG
    elif not has_header(head, b"upgrade", b"websocket"):
        answer = _NOT_A_WEBSOCKET
    elif not pages and has_header(head, b"origin"):
        answer = _NO_PAGES
    if answer is not None:
        _log.info("%s: answered an HTTP request with %s", peer, answer.split(b"\r\n")[0].decode())
        with trio.move_on_after(timeout):
            await stream.send_all(answer)
        return
    await _serve_websocket(stream, peer, timeout, serve)


async def _serve_websocket(
    stream: _Prefixed,
    peer: str,
    timeout: float,
    serve: Callable[[WebSocketLink], Awaitable[None]],
) -> None:
    # The first one costs 25 ms: not on the loop's time.
    module = await trio.to_thread.run_sync(_load)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(timeout):
            request = await module.wrap_server_stream(
                nursery,
                stream,
                max_message_size=HANDSHAKE_FRAME_LIMIT,
                receive_buffer_size=module.websocket.RECEIVE_BUFFER_SIZE,
            )
            websocket = await request.accept()
        link = module.websocket.WebSocketLink(websocket, peer)
        await serve(link)
        await link.close()
        nursery.cancel_scope.cancel()


class _Loaded:
    """What is imported late."""

    def __init__(self) -> None:
        from trio_websocket import wrap_server_stream

        from guestd.transport import websocket

        self.wrap_server_stream = wrap_server_stream
        self.websocket = websocket


def _load() -> _Loaded:
    return _Loaded()


def has_header(head: bytes, name: bytes, word: bytes = b"") -> bool:
    """Is there such a header in the request, with that word in it?"""
    for line in head.split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.strip().lower() == name and word in value.lower():
            return True
    return False


class _Prefixed(trio.abc.Stream):
    """A stream of which some bytes have been read ahead."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._ahead = b""

    async def read_head(self, most: int) -> bytes | None:
        """Everything up to the empty line, which stays to be read; None when it is longer than `most`."""
        while b"\r\n\r\n" not in self._ahead:
            if len(self._ahead) > most:
                return None
            more = await self._stream.receive_some(most)
            if not more:
                raise trio.EndOfChannel
            self._ahead += more
        return self._ahead.partition(b"\r\n\r\n")[0]

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._ahead:
            await trio.lowlevel.checkpoint()
            size = len(self._ahead) if max_bytes is None else max_bytes
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
