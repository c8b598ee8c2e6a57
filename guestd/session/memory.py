"""Memory for tapes and ledgers: an anonymous file, mapped. The file can be handed to a successor; the mapping is what
is used here.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from guestd.ledger import Ledger
from guestd.ledger import memory_size as ledger_size
from guestd.tape import Tape, memory_size

_SPLICE_F_NONBLOCK = 2
#: FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE: give back the memory of a part of a file.
_PUNCH_HOLE = 1 | 2
_JOURNAL_KEPT = 1024 * 1024
_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None)


class TapeMemory:
    """One tape and the descriptor of its memory. Pages exist only where bytes were put."""

    __slots__ = ("fd", "tape")

    def __init__(self, capacity: int) -> None:
        size = memory_size(capacity)
        self.fd = os.memfd_create("guestd-tape")
        try:
            os.ftruncate(self.fd, size)
            self.tape = Tape(_map(self.fd), capacity)
            os.lseek(self.fd, self.tape.place(0), os.SEEK_SET)
        except BaseException:
            os.close(self.fd)
            raise

    def take(self, source: int, most: int) -> int:
        """Move what is there from a pipe onto the tape, `most` bytes of it. 0 at its end; raises BlockingIOError.

        The kernel moves the bytes and the file's position in one step, which no kill -9 comes between: whoever adopts
        the tape sees by the position what the tape's own end does not say yet.
        """
        size = os.splice(source, self.fd, most, flags=_SPLICE_F_NONBLOCK)
        self.tape.advance(size)
        if self.tape.place(self.tape.end) < self.tape.place(self.tape.end - 1):
            os.lseek(self.fd, self.tape.place(self.tape.end), os.SEEK_SET)
        return size

    @classmethod
    def adopt(cls, fd: int) -> TapeMemory:
        """Take over one that another process left. ValueError when it holds no tape."""
        memory = cls.__new__(cls)
        memory.tape = tape = Tape.adopt(_map(fd))
        memory.fd = fd
        if not tape.closed:
            # At the very end of the ring the position is behind it, which is the same as its beginning.
            tape.advance(tape.ahead(os.lseek(fd, 0, os.SEEK_CUR)))
            os.lseek(fd, tape.place(tape.end), os.SEEK_SET)
        return memory

    def close(self) -> None:
        """Give the descriptor back. The mapping goes with the last view of it."""
        os.close(self.fd)


class LedgerMemory:
    """One ledger and the descriptor of its memory."""

    __slots__ = ("fd", "ledger")

    def __init__(self, most: int) -> None:
        size = ledger_size(most)
        self.fd = os.memfd_create("guestd-ledger")
        try:
            os.ftruncate(self.fd, size)
            self.ledger = Ledger(_map(self.fd), most)
        except BaseException:
            os.close(self.fd)
            raise

    @classmethod
    def adopt(cls, fd: int) -> LedgerMemory:
        """Take over one that another process left. ValueError when it holds no ledger."""
        memory = cls.__new__(cls)
        memory.ledger = Ledger.adopt(_map(fd))
        memory.fd = fd
        return memory

    def close(self) -> None:
        os.close(self.fd)


class Journal:
    """Bytes on their way into a program, through a file whose position is how many of them have gone in: the kernel
    moves both in one step, which no kill -9 comes between.
    """

    def __init__(self, fd: int | None = None) -> None:
        """With a descriptor: go on with one that another process has begun."""
        self.fd = os.memfd_create("guestd-input") if fd is None else fd
        #: How many bytes have gone in.
        self.passed_on = 0 if fd is None else os.lseek(fd, 0, os.SEEK_CUR)
        self._cleared = 0

    def send(self, to: int, data: memoryview) -> int:
        """Pass on as much of `data` as there is room for. Raises what writing would."""
        os.pwrite(self.fd, data, self.passed_on)
        sent = os.sendfile(to, self.fd, None, len(data))
        self.passed_on += sent
        if self.passed_on - self._cleared >= _JOURNAL_KEPT:
            # The pages that the pipe still holds stay with the pipe.
            _libc.fallocate(
                self.fd, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(self.passed_on & ~(_PAGE - 1))
            )
            self._cleared = self.passed_on
        return sent

    def close(self) -> None:
        os.close(self.fd)


def _map(fd: int) -> memoryview:
    return memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
