"""Bytes on their way into a program that may be slower than who sends them.

What does not fit waits here, bounded by the credit that was given: credit goes back only for what the
descriptor has taken. A command's input has absolute offsets: a sender that comes back after a lost connection
says where it continues; what is here already is dropped, so nothing is typed twice and a hole is an error.
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

    from guestd.session.memory import Journal

#: Of all senders together. One channel's window fits, whatever is set.
_MOST_WAITING = 1024 * 1024
#: Keys that wait are put together up to here: each by itself would take a hundred times its size.
_LUMP = 4096


class Feed:
    """See the module. Whoever puts bytes here is told, for each of them, when it has left or was given up."""

    def __init__(self, fd: int | None) -> None:
        """Without a descriptor nobody reads it any more."""
        if fd is not None:
            os.set_blocking(fd, False)
        self._fd = fd
        #: What waits, who hears when it has gone, and whose it is.
        self._queue: deque[tuple[memoryview, Callable[[int], None], object]] = deque()
        #: Bytes in the queue.
        self.waiting = 0
        self._arrived = trio.Event()
        self._finished = False
        #: How many bytes have been accepted, from all who send.
        self.offset = 0
        #: Through which the bytes go, where it is to be known exactly how many have gone even if this process dies.
        self.journal: Journal | None = None
        #: Told before the descriptor is closed here.
        self.closing: Callable[[], None] | None = None

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    @property
    def fd(self) -> int | None:
        return self._fd

    def check_room(self, size: int, offset: int) -> None:
        """LimitReached, where taking so many more from one who is at `offset` would be too much."""
        if self.is_open and self._queue and self.waiting + size > _MOST_WAITING:
            # Each channel has credit of its own; without this, coming back again and again would add them up.
            raise LimitReached(
                f"{self.waiting} bytes of input wait for the job; come back at offset {offset} when it has read",
                limit=_MOST_WAITING,
                setting="limits.window",
            )

    def put(self, data: memoryview, consumed: Callable[[int], None], who: object = None) -> None:
        """Accept somebody's bytes. `consumed` is called once for each of them, sooner or later, reader or no reader."""
        self.offset += len(data)
        if self._fd is None or self._finished:
            # The program has closed its input, or its end was announced: like a write that finds no reader.
            consumed(len(data))
            return
        if not self._queue:
            self._is_sending(who)
            written = self._try(data)
            if written:
                consumed(written)
                data = data[written:]
        if data and not self.is_open:
            consumed(len(data))
        elif data:
            self._enqueue(data, consumed, who)

    def _enqueue(self, data: memoryview, consumed: Callable[[int], None], who: object) -> None:
        self.waiting += len(data)
        if self._queue:
            last, told, whose = self._queue[-1]
            if told == consumed and whose is who and len(last) + len(data) <= _LUMP:
                self._queue[-1] = (memoryview(b"".join((last, data))), consumed, who)
                return
        # The view is of a buffer that the next read overwrites.
        self._queue.append((memoryview(bytes(data)), consumed, who))
        self._arrived.set()

    def drop_waiting(self) -> None:
        """Give up what waits."""
        while self._queue:
            data, consumed, _ = self._queue.popleft()
            self.waiting -= len(data)
            consumed(len(data))

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
                data, consumed, who = self._queue[0]
                self._is_sending(who)
                written = self._try(data)
                self.waiting -= written
                if written < len(data):
                    if self.is_open:
                        self._queue[0] = (data[written:], consumed, who)
                else:
                    self._queue.popleft()
                if written:
                    consumed(written)
                    self._has_written()
                if not self._queue and self._finished:
                    self.close()
                await trio.lowlevel.checkpoint()
        except trio.ClosedResourceError:
            return

    def _is_sending(self, who: object) -> None:
        """For who wants to know: bytes of somebody's are about to go."""

    def _has_written(self) -> None:
        """For who wants to know."""

    def close(self) -> None:
        """The program reads no more. What waited is given up, and its credit given back."""
        if self._fd is None:
            return
        if self.closing is not None:
            self.closing()
        with suppress(RuntimeError):  # outside of Trio nobody waits
            trio.lowlevel.notify_closing(self._fd)
        os.close(self._fd)
        self._fd = None
        self.drop_waiting()
        self._arrived.set()

    def _try(self, data: memoryview) -> int:
        assert self._fd is not None
        try:
            return os.write(self._fd, data) if self.journal is None else self.journal.send(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            # EPIPE: nobody reads. SIGPIPE is ignored in this process, as in every Python.
            self.close()
            return 0


class Input(Feed):
    """The input of a command, which has an end."""

    def __init__(self, fd: int | None, offset: int = 0) -> None:
        """`offset`: how much of it another process has passed on already."""
        super().__init__(fd)
        self.offset = offset

    def write(self, offset: int, data: memoryview, consumed: Callable[[int], None]) -> None:
        """Accept the bytes from `offset` on."""
        data = unknown(data, offset, self.offset, consumed)
        if data:
            self.check_room(len(data), self.offset)
            self.put(data, consumed)

    def finish(self, offset: int) -> None:
        """No more after `offset`."""
        if offset > self.offset:
            raise BadOffset(f"the input's end at {offset} leaves a hole: {self.offset} bytes have arrived")
        self._finished = True
        if not self._queue:
            self.close()
        self._arrived.set()


def unknown(data: memoryview, offset: int, known: int, consumed: Callable[[int], None]) -> memoryview:
    """What of `data`, which begins at `offset`, is new to one who has everything before `known`."""
    if offset > known:
        raise BadOffset(f"input at offset {offset} leaves a hole: {known} bytes have arrived")
    repeated = min(known - offset, len(data))
    if repeated:
        consumed(repeated)
    return data[repeated:]
