"""The native dialect over a stream socket: reads straight into the decoder's buffer, writes straight from the
ring.
"""

from __future__ import annotations

import fcntl
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.wire.frames import PREFACE, Decoder

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from guestd.service.link import Outgoing
    from guestd.wire.frames import Frame

_NOTHING = memoryview(b"")


class NativeLink:
    """Owns the socket, which is non-blocking. See service/link.py for the promises."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self._socket = sock
        self._decoder = Decoder()
        # This side's preface goes out with its first frame.
        self._rest: memoryview = memoryview(PREFACE)
        self._spare = _NOTHING
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
        self._rest = self._keep(buffers, sent)
        return not self._rest

    def _keep(self, buffers: list[bytes | memoryview], sent: int) -> memoryview:
        """What of the buffers has not been sent, in memory of the link's own.

        The same memory each time: a fresh quarter of a megabyte would be mapped, cleared and unmapped again for
        every frame that meets a full socket, which in bulk is most of them.
        """
        size = sum(map(len, buffers)) - sent
        if not size:
            return _NOTHING
        if size > len(self._spare):
            self._spare = memoryview(bytearray(size))
        at = 0
        for buffer in buffers:
            if sent >= len(buffer):
                sent -= len(buffer)
                continue
            end = at + len(buffer) - sent
            self._spare[at:end] = memoryview(buffer)[sent:]
            at, sent = end, 0
        return self._spare[:at]

    async def flush(self) -> bool:
        if self._rest:
            await trio.lowlevel.wait_writable(self._socket)
            with suppress(BlockingIOError):
                self._rest = self._rest[self._socket.send(self._rest) :]
        return not self._rest

    @property
    def unsent(self) -> int:
        count = bytearray(4)
        # Not every socket can tell; and who goes through all connections may come to one that has closed meanwhile.
        with suppress(OSError, ValueError):
            fcntl.ioctl(self._socket, termios.TIOCOUTQ, count)
        return len(self._rest) + int.from_bytes(count, sys.byteorder)

    async def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        await trio.lowlevel.checkpoint()
