"""What is due in the life of a `serve`: when it must be ready, when it must beat, how long the next one waits.

Decisions alone, from a clock that is given.
"""

from __future__ import annotations

NEVER = float("inf")
#: For the last words of a serve that was aborted: its stacks, a core file.
ABORT_SECONDS = 5.0
#: A timer that comes this much too late: not this process but the whole machine stood still (paused, resumed from a
#: snapshot), and what serve should have said in that time it could not.
STANDSTILL_SECONDS = 1.0

KILL, ABORT = "kill", "abort"


class Watch:
    """One incarnation."""

    def __init__(self, *, ready_timeout: float, watchdog: float, now: float) -> None:
        self._watchdog = watchdog or NEVER
        self._aborted = False
        self.ready_at: float | None = None
        self.due = now + (ready_timeout or NEVER)

    def ready(self, now: float) -> bool:
        """True the first time."""
        if self.ready_at is not None:
            return False
        self.ready_at = now
        self.due = now + self._watchdog
        return True

    def beat(self, now: float) -> None:
        if self.ready_at is not None and not self._aborted:
            self.due = now + self._watchdog

    def trigger(self, now: float) -> None:
        """It says itself that it is beyond help."""
        if self.ready_at is not None and not self._aborted:
            self.due = now

    def extend(self, now: float, seconds: float) -> None:
        if not self._aborted:
            self.due = max(self.due, now + seconds)

    def stood_still(self, seconds: float) -> None:
        self.due += seconds

    def rest(self) -> None:
        """It is on its way out, and something else bounds that."""
        self.due = NEVER

    def act(self, now: float) -> str | None:
        """What to do to it now: KILL, ABORT or nothing."""
        if now < self.due:
            return None
        if self.ready_at is None or self._aborted:
            self.due = NEVER
            return KILL
        self._aborted = True
        self.due = now + ABORT_SECONDS
        return ABORT

    def ready_for(self, now: float) -> float | None:
        return None if self.ready_at is None else now - self.ready_at


class Backoff:
    """How long to wait before the next start: not at all the first time, then ever longer."""

    def __init__(self) -> None:
        self.failures = 0

    def after(self, ready_for: float | None, *, least: float, most: float, reset: float) -> float:
        """One has died that had been ready for so long (None: never)."""
        if ready_for is not None and ready_for >= reset:
            self.failures = 0
        self.failures += 1
        return 0.0 if self.failures == 1 else min(most, least * 2.0 ** min(self.failures - 2, 60))


def poll_milliseconds(now: float, due: float) -> int | None:
    """For poll(2): not a moment before it is due, and never longer than it can count."""
    return None if due == NEVER else min(max(0, int((due - now) * 1000) + 1), 2**31 - 1)
