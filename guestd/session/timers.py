"""Short timers that mostly come to nothing, in one task.

A command that is over in half a millisecond must not pay for a task of its own that would have done something later.
Setting a timer moves the deadline of the one task that waits, and wakes nobody.
"""

from __future__ import annotations

import heapq
import logging
from itertools import count
from math import inf
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("guestd.jobs")


class Timers:
    """See the module. What is set cannot be taken back: it looks itself whether there is still something to do."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._patience = trio.CancelScope()

    def after(self, delay: float, call: Callable[[], None]) -> None:
        """Call that in `delay` seconds. It must not block."""
        due = trio.current_time() + delay
        heapq.heappush(self._due, (due, next(self._order), call))
        self._patience.deadline = min(due, self._patience.deadline)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._due[0][0] if self._due else inf) as self._patience:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                _, _, call = heapq.heappop(self._due)
                try:
                    call()
                except Exception:  # noqa: BLE001  one timer's mistake is not the others'
                    _log.exception("a timer failed")
