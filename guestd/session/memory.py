"""Memory for tapes: an anonymous file, mapped. The file can be handed to a successor; the mapping is what is
used here.
"""

from __future__ import annotations

import mmap
import os

from guestd.tape import Tape, memory_size


class TapeMemory:
    """One tape and the descriptor of its memory. Pages exist only where bytes were put."""

    __slots__ = ("fd", "tape")

    def __init__(self, capacity: int) -> None:
        size = memory_size(capacity)
        self.fd = os.memfd_create("guestd-tape")
        try:
            os.ftruncate(self.fd, size)
            self.tape = Tape(memoryview(mmap.mmap(self.fd, size)), capacity)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Give the descriptor back. The mapping goes with the last view of it."""
        os.close(self.fd)
