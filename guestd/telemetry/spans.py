"""Spans: what lasts, from its beginning to its end, as the exporter is told of it.

A job's span has the job's mark for its id and keeps its trace on the job's page, so it is the same under whichever
supervisor it ends; whether it was told is noted there as well. All else begins and ends with this process; what is open
is announced to the exporter, which ends it should this process be gone.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from guestd.session.chronicle import EXPORTED
from guestd.session.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from guestd.session.trace import Trace, Tracer
    from guestd.telemetry.outflow import Message, Outflow

_NANO = 1_000_000_000
#: Spans that are open at once, and known as such. More cannot be announced, only ended.
_OPEN_MAX = 200_000


class _Open:
    __slots__ = ("announced", "at", "facts", "kind", "span_id", "trace")

    def __init__(self, kind: str, span_id: str, trace: Trace, at: float, facts: Mapping[str, object]) -> None:
        self.kind = kind
        self.span_id = span_id
        self.trace = trace
        self.at = at
        self.facts = facts
        self.announced = False


class Spans:
    """See the module. An observer."""

    def __init__(self, outflow: Outflow, tracer: Tracer, clock: Callable[[], tuple[float, float]]) -> None:
        self._outflow = outflow
        self._tracer = tracer
        self._clock = clock
        self._open: dict[Hashable, _Open] = {}
        self._fresh: list[Hashable] = []
        #: Called when anything but a connection begins.
        self.stirred: Callable[[], None] = _nothing
        outflow.begun = self._announce_all
        outflow.gather = self._announce_fresh

    @property
    def busy(self) -> bool:
        """Does anything but connections go on?"""
        return any(each.kind != "connection" for each in self._open.values())

    def count(self, kind: str) -> int:
        return sum(1 for each in self._open.values() if each.kind == kind)

    # ------------------------------------------------------------------------------------ hearing

    def began(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None:
        if len(self._open) >= _OPEN_MAX or thing in self._open:
            return
        self._open[thing] = self._opened(kind, thing, facts)
        self._fresh.append(thing)
        if kind != "connection":
            self.stirred()
        self._outflow.wake()

    def ended(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None:
        opened = self._open.pop(thing, None) or self._opened(kind, thing, facts)
        end = self._clock()[0]
        then = None
        if isinstance(thing, Job) and thing.page is not None:
            then = partial(thing.page.tell, EXPORTED)
        self._outflow.put(lambda: self._told(opened, thing, facts, end), then)

    def ended_before(self, job: Job) -> None:
        """It ended under the supervisor before this one, which has not told."""
        self.ended("job", job, {})

    def end_all(self, why: str) -> None:
        """Whatever is still open ends here: nobody will be there to tell of its end."""
        for thing, opened in list(self._open.items()):
            self.ended(opened.kind, thing, {"why": why})

    def did(self, deed: str, who: str, facts: Mapping[str, object]) -> None:
        """What was done in a moment is for the audit log."""

    def _opened(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> _Open:
        now = self._clock()[0]
        if isinstance(thing, Job):
            thing.trace = thing.trace or self._tracer.trace()
            return _Open(kind, thing.mark, thing.trace, thing.started_at or now, facts)
        context, job = facts.get("trace"), facts.get("job_of")
        if isinstance(context, dict):
            trace = self._tracer.trace(cast("dict[str, str]", context))
        elif isinstance(job, Job) and job.trace is not None:
            trace = job.trace.below(job.mark)
        else:
            trace = self._tracer.trace()
        return _Open(kind, os.urandom(8).hex(), trace, now, facts)

    # ------------------------------------------------------------------------------------ telling

    def _announce_all(self) -> None:
        self._fresh = list(self._open)
        self._outflow.wake()

    def _announce_fresh(self) -> None:
        """Most of what began a moment ago has ended by now; the rest is told."""
        fresh, self._fresh = self._fresh, []
        for thing in fresh:
            opened = self._open.get(thing)
            if opened is not None:
                self._outflow.put(("open", self._describe(opened, thing, opened.facts)))

    def _told(self, opened: _Open, thing: Hashable, facts: Mapping[str, object], end: float) -> Message:
        found = self._describe(opened, thing, {**opened.facts, **facts})
        if isinstance(thing, Job) and thing.result is not None:
            end = thing.result.ended_at or end
        found["end"] = int(max(end, opened.at) * _NANO)
        return ("span", found)

    def _describe(self, opened: _Open, thing: Hashable, facts: Mapping[str, object]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kind": opened.kind,
            "id": opened.span_id,
            "trace": tuple(opened.trace),
            "start": int(opened.at * _NANO),
            "facts": {
                name: value
                for name, value in facts.items()
                if value is not None and name not in {"trace", "job_of"}
            },
        }
        if isinstance(thing, Job):
            found["job"] = _of_job(thing)
        return found


def _nothing() -> None:
    pass


def _of_job(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": job.id,
        "kind": job.kind,
        "command": job.about.get("command"),
        "user": job.about.get("user"),
        "cwd": job.about.get("cwd"),
        "env": job.shown_env,
        "pid": job.pid,
        "cgroup": job.cgroup_path,
        # Its end is told by the next supervisor, should this one not live to see it.
        "survives": job.survives,
    }
    result = job.result
    if result is not None:
        found["result"] = {
            "outcome": result.outcome.value,
            "status": result.status,
            "code": result.code,
            "signal": result.signal,
            "ended_by": None if result.ended_by is None else result.ended_by.value,
            "stage": result.stage,
            "message": result.message,
            "duration": result.duration,
            "cpu_user": result.cpu_user,
            "cpu_system": result.cpu_system,
            "peak_memory": result.peak_memory,
            "streams": result.streams,
            "input": result.input.get("bytes"),
            "killed": result.killed["count"],
            "left": result.left["count"],
        }
    return found
