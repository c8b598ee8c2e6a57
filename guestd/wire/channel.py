"""The states of one channel, and its credit. The same code serves both ends.

Rules. Whoever opens a channel sends OPEN, then DATA, EVENT and CREDIT as it likes, and may give up with RESET.
The other side answers ACCEPT or REJECT; after ACCEPT it sends DATA, EVENT and CREDIT, and END with the result, or
RESET. REJECT and END end the channel for both. A RESET ends its sender's half; the other side answers RESET,
unless its own last word is already on the way. The id is free when both halves are final.
"""

from __future__ import annotations

from enum import Enum

from guestd.errors import FlowControl, InternalError, ProtocolViolation
from guestd.wire.frames import Kind


class Half(Enum):
    """How far one side has come."""

    NEW = "new"
    LIVE = "live"
    FINAL = "final"


_FLOW = {(Half.LIVE, kind): Half.LIVE for kind in (Kind.DATA, Kind.EVENT, Kind.CREDIT)}

#: What the side that opened may send.
_OPENER = {
    (Half.NEW, Kind.OPEN): Half.LIVE,
    **_FLOW,
    (Half.LIVE, Kind.RESET): Half.FINAL,
}
#: What the side that was asked may send.
_ANSWERER = {
    (Half.NEW, Kind.ACCEPT): Half.LIVE,
    (Half.NEW, Kind.REJECT): Half.FINAL,
    (Half.NEW, Kind.RESET): Half.FINAL,
    **_FLOW,
    (Half.LIVE, Kind.END): Half.FINAL,
    (Half.LIVE, Kind.RESET): Half.FINAL,
}
_ENDS_BOTH = frozenset({Kind.REJECT, Kind.END})


class ChannelState:
    """Both halves of one channel, seen from one side."""

    __slots__ = ("_mine_table", "_theirs_table", "mine", "theirs")

    def __init__(self, *, opener: bool) -> None:
        self._mine_table = _OPENER if opener else _ANSWERER
        self._theirs_table = _ANSWERER if opener else _OPENER
        self.mine = Half.NEW
        self.theirs = Half.NEW

    @property
    def closed(self) -> bool:
        return self.mine is Half.FINAL and self.theirs is Half.FINAL

    def may_send(self, kind: Kind) -> bool:
        return (self.mine, kind) in self._mine_table

    def sent(self, kind: Kind) -> None:
        """This side sends `kind` now. A wrong one is a mistake in this program."""
        state = self._mine_table.get((self.mine, kind))
        if state is None:
            raise InternalError(
                f"{kind.name} may not be sent on a channel whose own half is {self.mine.value}"
            )
        self.mine = state
        if kind in _ENDS_BOTH:
            self.theirs = Half.FINAL

    def received(self, kind: Kind) -> None:
        """The peer sent `kind`. A wrong one is the peer's mistake."""
        state = self._theirs_table.get((self.theirs, kind))
        if state is None:
            raise ProtocolViolation(
                f"{kind.name} came on a channel where the peer's half is {self.theirs.value}"
            )
        self.theirs = state
        if kind in _ENDS_BOTH:
            self.mine = Half.FINAL


class Credit:
    """What this side may still send."""

    __slots__ = ("available",)

    def __init__(self, window: int) -> None:
        self.available = window

    def spend(self, size: int) -> None:
        if size > self.available:
            raise InternalError(f"{size} bytes were to be sent with credit for {self.available}")
        self.available -= size

    def grant(self, size: int) -> None:
        self.available += size


class Window:
    """What the peer may still send to this side, and when to let it send more."""

    __slots__ = ("_consumed", "_left", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = size
        self._consumed = 0

    def received(self, size: int) -> None:
        if size > self._left:
            raise FlowControl(
                f"{size} bytes came where {self._left} were allowed; wait for CREDIT (the window is {self.size})",
            )
        self._left -= size

    def consumed(self, size: int) -> int:
        """`size` bytes were passed on. Returns how much credit to send now: 0, or at least half a window."""
        self._consumed += size
        if self._consumed * 2 < self.size:
            return 0
        grant, self._consumed = self._consumed, 0
        self._left += grant
        return grant
