"""Is the session idle, since when, and when does it end? From facts and a clock that are given. Pure.

Busy is what *goes on* (a command, a program in the foreground of a shell, a workload that says so, a hold), and what
*happened* less than `idle` ago (a request, a key, moved bytes). Somebody who merely looks, or leaves a terminal open,
is neither. Whatever goes on, a session ends after its `lifetime`.

Times are seconds of one monotonic clock, which stands still while the machine does.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

#: With shells that somebody used, what runs in their foreground is looked at so often within the idle time: nobody
#: tells when a program there ends, so a shorter one may be missed, and counts from when it was typed.
LOOKS = 8
#: No timer is set closer than this.
_LEAST_WAIT = 0.01

#: What a workload says of itself while it works.
BUSY = "busy"


class Limits(NamedTuple):
    """In seconds; 0 is never. `warning`: how long before an end it is announced."""

    idle: float = 900.0
    lifetime: float = 28800.0
    warning: float = 60.0


class Moment(NamedTuple):
    """Something that happened."""

    what: str
    at: float


class Hold(NamedTuple):
    """Somebody keeps the session awake: until a time, or until they let go (`inf`)."""

    by: str
    until: float
    #: Of a program of the guest: its user, and what it calls itself.
    uid: int | None = None
    name: str = ""


class ShellFacts(NamedTuple):
    """A shell that lives. `program` is what it runs in the foreground, None at its prompt."""

    id: str
    program: str | None = None
    typed: float | None = None
    #: When a program that was seen in the foreground, and is not there any more, had ended at the latest.
    returned: float | None = None


class WorkloadFacts(NamedTuple):
    """What the workload says of itself. Its own times are not asked for: some refresh them for ever."""

    health: str
    #: When it stopped saying that it is busy, if it ever did.
    worked: float | None = None
    invocations: int = 0


class Facts(NamedTuple):
    """All that is looked at."""

    now: float
    #: When the session began, or was resumed.
    began: float
    #: Requests, ends of commands, moved bytes: the latest of each kind is enough.
    moments: tuple[Moment, ...] = ()
    #: Commands that run and were not started as background.
    commands: tuple[str, ...] = ()
    shells: tuple[ShellFacts, ...] = ()
    workload: WorkloadFacts | None = None
    holds: tuple[Hold, ...] = ()


class Reason(NamedTuple):
    """What keeps the session awake."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


class Verdict(NamedTuple):
    """What follows from the facts."""

    now: float
    #: What goes on. Empty: nothing does.
    busy: tuple[Reason, ...]
    #: The last thing that happened, or `now` while something goes on.
    last: Moment
    #: When it ends for idleness, if nothing more happens; inf while something goes on, or where that is never.
    idle_end: float
    lifetime_end: float
    limits: Limits
    #: Shells have to be looked at meanwhile.
    sampled: bool

    @property
    def ends_at(self) -> float:
        return min(self.idle_end, self.lifetime_end)

    @property
    def cause(self) -> str:
        """Why it would end."""
        return "idle" if self.idle_end <= self.lifetime_end else "lifetime"

    @property
    def warns_at(self) -> float:
        """When its end is announced. A short limit is not announced from its very beginning."""
        limit = self.limits.idle if self.cause == "idle" else self.limits.lifetime
        return self.ends_at - min(self.limits.warning, limit / 2)

    @property
    def stops(self) -> bool:
        return self.now >= self.ends_at

    @property
    def warns(self) -> bool:
        return self.now >= self.warns_at

    @property
    def look_again(self) -> float:
        """When anything about this can be different at the earliest, but for what its doer tells."""
        soonest = self.ends_at if self.warns else self.warns_at
        if self.limits.idle:
            if self.busy:
                # Should it end in this moment, the announcement would be due then.
                soonest = min(
                    soonest, self.now + self.limits.idle - min(self.limits.warning, self.limits.idle / 2)
                )
            if self.sampled:
                soonest = min(soonest, self.now + self.limits.idle / LOOKS)
        return max(soonest, self.now + _LEAST_WAIT)


def decide(facts: Facts, limits: Limits) -> Verdict:
    """The verdict."""
    busy = tuple(_going_on(facts))
    last = Moment(str(busy[0]), facts.now) if busy else max(_happened(facts), key=lambda moment: moment.at)
    idle_end = last.at + limits.idle if limits.idle and not busy else inf
    lifetime_end = facts.began + limits.lifetime if limits.lifetime else inf
    sampled = any(
        shell.program is not None or (shell.typed is not None and shell.typed > facts.now - limits.idle)
        for shell in facts.shells
    )
    return Verdict(facts.now, busy, last, idle_end, lifetime_end, limits, sampled)


def _going_on(facts: Facts) -> list[Reason]:
    found = [Reason("hold", hold.by) for hold in facts.holds if hold.until > facts.now]
    found += [Reason("command", job_id) for job_id in facts.commands]
    found += [
        Reason("shell", f"{shell.id}: {shell.program}") for shell in facts.shells if shell.program is not None
    ]
    workload = facts.workload
    if workload is not None:
        if workload.invocations:
            found.append(Reason("workload", f"{workload.invocations} open invocations"))
        if workload.health == BUSY:
            found.append(Reason("workload", "says that it is busy"))
    return found


def _happened(facts: Facts) -> list[Moment]:
    found = [Moment("the session began", facts.began), *facts.moments]
    # Of holds those that are over; who let go before its time is among the moments.
    found += [Moment(f"hold {hold.by}", hold.until) for hold in facts.holds if hold.until <= facts.now]
    for shell in facts.shells:
        if shell.typed is not None:
            found.append(Moment(f"input of shell {shell.id}", shell.typed))
        if shell.returned is not None:
            found.append(Moment(f"a program in shell {shell.id}", shell.returned))
    if facts.workload is not None and facts.workload.worked is not None:
        found.append(Moment("the workload", facts.workload.worked))
    return found
