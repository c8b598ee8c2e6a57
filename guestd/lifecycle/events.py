"""What has happened to the session, for whoever asks later: a ring of events, and those who follow it.

The newest are kept, counted from 1. A follower that falls behind is told how many it has missed.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = 1000


class Events:
    """See the module. Events are small: names, numbers, ids."""

    def __init__(self, clock: Callable[[], tuple[float, float]], kept: int = KEPT) -> None:
        self._clock = clock
        self._ring: deque[dict[str, Any]] = deque(maxlen=kept)
        #: Called after each event. They must not block.
        self.followers: list[Callable[[], None]] = []
        #: The number of the next one.
        self.next = 1

    @property
    def oldest(self) -> int:
        """The number of the oldest that is kept."""
        return self.next - len(self._ring)

    def say(self, event: str, **details: object) -> None:
        """It has happened now."""
        wall, mono = self._clock()
        self._ring.append({"event": event, "n": self.next, "at": wall, "mono": mono, **details})
        self.next += 1
        for follower in list(self.followers):
            follower()

    def get(self, number: int) -> dict[str, Any]:
        """One that is kept."""
        return self._ring[number - self.oldest]
