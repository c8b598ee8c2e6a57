"""A tape: append-only bytes with absolute offsets, of which a ring keeps the newest.

fd → tape → cursors → writers. A producer asks for room (`room`), fills it, and says how much (`advance`); a viewer
reads from its own offset (`read`) and learns where the kept bytes begin when it has fallen behind. No queue, no
copy: both get views of the ring.

Kept is [`start`, `end`): the newest `capacity` bytes. A producer that is held (see `room`) waits instead of overwriting
what its holder has not read.

The ring lives in memory the caller gives (a memfd's, so that a successor can adopt it), behind a header whose `end` is
written after the bytes it covers. The ring is a quarter larger than what it promises, and new bytes go only
into that quarter. So whoever maps the tape after this process was killed at any instant finds all that was kept.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_MAGIC = b"guestd tape 1\n\0\0"
_HEADER = struct.Struct("<16sQQQ")  # magic, capacity, end, closed
#: A page, so that the ring itself is page-aligned.
HEADER_SIZE = 4096
_END, _CLOSED = 3, 4  # where they are in the header, as u64s
LEAST_CAPACITY = 4096


class Piece(NamedTuple):
    """Contiguous bytes from `offset` on. `offset` is beyond what was asked for when older bytes are gone."""

    offset: int
    data: memoryview


def memory_size(capacity: int) -> int:
    """How much memory a tape that keeps `capacity` bytes needs: the header, the bytes, and room for new ones."""
    return HEADER_SIZE + capacity + capacity // 4


class Tape:
    """See the module. Not thread-safe: one thread owns it."""

    __slots__ = ("_header", "_ring", "_size", "capacity", "end")

    def __init__(self, memory: memoryview, capacity: int) -> None:
        """Lay a new tape in `memory`, which has `memory_size(capacity)` bytes."""
        if capacity < LEAST_CAPACITY or len(memory) != memory_size(capacity):
            raise ValueError(f"a tape of {capacity} bytes needs {memory_size(capacity)} bytes of memory")
        _HEADER.pack_into(memory, 0, _MAGIC, capacity, 0, 0)
        self._map(memory, capacity, 0)

    @classmethod
    def adopt(cls, memory: memoryview) -> Tape:
        """Take over a tape as another process left it."""
        if len(memory) < HEADER_SIZE:
            raise ValueError(f"the memory does not hold a tape: {len(memory)} bytes are less than its header")
        magic, capacity, end, _ = _HEADER.unpack_from(memory)
        if magic != _MAGIC or len(memory) != memory_size(capacity):
            raise ValueError("the memory does not hold a tape")
        tape = cls.__new__(cls)
        tape._map(memory, capacity, end)  # noqa: SLF001  an alternative constructor
        return tape

    def _map(self, memory: memoryview, capacity: int, end: int) -> None:
        # Eight aligned bytes at a time: one store each, so that nobody ever sees half a number.
        self._header = memory[:HEADER_SIZE].cast("B").cast("Q")
        self._ring = memory[HEADER_SIZE:]
        self._size = len(self._ring)
        self.capacity = capacity
        self.end = end

    @property
    def start(self) -> int:
        """The offset of the oldest byte still kept."""
        return max(0, self.end - self.capacity)

    @property
    def closed(self) -> bool:
        """Nothing more will come."""
        return bool(self._header[_CLOSED])

    def close(self) -> None:
        self._header[_CLOSED] = 1

    def room(self, held_at: int | None = None) -> memoryview:
        """Where the next bytes go, contiguous. Empty when the holder, who is at `held_at`, is to read first."""
        at = self.end % self._size
        size = min(self._size - at, self._size - self.capacity)
        if held_at is not None:
            size = min(size, self.capacity - (self.end - max(held_at, self.start)))
        return self._ring[at : at + size]

    def advance(self, size: int) -> None:
        """`size` bytes were put at the front of the room."""
        self.end += size
        self._header[_END] = self.end

    def place(self, offset: int) -> int:
        """Where in the memory the byte of that offset is, or comes."""
        return HEADER_SIZE + offset % self._size

    def ahead(self, place: int) -> int:
        """How many bytes lie between the end and that place."""
        return (place - HEADER_SIZE - self.end) % self._size

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that the caller already holds; the newest win."""
        rest = memoryview(data)
        while rest:
            room = self.room()
            size = min(len(room), len(rest))
            room[:size] = rest[:size]
            self.advance(size)
            rest = rest[size:]

    def read(self, offset: int, most: int) -> Piece:
        """The bytes from `offset` on: one contiguous piece of at most `most`, perhaps empty."""
        offset = max(offset, self.start)
        at = offset % self._size
        size = max(0, min(most, self.end - offset, self._size - at))
        return Piece(offset, self._ring[at : at + size])
