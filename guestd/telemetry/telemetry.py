"""Telemetry of a session: the audit log, and where there is a collector, traces, metrics and logs for it.

Made right after READY, so that the first request is seen; what it imports then is small. The exporter is another
process.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
from typing import TYPE_CHECKING, Any, Protocol

import trio

from guestd import __version__, observe
from guestd.session.chronicle import AUDITED, EXPORTED
from guestd.telemetry.audit import Audit
from guestd.telemetry.switch import is_on

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from guestd.config import Settings
    from guestd.lifecycle.life import Life
    from guestd.process.identity import Identity
    from guestd.process.spawn import Spawner
    from guestd.session.jobs import Jobs
    from guestd.session.program import Programs
    from guestd.telemetry.outflow import Message, Outflow
    from guestd.telemetry.spans import Spans

    class TheSession(Protocol):
        """What is known above this room."""

        settings: Settings
        jobs: Jobs
        spawner: Spawner
        clock: Callable[[], tuple[float, float]]
        life: Life
        boot_id: str
        session_id: str
        generation: int
        previous: list[str]
        restarts: int

        @property
        def connections(self) -> Collection[object]: ...


_log = logging.getLogger("guestd.telemetry")
_OTHERS = 0o077
#: How often it is looked how late the loop is, while anything goes on.
_LAG_EVERY = 1.0
#: What a session that makes room for another version gives its last records.
_HURRIED = 1.0
#: For the last records, of a disk that may not answer.
_LAST_RECORDS = 1.0


class Telemetry:
    """See the module."""

    def __init__(
        self, session: TheSession, programs: Programs, own: Identity, environ: Mapping[str, str]
    ) -> None:
        self._session = session
        settings = session.settings
        self.audit: Audit | None = None
        self._outflow: Outflow | None = None
        self._spans: Spans | None = None
        #: What is wrong with how it was set up; the session goes on without it.
        self._failure: str | None = None
        self._lags: list[float] = []
        #: What is left of the time for the collector at the end, of one that has taken everything so far.
        self._spare = 0.0
        if settings.audit.enabled:
            self.audit = Audit(settings, session.clock, self._identity)
            observe.observers.append(self.audit)
            self._tell_kept(AUDITED, self.audit)
        if is_on(settings, environ):
            try:
                self._switch_on(programs, own, environ)
            except (OSError, ValueError) as error:
                self._failure = f"telemetry.headers_file: {error}"
                _log.error("no telemetry is sent: %s", self._failure)

    def _switch_on(self, programs: Programs, own: Identity, environ: Mapping[str, str]) -> None:
        from guestd.session.trace import Tracer
        from guestd.telemetry.outflow import Outflow
        from guestd.telemetry.spans import Spans
        from guestd.telemetry.switch import outlet_environment

        session, settings = self._session, self._session.settings
        tracer = Tracer(environ)
        environment = outlet_environment(settings, environ, _headers(settings.telemetry.headers_file))
        outflow = Outflow(session.spawner, own, environment, settings.telemetry.queue, self._hello)
        self._outflow, self._spans = outflow, Spans(outflow, tracer, session.clock)
        programs.tracer = tracer
        observe.observers.append(self._spans)
        if self.audit is not None:
            self.audit.listeners.append(self._pass_on)
        session.life.stop.flushes.append(self._flush)
        for job in session.jobs:
            if job.result is None:
                self._spans.began("job", job, {})
        self._tell_kept(EXPORTED, self._spans)

    def _tell_kept(self, what: int, observer: Audit | Spans) -> None:
        """Jobs that ended under another supervisor, which did not live to tell."""
        for job in self._session.jobs:
            if job.result is not None and job.page is not None and not job.page.is_told(what):
                observer.ended_before(job)

    # ------------------------------------------------------------------------------------ running

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.audit is not None:
                nursery.start_soon(self.audit.run)
            if self._outflow is not None:
                nursery.start_soon(self._outflow.run)
                nursery.start_soon(self._tell_states)
                nursery.start_soon(self._measure_lag)
            await trio.sleep_forever()

    async def finish(self, why: str) -> None:
        """The last records, and no exporter any more. Bounded by itself."""
        try:
            if self.audit is not None:
                with trio.move_on_after(_LAST_RECORDS):
                    await self.audit.close(why)
            # They say how the stop went, and hold the head of the whole log, which nobody can rewrite out there.
            spare = min(self._spare, self._session.life.stop.left)
            if self._outflow is not None and spare > 0.0:
                await self._outflow.flush(spare)
        finally:
            if self._outflow is not None:
                with trio.CancelScope(shield=True):  # bounded by itself
                    await self._outflow.leave()
            for each in (self.audit, self._spans):
                if each in observe.observers:
                    observe.observers.remove(each)

    async def hand_over(self) -> None:
        """Another version takes this one's place: what is known leaves, quickly."""
        with trio.move_on_after(_HURRIED):
            if self.audit is not None:
                await self.audit.close("handed over")
            if self._outflow is not None:
                await self._outflow.flush(_HURRIED)

    async def _flush(self) -> None:
        """At the end of the session, when all programs have ended."""
        assert self._outflow is not None
        assert self._spans is not None
        limit = self._session.settings.telemetry.flush
        if not limit:
            return
        # The stop goes on behind this, and connections hear of it; their spans end where the telemetry leaves.
        self._spans.ended("stop", self._session.life.stop, {})
        self._spans.end_all("the session stopped")
        observe.observers.remove(self._spans)
        self._outflow.put(self._state)
        begun = trio.current_time()
        with trio.move_on_after(limit):
            if self.audit is not None:
                await self.audit.settle()
            if await self._outflow.flush(limit):
                self._spare = begun + limit - trio.current_time()

    # ------------------------------------------------------------------------------------ telling

    def _pass_on(self, lines: list[bytes]) -> None:
        """Records that were written: one message each, since that is what the queue counts."""
        assert self._outflow is not None
        for line in lines:
            self._outflow.put(("log", line))

    def _identity(self) -> dict[str, object]:
        session = self._session
        return {
            "session": session.session_id, "generation": session.generation, "boot": session.boot_id,
            "version": __version__,
        }  # fmt: skip

    def _hello(self) -> Message:
        telemetry = self._session.settings.telemetry
        return ("hello", {
            **self._identity(), "host": socket.gethostname(), "arguments": telemetry.arguments,
            "delay": telemetry.delay, "interval": telemetry.interval, "sampling": telemetry.sampling,
            "timeout": telemetry.timeout, "queue": telemetry.queue, "job_metrics": telemetry.job_metrics,
            "started": int(self._session.clock()[0] * 1e9),
        })  # fmt: skip

    async def _tell_states(self) -> None:
        assert self._outflow is not None
        assert self._spans is not None
        telemetry = self._session.settings.telemetry
        while True:
            self._outflow.put(self._state)
            if self._spans.busy:
                await trio.sleep(min(telemetry.sampling, telemetry.interval))
                continue
            # A machine on which nothing goes on is not woken more often than its metrics are sent.
            stirred = trio.Event()
            self._spans.stirred = stirred.set
            with trio.move_on_after(telemetry.interval):
                await stirred.wait()

    async def _measure_lag(self) -> None:
        assert self._spans is not None
        while True:
            every = _LAG_EVERY if self._spans.busy else self._session.settings.telemetry.interval
            due = trio.current_time() + every
            await trio.sleep_until(due)
            self._lags.append(max(0.0, trio.current_time() - due))
            del self._lags[:-1000]

    def _state(self) -> Message:
        """Everything that only this process knows, as it is now."""
        session, spans, outflow = self._session, self._spans, self._outflow
        assert spans is not None
        assert outflow is not None
        lags, self._lags = self._lags, []
        jobs = list(session.jobs)
        running = {"command": 0, "shell": 0}
        for job in jobs:
            if job.result is None:
                running[job.kind] = running.get(job.kind, 0) + 1
        life, usage = session.life, resource.getrusage(resource.RUSAGE_SELF)
        return ("state", {
            **self._identity(),
            "previous": list(session.previous),
            "running": running,
            "kept": len(jobs) - sum(running.values()),
            "started": session.jobs.started,
            "connections": len(session.connections),
            "attachments": spans.count("attachment"),
            "tapes": sum(job.held_bytes for job in jobs),
            "restarts": session.restarts,
            "untold": outflow.dropped + outflow.lost,
            "workload_starts": 0 if life.workload is None else life.workload.starts,
            "mounts": {
                mount.path: mount.is_there and not mount.troubles for mount in life.mounts.entries.values()
            },
            "activity": life.watch.describe(),
            "lags": lags,
            "cpu": usage.ru_utime + usage.ru_stime,
            "serve": os.getpid(),
            "groups": {job.mark: job.cgroup_path for job in jobs if job.result is None},
            "pids": {job.mark: job.pid for job in jobs if job.result is None},
        })  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        found: dict[str, Any] = {"on": self._outflow is not None, "failure": self._failure}
        if self._outflow is not None:
            found.update(self._outflow.describe())
        return {"telemetry": found, "audit": None if self.audit is None else self.audit.describe()}


def _headers(path: str) -> dict[str, str]:
    if not path:
        return {}
    from guestd.telemetry.switch import read_headers

    with open(path, encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_mode & _OTHERS:
            raise ValueError(f"{path}: others than its owner can access it; chmod 600 it")
        return read_headers(file.read())
