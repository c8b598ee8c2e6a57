"""A ledger: what must be known of a job (or of the session) if this process dies at this very instant.

It lies in memory that the caller gives, a memfd's, which outlives the process. Two kinds of facts are in it. A few
*numbers* that change all the time (how much input has gone into the program) are words of their own, each written
with one store. Everything else is one *entry*, written whole each time: into the half that is not in force, and then a
single store puts that half in force. So whoever opens the ledger after a kill -9 finds the last entry that was
written to its end.

Bytes in, bytes out; what an entry means is its writer's business.
"""

from __future__ import annotations

import struct

_MAGIC = b"guestd ledger 1\0"
_HEADER = struct.Struct("<16sQQ")  # magic, the most bytes of an entry, how many entries were written
#: One page for the header and the numbers.
HEADER_SIZE = 4096
_WRITTEN = 3  # where that is in the header, as a u64
_FIRST_NUMBER = 8
NUMBERS = HEADER_SIZE // 8 - _FIRST_NUMBER
_LENGTH = struct.Struct("<Q")


def memory_size(most: int) -> int:
    """The memory of a ledger whose entries have at most `most` bytes. Pages nothing was written to cost nothing."""
    return HEADER_SIZE + 2 * (_LENGTH.size + most)


def is_ledger(memory: bytes | memoryview, size: int) -> bool:
    """Is what begins like this, and has that size, a whole one?"""
    if len(memory) < _HEADER.size:
        return False
    magic, most, _ = _HEADER.unpack_from(memory)
    return magic == _MAGIC and size == memory_size(most)


class Ledger:
    """See the module. One process writes it at a time."""

    __slots__ = ("_memory", "_words", "most")

    def __init__(self, memory: memoryview, most: int) -> None:
        """Begin a new ledger in `memory`: `memory_size(most)` bytes, all of them 0."""
        _HEADER.pack_into(memory, 0, _MAGIC, most, 0)
        self._open(memory, most)

    @classmethod
    def adopt(cls, memory: memoryview) -> Ledger:
        """Take over one that another process left."""
        if not is_ledger(memory, len(memory)):
            raise ValueError("the memory does not hold a ledger")
        ledger = cls.__new__(cls)
        ledger._open(memory, _HEADER.unpack_from(memory)[1])  # noqa: SLF001  an alternative constructor
        return ledger

    def _open(self, memory: memoryview, most: int) -> None:
        self._memory = memory
        # Eight aligned bytes at a time: one store each, so that nobody ever sees half a number.
        self._words = memory[:HEADER_SIZE].cast("B").cast("Q")
        self.most = most

    def number(self, which: int) -> int:
        """One of the numbers; 0 before it was set."""
        return self._words[_FIRST_NUMBER + which]

    def set_number(self, which: int, value: int) -> None:
        self._words[_FIRST_NUMBER + which] = value

    @staticmethod
    def place(which: int) -> int:
        """Where in the memory a number is, for those who have only the file."""
        return 8 * (_FIRST_NUMBER + which)

    def read(self) -> bytes:
        """The entry in force; empty before the first."""
        written = self._words[_WRITTEN]
        if not written:
            return b""
        at = self._place(written)
        (length,) = _LENGTH.unpack_from(self._memory, at)
        return bytes(self._memory[at + _LENGTH.size : at + _LENGTH.size + length])

    def write(self, entry: bytes) -> None:
        """Put another entry in force. ValueError when it is too long; the one before it stays."""
        if len(entry) > self.most:
            raise ValueError(f"an entry of {len(entry)} bytes; the ledger takes {self.most}")
        following = self._words[_WRITTEN] + 1
        at = self._place(following)
        _LENGTH.pack_into(self._memory, at, len(entry))
        self._memory[at + _LENGTH.size : at + _LENGTH.size + len(entry)] = entry
        # From this store on it is in force.
        self._words[_WRITTEN] = following

    def _place(self, number: int) -> int:
        """Where entry `number` lies: the odd ones in the first half, the even ones in the second."""
        return HEADER_SIZE + (0 if number % 2 else _LENGTH.size + self.most)
