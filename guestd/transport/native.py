"""The native dialect over a stream socket: reads straight into the decoder's buffer, writes straight from the
ring.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.wire.frames import PREFACE, Decoder

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from guestd.service.link import Outgoing
    from guestd.wire.frames import Frame


class NativeLink:
    """Owns the socket, which is non-blocking. See service/link.py for the promises."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self._socket = sock
        self._decoder = Decoder()
        # This side's preface goes out with its first frame.
        self._rest: memoryview = memoryview(PREFACE)
        self._greeted = False
        self._expect_more = False

    def allow(self, limit: int) -> None:
        self._decoder.limit = limit

    async def receive(self) -> Frame | None:
        decoder = self._decoder
        while (frame := decoder.next()) is None:
            room = decoder.writable()
            # A read that filled its room has more behind it; any other has most likely emptied the socket.
            if not self._expect_more:
                await trio.lowlevel.wait_readable(self._socket)
            try:
                size = self._socket.recv_into(room)
            except BlockingIOError:
                self._expect_more = False
                continue
            if size == 0:
                return None
            decoder.wrote(size)
            self._expect_more = size == len(room)
            if self._expect_more:
                await trio.lowlevel.checkpoint()
        return frame

    def send_now(self, frames: Sequence[Outgoing]) -> bool:
        buffers: list[bytes | memoryview] = [] if self._greeted else [self._rest]
        self._greeted = True
        for head, data in frames:
            buffers.append(head)
            if data is not None:
                buffers.append(data)
        try:
            sent = self._socket.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        left = [memoryview(buffer) for buffer in buffers]
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if not left:
            self._rest = memoryview(b"")
            return True
        left[0] = left[0][sent:]
        self._rest = memoryview(b"".join(left))
        return False

    async def flush(self) -> None:
        while self._rest:
            await trio.lowlevel.wait_writable(self._socket)
            with suppress(BlockingIOError):
                self._rest = self._rest[self._socket.send(self._rest) :]

    async def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        await trio.lowlevel.checkpoint()
