"""A file behind a tape, for output of which nothing may be lost.

While it has room, everything on the tape is in the file too, so nobody needs to hold the producer. When it is
full (its limit, or the disk's), the tape goes on by itself, and the producer waits for whoever holds it:
slower, but nothing is lost. With nobody there it waits until somebody is; unless the spool is not `patient`: then what
the file has no room for is lost to those who come later, and nobody waits.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from guestd.tape import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestd.session.recording import Recording


class Spool:
    """One stream's file. It has no name: it is gone with the last process that holds it."""

    def __init__(self, fd: int, limit: int, *, patient: bool, oldest: int = 0) -> None:
        """With a file that another process has begun: it was written from its beginning on, so what is in it is whole.
        `oldest`: where the tape begins by now; what neither of them has nobody can add.
        """
        self.fd = fd
        self.limit = limit
        self.patient = patient
        self._writing = False
        self._closed = False
        self.end = os.fstat(fd).st_size
        self.full = self.end < oldest

    @classmethod
    def begin(cls, folder: str, limit: int, *, patient: bool = True) -> Spool:
        """Raises OSError."""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return cls(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), limit, patient=patient)

    async def take(self, recording: Recording) -> None:
        """Write what the tape has and the file has not. In a thread: a disk may be slow."""
        while not (self.full or self._closed) and self.end < recording.end:
            size = min(recording.end, self.limit) - self.end
            if size == 0:
                self.full = True
                return
            assert recording.tape is not None
            piece = recording.tape.read(self.end, size)
            self._writing = True
            try:
                written = await trio.to_thread.run_sync(os.pwrite, self.fd, piece.data, self.end)
            except OSError:
                # No space left, or a disk that fails: what is in the file stays readable.
                self.full = True
                return
            finally:
                self._writing = False
                if self._closed:
                    os.close(self.fd)
            self.end += written

    def read(self, offset: int, most: int) -> Piece:
        """From the file. Written a moment ago by this process, so nearly always from memory."""
        data = os.pread(self.fd, min(most, self.end - offset), offset)
        return Piece(offset, memoryview(data))

    def held_at(self, positions: Sequence[int]) -> int | None:
        """Where the producer has to wait for its readers: nowhere while the file takes everything."""
        if not self.full:
            return None
        return min(positions, default=self.end if self.patient else None)

    def close(self) -> None:
        self._closed = True
        # A thread that writes would write to whatever gets the number next: then it closes the file itself.
        if not self._writing:
            os.close(self.fd)
