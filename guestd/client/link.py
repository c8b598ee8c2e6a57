"""Frames over a carrier: a socket, or any Trio stream. The one place of the client where bytes are sent and received.

A link sends whole frames in order. Whoever cancels `send` half-way has to give the link up, because nobody
knows how much has left. `send_now` never waits: it takes what the kernel takes at once, which spares the
usual small request a task switch.

A received frame's payload is a view of the receive buffer, good until the next `receive`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from guestd.errors import ConnectionLost
from guestd.wire.frames import FRAME_LIMIT, PREFACE, Decoder

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from guestd.wire.frames import Frame

Chunk = bytes | memoryview
#: One frame to send: its head, with the length, and the data that follows it, which lies elsewhere.
Outgoing = tuple[Chunk, Chunk]


class Link(Protocol):
    """What a connection needs of whatever carries it. What fails raises OSError, ConnectionLost or trio's errors."""

    #: What goes before the first frame.
    preface: bytes

    def send_now(self, head: Chunk, data: Chunk) -> int:
        """Send without waiting. Returns how many of the bytes went; 0 where the link cannot do that."""
        ...

    async def send(self, frames: Sequence[Outgoing]) -> None:
        """Send all of it."""
        ...

    async def receive(self) -> Frame | None:
        """The next frame, None at the end."""
        ...

    def greeted(self) -> None:
        """The hello has come: longer frames may follow."""
        ...

    async def aclose(self) -> None: ...


class _NativeLink:
    preface = PREFACE

    def __init__(self) -> None:
        self._decoder = Decoder()

    async def receive(self) -> Frame | None:
        decoder = self._decoder
        while True:
            frame = decoder.next()
            if frame is not None:
                return frame
            size = await self._receive_into(decoder.writable())
            if size == 0:
                if decoder.pending:
                    raise ConnectionLost(
                        f"it was cut in the middle of a frame, {decoder.pending} bytes into it"
                    )
                return None
            decoder.wrote(size)

    def greeted(self) -> None:
        self._decoder.limit = FRAME_LIMIT

    async def _receive_into(self, room: memoryview) -> int:
        raise NotImplementedError


class SocketLink(_NativeLink):
    """A connected socket, received into the decoder's own buffer and sent from where the data lies."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        sock.setblocking(False)
        self._socket = sock
        # The last receive found bytes without waiting: let others run before the next.
        self._busy = False

    def send_now(self, head: Chunk, data: Chunk) -> int:
        try:
            return self._socket.sendmsg((head, data)) if data else self._socket.send(head)
        except (BlockingIOError, InterruptedError):
            return 0

    async def send(self, frames: Sequence[Outgoing]) -> None:
        parts = [memoryview(part) for frame in frames for part in frame if part]
        at = 0
        while at < len(parts):
            await trio.lowlevel.wait_writable(self._socket)
            try:
                sent = self._socket.sendmsg(parts[at : at + 64])
            except (BlockingIOError, InterruptedError):
                continue
            while at < len(parts) and sent >= len(parts[at]):
                sent -= len(parts[at])
                at += 1
            if sent:
                parts[at] = parts[at][sent:]

    async def _receive_into(self, room: memoryview) -> int:
        if self._busy:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                size = self._socket.recv_into(room)
            except (BlockingIOError, InterruptedError):
                await trio.lowlevel.wait_readable(self._socket)
            else:
                self._busy = True
                return size

    async def aclose(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        await trio.lowlevel.checkpoint()


class StreamLink(_NativeLink):
    """Any Trio stream: TLS, a relay, a pair in memory."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__()
        self._stream = stream

    def send_now(self, head: Chunk, data: Chunk) -> int:  # noqa: ARG002 - the shape of a link
        return 0

    async def send(self, frames: Sequence[Outgoing]) -> None:
        await self._stream.send_all(b"".join(part for frame in frames for part in frame))

    async def _receive_into(self, room: memoryview) -> int:
        data = await self._stream.receive_some(len(room))
        room[: len(data)] = data
        return len(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)
