"""A bounded queue in front of a collector, and the thread that empties it.

Batches leave when there are enough, or the oldest has waited long enough. A batch that the collector could not take is
tried again, with pauses that double, so that one that is away for a while costs nothing; what it refuses for good is
dropped. When the queue is full, the oldest goes, and that is the batch in hand first. Everything dropped is counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BATCH = 512
#: Between two tries; and the longest that a collector may ask for.
_PAUSE, _PAUSE_MAX, _ASKED_MAX = 1.0, 30.0, 300.0


class Outcome:
    """What became of a batch. `why` is None where it was taken. `final`: trying again is of no use."""

    __slots__ = ("final", "retry_after", "why")

    def __init__(self, why: str | None = None, *, final: bool = False, retry_after: float = 0.0) -> None:
        self.why = why
        self.final = final
        self.retry_after = retry_after


class Queue:
    """See the module. `send` may wait as long as it likes, within its own bounds; it is called from one thread."""

    def __init__(self, name: str, limit: int, delay: float, send: Callable[[Sequence[Any]], Outcome]) -> None:
        self.name = name
        self._limit = limit
        self._batch = min(BATCH, max(1, limit // 2))
        self._delay = delay
        self._send = send
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._flushing = self._pausing = self._stale = self._busy = False
        self._in_hand = 0
        self.begun: float | None = None
        self.sent = self.dropped = self.failures = 0
        self.error: str | None = None
        self.error_at: float | None = None
        self.well_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"export {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: object) -> None:
        """To be sent. Never waits."""
        with self._changed:
            if len(self._items) + self._in_hand >= self._limit:
                if self._pausing and self._in_hand:
                    self._stale = True
                    self.dropped += self._in_hand
                    self._in_hand = 0
                elif self._items:
                    self._items.popleft()
                    self.dropped += 1
            self._items.append(item)
            if self._stale or len(self._items) in {1, self._batch}:
                self._changed.notify_all()

    def flush(self) -> None:
        """Everything is to leave now, without pauses."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()

    @property
    def empty(self) -> bool:
        with self._changed:
            return not self._items and not self._busy

    def report(self) -> dict[str, Any]:
        with self._changed:
            return {
                "sent": self.sent, "dropped": self.dropped, "failures": self.failures,
                "waiting": len(self._items) + self._in_hand, "error": self.error, "error_at": self.error_at,
                "well_since": self.well_since,
            }  # fmt: skip

    def _run(self) -> None:
        while True:
            batch = self._take()
            self._bring(batch)
            with self._changed:
                self._busy = False
                self._in_hand = 0
                if not self._items:
                    self._flushing = False
                self._changed.notify_all()

    def _take(self) -> list[Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            due = time.monotonic() + self._delay
            self._changed.wait_for(
                lambda: self._flushing or len(self._items) >= self._batch, max(0.0, due - time.monotonic())
            )
            batch = [self._items.popleft() for _ in range(min(self._batch, len(self._items)))]
            self._busy, self._in_hand = True, len(batch)
            return batch

    def _bring(self, batch: list[Any]) -> None:
        pause = _PAUSE
        while True:
            self.begun = time.monotonic()
            outcome = self._send(batch)
            self.begun = None
            with self._changed:
                if outcome.why is None:
                    self.sent += len(batch)
                    if self.error is not None or self.well_since is None:
                        self.well_since = time.time()
                    self.error = self.error_at = None
                    return
                self.failures += 1
                if self.error is None:
                    self.error_at = time.time()
                self.error, self.well_since = outcome.why, None
                if outcome.final or self._flushing:
                    self.dropped += len(batch)
                    return
                self._pausing = True
                wait = max(pause, min(outcome.retry_after, _ASKED_MAX))
                self._changed.wait_for(lambda: self._flushing or self._stale, wait)
                self._pausing = False
                if self._stale:
                    self._stale = False
                    return
            pause = min(2 * pause, _PAUSE_MAX)
