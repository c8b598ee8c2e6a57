"""One output stream of a job: a descriptor read onto a tape, and the viewers that read from there.

The pump reads straight into the tape's ring and tells the viewers; they pull at their own pace. Only viewers
that *hold* slow the producer. The tape's memory is taken when the first byte comes: most commands that say
nothing cost nothing.
"""

from __future__ import annotations

import fcntl
import os
import select
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from guestd.session.memory import TapeMemory
from guestd.tape import Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.session.spool import Spool
    from guestd.tape import Tape

#: In place of a descriptor: the stream has ended, and only its tape is left.
NO_FD = -1
_NOTHING = memoryview(b"")
#: Shared: for first reads, whose tape does not exist yet, and for what is read only to be thrown away.
_DISCARD = memoryview(bytearray(64 * 1024))
#: Bulk moves in fewer, larger reads; the kernel grants an unprivileged process less, which is fine.
_PIPE_SIZE = 1024 * 1024
#: Taken at an exit in one go: all that a pipe holds.
_SPLICE_F_NONBLOCK = 2
_DRAINED = 2 * _PIPE_SIZE


class Viewer(Protocol):
    """Whoever reads a recording: has a place in it, may hold it, wants to hear of news."""

    @property
    def holds(self) -> bool: ...
    def position(self, stream: int) -> int: ...
    def news(self) -> None: ...
    def lapse(self) -> None: ...


class Keeping(Protocol):
    """What a recording has kept, so that it survives this process."""

    def keep_tape(self, recording: Recording) -> None: ...
    def keep_tail(self, recording: Recording, fd: int) -> None: ...
    def keep_relay(self, fds: Sequence[int]) -> None: ...


