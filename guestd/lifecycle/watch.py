"""Gathers what idle.py decides from, and acts on the verdict: announces an end, and stops the session.

It looks when a decision can be due, and not before: nothing here runs while a command is run or a key is typed. What
kept the session awake and has ended leaves a moment behind (`touch`).
"""

from __future__ import annotations

import os.path
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from guestd.lifecycle.idle import Facts, Hold, Limits, Moment, ShellFacts, Verdict, decide
from guestd.session.shell import ShellJob
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.lifecycle.events import Events
    from guestd.lifecycle.workload import Workload
    from guestd.session.job import Job
    from guestd.session.jobs import Jobs
    from guestd.session.terminal import Terminal

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

    def hold(self, by: str, seconds: float | None = None) -> int:
        """Keep the session awake for so long, or until `release`."""
        now = self._clock()[1]
        number = self._next_hold
        self._next_hold += 1
        self._holds = {each: hold for each, hold in self._holds.items() if hold.until > now}
        self._holds[number] = Hold(by, inf if seconds is None else now + seconds)
        self.touch("hold", by)
        return number

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
            "holds": [list(hold) for hold in self._holds.values() if hold.until < inf],
        }

    def take_over(self, before: Mapping[str, Any]) -> None:
        """Go on where a process before this one stopped: the monotonic clock is the machine's, and goes on too."""
        self.limits = Limits(*before["limits"])
        self.began = before["began"]
        self._moments = {kind: Moment(*moment) for kind, moment in before["moments"].items()}
        name, at = before["requested"]
        if name:
            self._moments["request"] = Moment(f"request {name}", at)
        for hold in before["holds"]:
            self._holds[self._next_hold] = Hold(*hold)
            self._next_hold += 1
        self.look()

    # ---------------------------------------------------------------------------------------- deciding

    async def run(self, stop: Callable[[str], None]) -> None:
        """Look whenever it can matter. `stop` is told the cause, once."""
        while True:
            self._news = trio.Event()
            verdict = self.verdict(thorough=False)
            if verdict.stops:
                stop(verdict.cause)
                return
            self._announce(verdict)
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
                f"{verdict.cause}_soon", stops_in=verdict.ends_at - verdict.now, last=verdict.last.what
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
