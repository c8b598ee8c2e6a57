"""The workload: the image's own program, run as a job, started again by policy, asked how it is.

It is the job `workload`, so `attach` shows it and `ps` lists it; the run before is kept as `workload-N`. There is one
at a time: nobody else can start a job of that id, and one that lives already, left by a guestd before this one, is
taken over. What it prints goes to guestd's own stdout and stderr too, whose reader never holds it up.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from guestd import observe
from guestd.errors import GuestdError
from guestd.lifecycle.copying import copy_output
from guestd.lifecycle.health import BUSY, UNKNOWN, Health, ask
from guestd.lifecycle.idle import WorkloadFacts
from guestd.lifecycle.own import own_request
from guestd.wire.result import FAILED_STATUS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guestd.config import Settings
    from guestd.lifecycle.events import Events
    from guestd.session.command import CommandRequest
    from guestd.session.job import Job
    from guestd.session.jobs import Jobs
    from guestd.wire.result import Result

_log = logging.getLogger("guestd.workload")
ID = "workload"
#: One that ran so long was a good start: after it, waiting begins anew.
_LASTED = 10.0
_LAST_OUTPUT = 1.0


class Workload:
    """See the module. `ended`: it has ended for good, with the status to end the session with."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        events: Events,
        clock: Callable[[], tuple[float, float]],
        ended: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._events = events
        self._clock = clock
        self._ended = ended
        self._stopping = self._over = False
        self._waiting = trio.CancelScope()
        self.id = ID
        self.job: Job | None = None
        self.starts = 0
        self.health = Health(UNKNOWN)
        self.health_since = clock()[0]
        self._worked: float | None = None
        self._restart_at: float | None = None
        #: Told when it is busy now, or no more.
        self.changed: Callable[[], None] = _nobody
        #: Requests to it that are not answered yet.
        self.invocations = 0
        self._taken_over = False
        #: What it has printed is copied. There is nothing yet.
        self.copied = trio.Event()
        self.copied.set()
        jobs.reserved.add(ID)

    # -------------------------------------------------------------------------------------- telling

    @property
    def facts(self) -> WorkloadFacts:
        return WorkloadFacts(self.health.state, self._worked, self.invocations)

    @property
    def state(self) -> str:
        if self.job is not None:
            return self.job.state
        return "ended" if self._over or self._stopping else "waiting"

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        job = self.job
        return {
            "state": self.state,
            "pid": None if job is None else job.pid,
            "started_at": None if job is None else job.started_at,
            "starts": self.starts,
            "restarts_in": None
            if self._restart_at is None
            else max(0.0, self._restart_at - self._clock()[1]),
            "health": self.health.state,
            "why": self.health.why,
            "since": self.health_since,
            "invocations": self.invocations,
        }

    # -------------------------------------------------------------------------------------- running

    def stop(self) -> None:
        """It is not started again. The job itself is for whoever stops to end."""
        self._stopping = True
        self._waiting.cancel()

    async def run(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Until it has ended for good, or has ended after `stop`. Each start waits for what it needs; one that runs
        already does not.
        """
        self._over = False
        try:
            await self._run(wait)
        finally:
            self._over = True

    async def _run(self, wait: Callable[[], Awaitable[None]]) -> None:
        workload = self._settings.workload
        delay = workload.backoff
        while not self._stopping:
            if self._left_running() is None:
                with trio.CancelScope() as self._waiting:
                    await wait()
                if self._stopping:
                    return
            begun = self._clock()[1]
            job = self._start()
            if job is not None:
                await self._follow(job)
            result = None if job is None else job.result
            if self._clock()[1] - begun >= _LASTED:
                delay = workload.backoff
            again = not self._stopping and self._starts_again(result)
            self._note_end(job, delay if again else None)
            if not again:
                if workload.exit_ends_session and not self._stopping:
                    self._ended(FAILED_STATUS if result is None else result.status)
                return
            self._restart_at = self._clock()[1] + delay
            with trio.CancelScope() as self._waiting:
                await trio.sleep(delay)
            self._restart_at = None
            delay = min(delay * 2, workload.backoff_max)

    def _starts_again(self, result: Result | None) -> bool:
        restart = self._settings.workload.restart
        return restart == "always" or (restart == "on-failure" and (result is None or result.status != 0))

    def _left_running(self) -> Job | None:
        """The one that a guestd before this one has left."""
        job = self._jobs.get(ID) if self._jobs.knows(ID) else None
        return None if job is None or job.result is not None else job

    def _start(self) -> Job | None:
        jobs = self._jobs
        job = self._left_running()
        taken_over = job is not None
        try:
            if job is None:
                if jobs.knows(ID):
                    jobs.rename_ended(ID, f"{ID}-{self.starts or 'before'}")
                job = jobs.start_own(ID, self._request())
        except GuestdError as error:
            _log.warning("the workload could not be started: %s", error.message)
            observe.ended("workload_start", self, starts=self.starts, why=error.message)
            self._events.say("workload_exited", status=FAILED_STATUS, why=error.message)
            return None
        self.starts += 1
        self.job = job
        self._taken_over = taken_over
        self._set_health(Health(UNKNOWN))
        observe.began(
            "workload_start", self, job=job.id, job_of=job, starts=self.starts, taken_over=taken_over
        )
        job.start_settled.then(
            lambda: observe.ended(
                "workload_start", self, pid=job.pid, why=None if job.result is None else job.result.message
            )
        )
        job.start_settled.then(
            lambda: self._events.say(
                "workload_started", pid=job.pid, starts=self.starts, taken_over=taken_over
            )
        )
        _log.info("the workload %s", "goes on" if taken_over else "starts")
        return job

    def _request(self) -> CommandRequest:
        settings, workload = self._settings, self._settings.workload
        return own_request(
            settings,
            workload.command,
            user=workload.user or None,
            cwd=workload.cwd or None,
            env=workload.env,
            grace=settings.stop.grace,
            retain=settings.command.retain,
            tape=settings.command.tape,
        )

    def _note_end(self, job: Job | None, again_in: float | None) -> None:
        self.job = None
        self._set_health(Health(UNKNOWN))
        if job is None or job.result is None:
            return
        result = job.result
        self._events.say(
            "workload_exited", outcome=result.outcome.value, status=result.status, why=result.message,
            again_in=again_in,
        )  # fmt: skip
        _log.info("the workload ended: %s, status %d", result.outcome.value, result.status)

    async def _follow(self, job: Job) -> None:
        """Copy what it prints and ask how it is, until it has ended."""
        self.copied = copied = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy_output, job, not self._taken_over)
                if self._settings.workload.health:
                    nursery.start_soon(self._watch_health)
                await job.ended.wait()
                # What it said last is copied; but nobody waits long for who reads guestd's own output.
                nursery.cancel_scope.deadline = trio.current_time() + _LAST_OUTPUT
        finally:
            copied.set()

    async def _watch_health(self) -> None:
        workload = self._settings.workload
        while self.job is not None and self.job.result is None:
            await trio.sleep(workload.health_interval)
            self._set_health(await ask(workload.health, self._jobs, self._settings))

    def _set_health(self, health: Health) -> None:
        before, self.health = self.health, health
        if before.state == health.state:
            return
        wall, mono = self._clock()
        self.health_since = wall
        if before.state == BUSY:
            self._worked = mono
        self.changed()
        if health.state != UNKNOWN:
            self._events.say("workload_health", health=health.state, why=health.why)


def _nobody() -> None:
    pass
