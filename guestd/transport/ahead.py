"""A stream of which some bytes have been read ahead, and can be put back."""

from __future__ import annotations

from contextlib import suppress

import trio

#: h11 allows 16 KiB for a request's head, nginx 8 KiB a line.
HEAD_MAX = 16 * 1024
#: Whoever sends the next request before this one is answered waits for it with no more than this.
_PIPELINED = 64 * 1024
_PIECE = 64 * 1024
#: How long, and how much, a peer that is refused may still say before the connection is closed under it.
_FAREWELL, _FAREWELL_READS = 1.0, 16
_LINE_END = b"\r\n"
_END = _LINE_END + _LINE_END


class Ahead(trio.abc.Stream):
    """One task receives, one task sends."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        #: What has been read and not been taken.
        self.bytes = b""

    async def read_head(self) -> bool:
        """Read up to an empty line, which stays to be taken, as all before it; False when that is too much. One that
        stands before a request is none of it: some clients send it behind a body.
        """
        looked = 0
        while True:
            while self.bytes.startswith(_LINE_END):
                self.bytes, looked = self.bytes[len(_LINE_END) :], 0
            at = self.bytes.find(_END, max(0, looked - len(_END)))
            if at >= 0:
                return at <= HEAD_MAX
            if len(self.bytes) > HEAD_MAX:
                return False
            looked = len(self.bytes)
            more = await self._stream.receive_some(HEAD_MAX)
            if not more:
                raise trio.EndOfChannel
            self.bytes += more

    async def closed(self) -> None:
        """Wait until the other side says nothing more. What it says meanwhile is kept."""
        while len(self.bytes) < _PIPELINED:
            more = await self._stream.receive_some(_PIECE)
            if not more:
                return
            self.bytes += more
        await trio.sleep_forever()

    def put_back(self, data: bytes) -> None:
        self.bytes = data + self.bytes

    def take(self) -> bytes:
        """What has been read ahead."""
        taken, self.bytes = self.bytes, b""
        return taken

    async def farewell(self) -> None:
        """Say no more, and wait until the peer has closed, or has had time to.

        Closed with something of the peer's unread, a socket is reset, and the last words are lost on their way.
        """
        with (
            suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError),
            trio.move_on_after(_FAREWELL),
        ):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            for _ in range(_FAREWELL_READS):
                if not await self._stream.receive_some(_PIECE):
                    return

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.bytes:
            await trio.lowlevel.checkpoint()
            size = len(self.bytes) if max_bytes is None else max_bytes
            data, self.bytes = self.bytes[:size], self.bytes[size:]
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
