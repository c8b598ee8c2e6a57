"""A job's input: bytes with absolute offsets, into a pipe that may be slower than its sender.

What does not fit waits here, bounded by the credit that was given: credit goes back only for what the pipe
has taken. A sender that comes back after a lost connection says where it continues; what is here already is
dropped, so nothing is typed twice and a hole is an error.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.errors import BadOffset, LimitReached

if TYPE_CHECKING:
    from collections.abc import Callable

#: Of all senders together. One channel's window fits, whatever is set.
_MOST_WAITING = 1024 * 1024


class Input:
    """See the module. `consumed` hears how many bytes left for the pipe, or were given up."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd: int | None = fd
        self._queue: deque[tuple[memoryview, Callable[[int], None]]] = deque()
        self._arrived = trio.Event()
        self._eof_at: int | None = None
        #: What has been accepted: where a sender continues.
        self.offset = 0

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    @property
    def _waiting(self) -> int:
        return sum(len(data) for data, _ in self._queue)

    def write(self, offset: int, data: memoryview, consumed: Callable[[int], None]) -> None:
        """Accept bytes. `consumed` is called once for each of them, sooner or later, reader or no reader."""
        if offset > self.offset:
            raise BadOffset(f"input at offset {offset} leaves a hole: {self.offset} bytes have arrived")
        known = min(self.offset - offset, len(data))
        if known:
            consumed(known)
            data = data[known:]
        if not data:
            return
        if self.is_open and self._queue and self._waiting + len(data) > _MOST_WAITING:
            # Each channel has credit of its own; without this, coming back again and again would add them up.
            raise LimitReached(
                f"{self._waiting} bytes of input wait for the job; come back at offset {self.offset} when it has read",
                limit=_MOST_WAITING,
                setting="limits.window",
            )
        self.offset += len(data)
        if self._fd is None or self._eof_at is not None:
            # The program has closed its input, or its end was announced: like a write that finds no reader.
            consumed(len(data))
            return
        if not self._queue:
            written = self._try(data)
            if written:
                consumed(written)
                data = data[written:]
        if data and not self.is_open:
            consumed(len(data))
        elif data:
            # The view is of a buffer that the next read overwrites.
            self._queue.append((memoryview(bytes(data)), consumed))
            self._arrived.set()

    def finish(self, offset: int) -> None:
        """No more after `offset`."""
        if offset > self.offset:
            raise BadOffset(f"the input's end at {offset} leaves a hole: {self.offset} bytes have arrived")
        self._eof_at = self.offset
        if not self._queue:
            self.close()
        self._arrived.set()

    async def feed(self) -> None:
        """Write what waits, as the pipe takes it, until the input is closed."""
        try:
            while self._fd is not None:
                if not self._queue:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                    continue
                await trio.lowlevel.wait_writable(self._fd)
                if not self._queue:
                    continue  # closed after this task was woken, and before it ran
                data, consumed = self._queue[0]
                written = self._try(data)
                if written < len(data):
                    if self.is_open:
                        self._queue[0] = (data[written:], consumed)
                else:
                    self._queue.popleft()
                consumed(written)
                if not self._queue and self._eof_at is not None:
                    self.close()
                await trio.lowlevel.checkpoint()
        except trio.ClosedResourceError:
            return

    def close(self) -> None:
        """The job reads no more. What waited is given up, and its credit given back."""
        if self._fd is None:
            return
        with suppress(RuntimeError):  # outside of Trio nobody waits
            trio.lowlevel.notify_closing(self._fd)
        os.close(self._fd)
        self._fd = None
        while self._queue:
            data, consumed = self._queue.popleft()
            consumed(len(data))
        self._arrived.set()

    def _try(self, data: memoryview) -> int:
        assert self._fd is not None
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            # EPIPE: nobody reads. SIGPIPE is ignored in this process, as in every Python.
            self.close()
            return 0
