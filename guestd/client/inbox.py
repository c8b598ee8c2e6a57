"""What has arrived on one channel and was not taken yet: each byte once, in order, each loss by its size. No I/O.

The inbox knows how far every stream has come. Bytes it has seen before are dropped, a hole becomes a `Gap`, so what
comes out is exact whatever the other side repeats after a reconnection. What it holds is bounded by the credit that
was given for the channel; small pieces are joined, because a window full of single bytes would cost a hundred times
its size in objects.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from guestd.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAM_NAMES = {1: "stdout", 2: "stderr"}
#: Pieces are joined up to this size; larger ones travel as they came.
_JOIN_LIMIT = 64 * 1024
#: Events carry no credit. A peer that sends more of them than this without being read is broken.
_ITEMS_LIMIT = 65536

Start = Literal["start", "end"]


def stream_name(number: int) -> str:
    """What a stream is called here. One that a newer guest has is still told apart."""
    return STREAM_NAMES.get(number) or f"stream{number}"


class Output(NamedTuple):
    """Bytes of a stream; `offset` is the absolute place of the first."""

    stream: str
    offset: int
    data: bytes


class Gap(NamedTuple):
    """Bytes from `start` up to `end` that are gone from the guest's ring."""

    stream: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class _Growing:
    """Small pieces of one stream, being joined."""

    __slots__ = ("data", "offset", "stream")

    def __init__(self, stream: str, offset: int, data: bytearray) -> None:
        self.stream = stream
        self.offset = offset
        self.data = data


class Inbox:
    """See the module. `start` says from where output is wanted."""

    __slots__ = ("_discarding", "_items", "_start", "began", "held", "positions")

    def __init__(self, start: Mapping[str, int] | Start = "start") -> None:
        self._start = start
        self._items: deque[Output | Gap | _Growing] = deque()
        self._discarding = False
        #: Bytes that wait to be taken.
        self.held = 0
        #: Where each stream began here.
        self.began: dict[str, int] = {}
        #: How far each stream has come: the offset of the next byte that is wanted.
        self.positions: dict[str, int] = dict(start) if not isinstance(start, str) else {}

    def accepted(self, streams: Mapping[str, Any]) -> None:
        """The guest has said what it keeps of each stream: settle where `start` and `end` are."""
        for name, kept in streams.items():
            if name in self.positions or not isinstance(kept, dict):
                continue
            place = cast("dict[str, object]", kept).get("end" if self._start == "end" else "start")
            if isinstance(place, int):
                self.positions[name] = place
        self.began = dict(self.positions)

    def put(self, number: int, offset: int, data: memoryview) -> int:
        """Bytes came; they are copied out of `data`. Returns how many of them nobody will take."""
        stream = stream_name(number)
        size = len(data)
        position = self.positions.get(stream, offset)
        if offset > position:
            self.lost(stream, position, offset)
        repeated = min(max(position - offset, 0), size)
        self.positions[stream] = max(position, offset + size)
        if self._discarding or repeated == size:
            return size
        self._append(stream, offset + repeated, data[repeated:])
        return repeated

    def lost(self, stream: str, start: int, end: int) -> None:
        """The guest no longer has these bytes. What arrived before it said so is no loss."""
        start = max(start, self.positions.get(stream, start))
        if end <= start:
            return
        self.positions[stream] = end
        if self._discarding:
            return
        last = self._items[-1] if self._items else None
        if isinstance(last, Gap) and last.stream == stream and last.end == start:
            self._items[-1] = Gap(stream, last.start, end)
        else:
            self._push(Gap(stream, start, end))

    def take(self) -> Output | Gap | None:
        """The next item, or None while there is none."""
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, _Growing):
            item = Output(item.stream, item.offset, bytes(item.data))
        if isinstance(item, Output):
            self.held -= len(item.data)
        return item

    def discard(self) -> int:
        """Throw away what is here and what will come. Returns how many bytes that freed now."""
        self._discarding = True
        self._items.clear()
        freed, self.held = self.held, 0
        return freed

    def _append(self, stream: str, offset: int, data: memoryview) -> None:
        self.held += len(data)
        last = self._items[-1] if self._items else None
        if (
            isinstance(last, _Growing)
            and last.stream == stream
            and last.offset + len(last.data) == offset
            and len(last.data) + len(data) <= _JOIN_LIMIT
        ):
            last.data += data
        elif len(data) * 2 <= _JOIN_LIMIT:
            self._push(_Growing(stream, offset, bytearray(data)))
        else:
            self._push(Output(stream, offset, bytes(data)))

    def _push(self, item: Output | Gap | _Growing) -> None:
        if len(self._items) >= _ITEMS_LIMIT:
            raise ProtocolViolation(
                f"more than {_ITEMS_LIMIT} separate pieces of output came without being read"
            )
        self._items.append(item)
