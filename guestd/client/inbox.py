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
from guestd.wire.messages import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

TERMINAL = "terminal"
#: The bytes of a restore. They draw the screen as it is; they are no output of the program's, and have no place in it.
SCREEN = "screen"
STREAM_NAMES = {1: "stdout", 2: "stderr", 3: TERMINAL, 4: SCREEN}
#: Pieces are joined up to this size; larger ones travel as they came.
_JOIN_LIMIT = 64 * 1024
#: Events carry no credit. A peer that sends more of them than this without being read is broken.
_ITEMS_LIMIT = 65536

Start = Literal["start", "end"]
#: A shell can be seen as it is now, too: first what draws its screen, then what comes.
ShellStart = Literal["start", "end", "restore"]
RoleName = Literal["owner", "writer", "watcher"]
_ROLES = ("owner", "writer", "watcher")


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


class Began(NamedTuple):
    """This attachment to a shell has begun; `end` is how far the terminal's output had come by then."""

    role: RoleName
    columns: int
    rows: int
    end: int
    created: bool


class Restore(NamedTuple):
    """`size` bytes of `screen` follow. They put a terminal of that size into the shell's state at offset `offset`."""

    offset: int
    size: int
    columns: int
    rows: int
    exact: bool


class Role(NamedTuple):
    """What this attachment may do has changed, because of `by`."""

    role: RoleName
    by: str


class Resized(NamedTuple):
    """The shell's screen has this size now."""

    columns: int
    rows: int


class InputState(NamedTuple):
    """`blocked`: the program does not read, and `waiting` typed bytes wait for it; `flowing`: it reads again."""

    state: str
    waiting: int


Item = Output | Gap | Began | Restore | Role | Resized | InputState


class _Growing:
    """Small pieces of one stream, being joined."""

    __slots__ = ("data", "offset", "stream")

    def __init__(self, stream: str, offset: int, data: bytearray) -> None:
        self.stream = stream
        self.offset = offset
        self.data = data


class Inbox:
    """See the module. `start` says from where output is wanted."""

    __slots__ = (
        "_discarding", "_items", "_start", "began", "columns", "held", "positions", "restoring", "role", "rows",
    )  # fmt: skip

    def __init__(self, start: Mapping[str, int] | ShellStart = "start") -> None:
        self._start = start
        self._items: deque[Item | _Growing] = deque()
        self._discarding = False
        #: Bytes that wait to be taken.
        self.held = 0
        #: Where each stream began here.
        self.began: dict[str, int] = {}
        #: How far each stream has come: the offset of the next byte that is wanted.
        self.positions: dict[str, int] = dict(start) if not isinstance(start, str) else {}
        #: Of a shell, as the guest said last: what this attachment may do, and the size of the screen.
        self.role: RoleName | None = None
        self.columns = self.rows = 0
        #: Bytes of a restore that are still to come. Until then the screen that it draws is no screen.
        self.restoring = 0

    def accepted(self, streams: Mapping[str, Any]) -> None:
        """The guest has said what it keeps of each stream: settle where `start` and `end` are."""
        for name, kept in streams.items():
            # A restore says itself at which offset its screen is.
            if name in self.positions or not isinstance(kept, dict) or self._start == "restore":
                continue
            place = cast("dict[str, object]", kept).get("end" if self._start == "end" else "start")
            if isinstance(place, int):
                self.positions[name] = place
        self.began = dict(self.positions)

    def event(self, fields: Fields) -> None:
        """What a guest says of a shell. Kept in its place among the output; what is not known is ignored."""
        match fields.raw("event"):
            case "restore":
                offset, size = fields.integer("offset"), fields.integer("bytes")
                self.positions[TERMINAL] = offset
                self.began.setdefault(TERMINAL, offset)
                self.restoring = size
                columns, rows = fields.integer("columns", 0), fields.integer("rows", 0)
                self._say(Restore(offset, size, columns, rows, fields.flag("exact", default=True)))
            case "role":
                self.role = cast("RoleName", fields.choice("role", _ROLES))
                self._say(Role(self.role, fields.text("by", "")))
            case "size":
                self.columns, self.rows = fields.integer("columns"), fields.integer("rows")
                self._say(Resized(self.columns, self.rows))
            case "input":
                self._say(InputState(fields.text("state"), fields.integer("waiting", 0)))
            case _:
                pass

    def attached(self, fields: Fields) -> None:
        """The ACCEPT of a shell."""
        size = Fields(fields.mapping("size"))
        terminal = Fields(Fields(fields.mapping("streams")).mapping(TERMINAL))
        self.role = cast("RoleName", fields.choice("role", _ROLES, "watcher"))
        self.columns, self.rows = size.integer("columns", 0), size.integer("rows", 0)
        self._say(
            Began(self.role, self.columns, self.rows, terminal.integer("end", 0), fields.flag("created"))
        )

    def put(self, number: int, offset: int, data: memoryview) -> int:
        """Bytes came; they are copied out of `data`. Returns how many of them nobody will take."""
        stream = stream_name(number)
        size = len(data)
        if stream == SCREEN:
            self.restoring = max(0, self.restoring - size)
            if self._discarding:
                return size
            self._append(stream, offset, data)
            return 0
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

    def take(self) -> Item | None:
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

    def _say(self, item: Restore | Began | Role | Resized | InputState) -> None:
        if self._discarding:
            return
        # Of several in a row only the last is still true.
        if self._items and isinstance(item, Resized | InputState) and type(self._items[-1]) is type(item):
            self._items.pop()
        self._push(item)

    def _push(self, item: Item | _Growing) -> None:
        if len(self._items) >= _ITEMS_LIMIT:
            raise ProtocolViolation(
                f"more than {_ITEMS_LIMIT} separate pieces of output came without being read"
            )
        self._items.append(item)
