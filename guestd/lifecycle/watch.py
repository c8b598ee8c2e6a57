"""Gathers what idle.py decides from, and acts on the verdict: announces an end, and stops the session.

It looks when a decision can be due, and not before: nothing here runs while a command is run or a key is typed. What
kept the session awake and has ended leaves a moment behind (`touch`).
"""

from __future__ import annotations

import os.path
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import LimitReached
from guestd.lifecycle.idle import BUSY, Facts, Hold, Limits, Moment, ShellFacts, Verdict, decide
from guestd.session.shell import ShellJob
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.lifecycle.events import Events
    from guestd.lifecycle.workload import Workload
    from guestd.session.job import Job
    from guestd.session.jobs import Jobs
    from guestd.session.terminal import Terminal

#: Holds, and those of the guest's own programs, which must not take the others' place. Each is written down with every
#: change.
HOLDS_MAX, GUEST_HOLDS_MAX = 512, 256
#: Programs that are at a prompt when nothing else is in their foreground.
_SHELLS = {
    "ash",
    "bash",
    "csh",
    "dash",
    "elvish",
    "fish",
    "ksh",
    "mksh",
    "nu",
    "sh",
    "tcsh",
    "xonsh",
    "yash",
    "zsh",
}


class Watch:
    """See the module. `limits` may be changed at any time, with `look` behind it."""

    def __init__(
        self,
        limits: Limits,
        jobs: Jobs,
        events: Events,
        clock: Callable[[], tuple[float, float]],
        requested: Callable[[], tuple[str, float]],
    ) -> None:
        self.limits = limits
        self.began = clock()[1]
        self.workload: Workload | None = None
        self._jobs = jobs
        self._events = events
        self._clock = clock
        self._requested = requested
        self._holds: dict[int, Hold] = {}
        self._next_hold = 1
        self._moments: dict[str, Moment] = {}
        # Shells that had a program in the foreground when they were looked at last; and when one had left.
        self._in_front: set[str] = set()
        self._returned: dict[str, float] = {}
        self._announced: str | None = None
        self._news = trio.Event()
        #: Told when a successor would have something else to know.
        self.changed: Callable[[], None] = _nobody
        jobs.listeners.append(self._job_ended)

    # ------------------------------------------------------------------------------------- being told

    def touch(self, kind: str, what: str = "") -> None:
        """Something of that kind has happened just now."""
        self._moments[kind] = Moment(f"{kind} {what}".rstrip(), self._clock()[1])
        self.changed()

    def hold(self, hold: Hold, most: int = HOLDS_MAX) -> int:
        """Keep the session awake until then, or until `release`. One with an end goes on with what its holder has
        already, and never shortens it. `most`: how many one user may have.
        """
        self._forget_expired()
        number = None if hold.until == inf else self._known(hold)
        if number is None:
            self._check_room(hold.uid, most)
            number = self._next_hold
            self._next_hold += 1
        else:
            hold = hold._replace(until=max(hold.until, self._holds[number].until))
        self._holds[number] = hold
        self.touch("hold", hold.by)
        return number

    def _check_room(self, uid: int | None, most: int) -> None:
        own = sum(1 for hold in self._holds.values() if hold.uid == uid)
        guests = sum(1 for hold in self._holds.values() if hold.uid is not None)
        again = "let go of some, or ask again under the same name, which goes on with the same lease"
        if uid is None:
            if own >= HOLDS_MAX:
                raise LimitReached(
                    f"{own} leases are taken, and the limit is {HOLDS_MAX}; {again}", limit=HOLDS_MAX
                )
        elif own >= most:
            raise LimitReached(
                f"user {uid} has {own} leases, and the limit is {most}; {again}, or have agent.leases raised",
                limit=most, setting="agent.leases",
            )  # fmt: skip
        elif guests >= GUEST_HOLDS_MAX:
            raise LimitReached(
                f"the users of this machine have {guests} leases, and the limit is {GUEST_HOLDS_MAX}; {again}",
                limit=GUEST_HOLDS_MAX,
            )

    def holds_of(self, uid: int) -> list[Hold]:
        """Those in force."""
        now = self._clock()[1]
        return [hold for hold in self._holds.values() if hold.uid == uid and hold.until > now]

    def _known(self, hold: Hold) -> int | None:
        for number, each in self._holds.items():
            same = (each.uid, each.name) == (hold.uid, hold.name) and (
                hold.uid is not None or each.by == hold.by
            )
            if same and each.until < inf:
                return number
        return None

    def _forget_expired(self) -> None:
        """That they were there counts on, from when each was over."""
        now = self._clock()[1]
        for number, hold in list(self._holds.items()):
            if hold.until <= now:
                del self._holds[number]
                before = self._moments.get("hold")
                if before is None or before.at < hold.until:
                    self._moments["hold"] = Moment(f"hold {hold.by}", hold.until)

    def release(self, number: int) -> None:
        """Let go."""
        hold = self._holds.pop(number, None)
        if hold is not None:
            self.touch("hold", hold.by)

    def begin_anew(self) -> None:
        """The session was resumed: its time begins now."""
        self.began = self._clock()[1]
        self.look()

    def look(self) -> None:
        """Something may be different: decide again."""
        self._news.set()
        self.changed()

    def _job_ended(self, job: Job) -> None:
        if job.terms.background or job.result is None:
            return
        # A shell that was ended because nobody used it was not used by that.
        if job.result.ended_by not in {EndedBy.IDLE, EndedBy.LIFETIME}:
            self.touch(job.kind, job.id)

    # ---------------------------------------------------------------------------------------- handing on

    def to_map(self) -> dict[str, Any]:
        """What a successor of this process has to know. Holds of connections end with them."""
        return {
            "limits": list(self.limits),
            "began": self.began,
            "moments": {kind: list(moment) for kind, moment in self._moments.items()},
            "requested": list(self._requested()),
            "holds": [list(hold[:2]) for hold in self._holds.values() if hold.until < inf],
            "owners": [[hold.uid, hold.name] for hold in self._holds.values() if hold.until < inf],
            "until_now": self._until_now(),
        }

    def _until_now(self) -> str | None:
        """What goes on that ends, or seems to, with this process: counted up to then."""
        for hold in self._holds.values():
            if hold.until == inf:
                return f"hold {hold.by}"
        workload = None if self.workload is None else self.workload.facts
        return "the workload" if workload and (workload.health == BUSY or workload.invocations) else None

    def take_over(self, before: Mapping[str, Any]) -> None:
        """Go on where a process before this one stopped: the monotonic clock is the machine's, and goes on too."""
        self.limits = Limits(*before["limits"])
        self.began = before["began"]
        self._moments = {kind: Moment(*moment) for kind, moment in before["moments"].items()}
        name, at = before["requested"]
        if name:
            self._moments["request"] = Moment(f"request {name}", at)
        nobody: list[list[Any]] = [[None, ""]] * len(before["holds"])
        for (by, until), (uid, name) in zip(before["holds"], before.get("owners") or nobody, strict=True):
            self._holds[self._next_hold] = Hold(by, until, uid, name)
            self._next_hold += 1
        if before.get("until_now"):
            # Who held by a connection is on the way back, and has held until this moment.
            self._moments["replaced"] = Moment(before["until_now"], self._clock()[1])
        self.look()

    # ---------------------------------------------------------------------------------------- deciding

    async def run(self, stop: Callable[[str], None]) -> None:
        """Look whenever it can matter. `stop` is told the cause, once."""
        while True:
            self._news = trio.Event()
            verdict = self.verdict(thorough=False)
            # Also where it comes late, because the machine stood still meanwhile: no end is without its announcement.
            self._announce(verdict)
            if verdict.stops:
                stop(verdict.cause)
                return
            with trio.move_on_after(verdict.look_again - verdict.now):
                await self._news.wait()

    def verdict(self, *, thorough: bool) -> Verdict:
        """As things are now. Unless `thorough`, shells are looked at only where nothing else is found to go on."""
        facts = self._facts(())
        verdict = decide(facts, self.limits)
        if verdict.busy and not thorough:
            return decide(self._facts(self._shells(look=False)), self.limits)
        return decide(self._facts(self._shells(look=True)), self.limits)

    def describe(self) -> dict[str, Any]:
        """For `status`. Seconds are counted from now."""
        verdict = self.verdict(thorough=True)

        def left(at: float) -> float | None:
            return None if at == inf else max(0.0, at - verdict.now)

        return {
            "busy": [str(reason) for reason in verdict.busy],
            "idle_for": 0.0 if verdict.busy else verdict.now - verdict.last.at,
            "last": None if verdict.busy else verdict.last.what,
            "idle_timeout": self.limits.idle or None,
            "lifetime": self.limits.lifetime or None,
            "lifetime_left": left(verdict.lifetime_end),
            "stops_in": left(verdict.ends_at),
            "stops_for": None if verdict.ends_at == inf else verdict.cause,
        }

    def _announce(self, verdict: Verdict) -> None:
        if verdict.warns and self._announced != verdict.cause:
            self._announced = verdict.cause
            self._events.say(
                f"{verdict.cause}_soon",
                stops_in=max(0.0, verdict.ends_at - verdict.now),
                last=verdict.last.what,
            )
        elif not verdict.warns and self._announced is not None:
            self._announced = None
            self._events.say("active", why=verdict.last.what)

    def _facts(self, shells: tuple[ShellFacts, ...]) -> Facts:
        name, at = self._requested()
        moments = (*self._moments.values(), *((Moment(f"request {name}", at),) if name else ()))
        commands = tuple(
            job.id
            for job in self._jobs
            if job.kind == "command" and job.result is None and not job.terms.background
        )
        return Facts(
            now=self._clock()[1],
            began=self.began,
            moments=moments,
            commands=commands,
            shells=shells,
            workload=None if self.workload is None else self.workload.facts,
            holds=tuple(self._holds.values()),
        )

    def _shells(self, *, look: bool) -> tuple[ShellFacts, ...]:
        found: list[ShellFacts] = []
        for job in self._jobs:
            if isinstance(job, ShellJob) and job.result is None and job.terminal is not None:
                program = self._look_at(job, job.terminal) if look else None
                found.append(ShellFacts(job.id, program, job.terminal.last_typed, self._returned.get(job.id)))
        if look:
            living = {shell.id for shell in found}
            self._in_front &= living
            self._returned = {each: at for each, at in self._returned.items() if each in living}
        return tuple(found)

    def _look_at(self, job: ShellJob, terminal: Terminal) -> str | None:
        """What runs in its foreground, if it is not the shell itself."""
        group = terminal.foreground_group
        if group is None or (group == job.pid and _is_at_prompt(job)):
            if job.id in self._in_front:
                # The shell has shown its prompt since: it ended before that.
                self._in_front.discard(job.id)
                self._returned[job.id] = terminal.last_activity
            last = terminal.marks.commands[-1:]
            if last and last[0].ended_monotonic is not None:
                self._returned[job.id] = max(self._returned.get(job.id, -inf), last[0].ended_monotonic)
            return None
        self._in_front.add(job.id)
        return _name_of(group)


def _is_at_prompt(job: ShellJob) -> bool:
    """Is its first program a shell, which waits for a line when nothing else is in front of it?"""
    request = job.request
    if request.shell is not None:
        return False
    if request.argv is None:
        return True
    return os.path.basename(request.argv[0]).lstrip("-") in _SHELLS and "-c" not in request.argv


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return f"process group {pid}"


def _nobody() -> None:
    pass