class Recording:
    """See the module. `changed` is told when bytes have come or the end was reached."""

    def __init__(
        self, stream: int, name: str, fd: int, capacity: int, viewers: dict[Viewer, None],
        changed: Callable[[], None],
        spool: Spool | None = None, memory: TapeMemory | None = None,
    ) -> None:  # fmt: skip
        """With `memory`: go on with a tape that was begun by another process."""
        self.stream = stream
        self.name = name
        self.capacity = capacity
        self.spool = spool
        self._fd = fd
        self._viewers = viewers
        self._changed = changed
        self._memory = memory
        #: Who keeps what is to survive this process, if it is.
        self.survives: Keeping | None = None
        # What was left in the pipe when the recording ended under a holder that had left no room for it.
        self._tail = b""
        self._less_held = trio.Event()
        self._recording = True
        #: There is nobody to write to it any more.
        self.at_end = fd == NO_FD
        if not self.at_end:
            os.set_blocking(fd, False)
        self._pumped = False
        # Where it ended, once it is forgotten: whoever was still reading is told of a gap up to there.
        self._forgotten = 0

    # --------------------------------------------------------------------------------- what is kept

    @property
    def tape(self) -> Tape | None:
        return None if self._memory is None else self._memory.tape

    @property
    def fd(self) -> int:
        """What it reads from; good until `at_end`."""
        return self._fd

    @property
    def memory_fd(self) -> int | None:
        return None if self._memory is None else self._memory.fd

    @property
    def start(self) -> int:
        """The oldest byte that can still be had."""
        if self._memory is None:
            return self._forgotten
        return 0 if self.spool is not None else self._memory.tape.start

    @property
    def end(self) -> int:
        return self._forgotten if self._memory is None else self._memory.tape.end + len(self._tail)

    @property
    def is_open(self) -> bool:
        """Somebody may still write to it."""
        return not self.at_end

    @property
    def held_bytes(self) -> int:
        """How much memory it takes."""
        spooled = self.spool.end if self.spool is not None and not self.spool.patient else 0
        return min(self.end, self.capacity + self.capacity // 4 + len(self._tail)) + spooled

    def read(self, offset: int, most: int) -> Piece:
        """What is there from `offset` on; a later offset in the piece means that the bytes between are gone."""
        if self._memory is None:
            return Piece(max(offset, self._forgotten), _NOTHING)
        tape = self._memory.tape
        if self.spool is not None and offset < min(tape.start, self.spool.end):
            return self.spool.read(offset, most)
        if self._tail and offset >= tape.end:
            at = offset - tape.end
            return Piece(offset, memoryview(self._tail)[at : at + most])
        return tape.read(offset, most)

    # -------------------------------------------------------------------------------------- reading

    async def pump(self) -> None:
        """Read until the end of the stream, or until `stop_recording`; then go on reading, and discard."""
        self._pumped = True
        try:
            # More room only once the stream turns out to be bulk: a pipe of 1 MiB counts against its user's
            # limit.
            widened = False
            while self._recording and not self.at_end:
                size = self._read_once()
                if size is None:
                    await trio.lowlevel.wait_readable(self._fd)
                elif size == 0:
                    if self.at_end:
                        self._tell()
                    else:
                        await self._wait_for_room()
                else:
                    if size >= 64 * 1024 and not widened:
                        widened = True
                        widen(self._fd)
                    if self.spool is not None:
                        await self.spool.take(self)
                    self._tell()
                    await trio.lowlevel.checkpoint()
            while not self.at_end:
                await trio.lowlevel.wait_readable(self._fd)
                # Closed after this task was woken, its number may be another stream's by now.
                if not self.at_end:
                    self._discard_once()
                await trio.lowlevel.checkpoint()
        except trio.ClosedResourceError:
            # The end was found by `drain`, which has told everybody.
            return

    def drain(self) -> None:
        """Take what is there now, without waiting: when the process has ended, mostly all there ever will be."""
        before = self.end
        # Something left behind may write faster than anybody reads.
        while self._recording and not self.at_end and self.spool is None and self.end < before + _DRAINED:
            if not self._read_once():
                break
        if self.end > before:
            # Not only at the end, which may be a while off if something else holds the stream.
            self._tell_viewers()

    def unread(self) -> int:
        """The offset up to which bytes have been written by now, read or not."""
        if self.at_end:
            return self.end
        count = bytearray(4)
        fcntl.ioctl(self._fd, termios.FIONREAD, count)
        return self.end + int.from_bytes(count, "little")

    def take_rest(self, end: int) -> None:
        """End the recording at `end`, up to where bytes have been written: at once, if it is a holder's pace
        that they wait for. What a pipe holds is little, and nobody else is to wait for that holder.
        """
        if not self._has_no_room:
            return
        self._take_tail(end - self.end)
        self.stop_recording()
        self._tell_viewers()

    def _take_tail(self, size: int) -> None:
        fd = os.memfd_create("guestd-tail")
        try:
            if self.survives is not None:
                self.survives.keep_tail(self, fd)
            with suppress(OSError):
                while size and (moved := os.splice(self._source(), fd, size, flags=_SPLICE_F_NONBLOCK)):
                    size -= moved
            self.put_tail(fd)
        finally:
            os.close(fd)

    def put_tail(self, fd: int) -> None:
        """The output ends with what is in that file."""
        self._tail = os.pread(fd, os.fstat(fd).st_size, 0)

    @property
    def _has_no_room(self) -> bool:
        return self._memory is not None and not self._room_now()

    def stop_recording(self) -> None:
        """The tape ends here. What still comes is read and thrown away, so that its writer does not die of
        SIGPIPE.
        """
        if self._recording:
            self._recording = False
            self._close_tape()
            self._less_held.set()
            # The pump may be waiting for bytes, in the other loop.

    def made_room(self) -> None:
        """A holder has read on."""
        self._less_held.set()

    def hang_up(self) -> None:
        """There is no program at the other end, and never was."""
        self._end()
        self._close_tape()

    def close(self, *, read_on: bool = False) -> None:
        """Give the memory back, and close the descriptor; `read_on` leaves that to the pump, which goes on
        discarding until the last writer has gone: who was left running does not die of SIGPIPE when its job
        is forgotten.
        """
        self.stop_recording()
        if not (read_on and self._pumped):
            self._end()
        if self._memory is not None:
            self._forgotten = self.end
            self._memory.close()
            self._memory = None
        if self.spool is not None:
            self.spool.close()

    def _read_once(self) -> int | None:
        """Bytes read; 0 when there is no room or the end was reached; None when nothing is there."""
        room = self._room_now()
        if not room:
            return 0
        try:
            size = self._take(room) if self.survives is None else self._take_safely(self.survives, len(room))
        except BlockingIOError:
            return None
        except OSError:
            # EIO is how a terminal ends; nothing else can be said of a descriptor that cannot be read.
            size = 0
        if size == 0:
            self._end()
            self._close_tape()
        return size

    def _take(self, room: memoryview) -> int:
        size = os.readv(self._fd, [room])
        if self._memory is not None:
            self._memory.tape.advance(size)
        elif size:
            self._memory = TapeMemory(self.capacity)
            self._memory.tape.append(room[:size])
        return size

    def _take_safely(self, keeping: Keeping, most: int) -> int:
        """The same so that a kill -9 in the midst of it loses nothing."""
        if self._memory is None:
            if not _is_readable(self._fd):
                return 0
            # Before a byte has left the pipe.
            self._memory = TapeMemory(self.capacity)
            keeping.keep_tape(self)
            most = min(most, len(self._memory.tape.room()))
        return self._memory.take(self._source(), most)

    def _source(self) -> int:
        """The pipe that its bytes come from. Raises BlockingIOError when there are none in it."""
        return self._fd

    def _room_now(self) -> memoryview:
        return _DISCARD[: self.capacity] if self._memory is None else self._memory.tape.room(self._held_at())

    def _discard_once(self) -> None:
        try:
            size = os.readv(self._fd, [_DISCARD])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size == 0:
            self._end()
            self._changed()

    def _held_at(self) -> int | None:
        positions = [viewer.position(self.stream) for viewer in self._viewers if viewer.holds]
        if self.spool is not None:
            return self.spool.held_at(positions)
        return min(positions, default=None)

    async def _wait_for_room(self) -> None:
        self._less_held = trio.Event()
        self._changed()
        await self._less_held.wait()

    def _tell(self) -> None:
        self._tell_viewers()
        self._changed()

    def _tell_viewers(self) -> None:
        # Not all who are told are still there when it is their turn: the one before may be the last word to somebody.
        for viewer in list(self._viewers):
            viewer.news()

    def _end(self) -> None:
        if not self.at_end:
            self.at_end = True
            self._less_held.set()
            with suppress(RuntimeError):  # outside of Trio (a test, the very end) nobody waits
                trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)

    def _close_tape(self) -> None:
        if self._memory is not None:
            self._memory.tape.close()


def _is_readable(fd: int) -> bool:
    """Are there bytes to be read? Raises BlockingIOError while there are none; False at the end."""
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    for _, events in ready.poll(0):
        return bool(events & select.POLLIN)
    raise BlockingIOError


def widen(fd: int) -> None:
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
