"""What is known of the connections that are passed on: counted as it happens, and told to whoever observes."""

from __future__ import annotations

import time
from typing import Any

from guestd import observe
from guestd.relay.pump import Flow

#: How a connection was over. `unreachable` and `refused` never began: nobody took it; there were too many.
ENDED, BROKEN, IDLE, UNREACHABLE, REFUSED, STOPPED = (
    "ended",
    "broken",
    "idle",
    "unreachable",
    "refused",
    "stopped",
)


class Entry:
    """One connection while it lasts."""

    __slots__ = ("flow", "looked_at", "seen", "to")

    def __init__(self, to: str) -> None:
        self.to = to
        self.flow = Flow()
        # By whoever looks for those that do nothing: how much had moved, and since when it is that much.
        self.seen = 0
        self.looked_at = time.monotonic()


class Book:
    """The connections of one relay, or all forwards."""

    def __init__(self, kind: str, name: str | None = None) -> None:
        #: `relay` or `forward`; and whose: the relay's name.
        self.kind = kind
        self.name = name
        self.open: set[Entry] = set()
        self.most = 0
        self.began = 0
        #: By how they were over.
        self.over: dict[str, int] = dict.fromkeys((ENDED, BROKEN, IDLE, UNREACHABLE, REFUSED, STOPPED), 0)
        self._up = self._down = 0

    def begin(self, to: str) -> Entry:
        """Somebody has connected."""
        entry = Entry(to)
        self.open.add(entry)
        self.began += 1
        self.most = max(self.most, len(self.open))
        observe.began(self.kind, entry, name=self.name, to=to)
        return entry

    def end(self, entry: Entry, how: str, why: str = "") -> None:
        """It is over."""
        self.open.discard(entry)
        self.over[how] += 1
        flow = entry.flow
        self._up += flow.up.bytes
        self._down += flow.down.bytes
        observe.ended(
            self.kind, entry, how=how, why=(why or how) if how != ENDED else None,
            bytes_up=flow.up.bytes, bytes_down=flow.down.bytes,
        )  # fmt: skip

    def idle(self, limit: float) -> list[Entry]:
        """Those of which nothing has moved for so long, as far as this was asked often enough."""
        now = time.monotonic()
        found: list[Entry] = []
        for entry in self.open:
            moved = entry.flow.moved
            if moved != entry.seen:
                entry.seen, entry.looked_at = moved, now
            elif now - entry.looked_at >= limit:
                found.append(entry)
        return found

    def describe(self) -> dict[str, Any]:
        """For `status`. Bytes of connections that still go on are counted too."""
        return {
            "open": len(self.open),
            "most_open": self.most,
            "began": self.began,
            "ended": self.over[ENDED],
            "broken": self.over[BROKEN],
            "idle": self.over[IDLE],
            "unreachable_count": self.over[UNREACHABLE],
            "refused": self.over[REFUSED],
            "stopped": self.over[STOPPED],
            "bytes_up": self._up + sum(entry.flow.up.bytes for entry in self.open),
            "bytes_down": self._down + sum(entry.flow.down.bytes for entry in self.open),
        }
