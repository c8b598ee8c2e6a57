"""The life of the session: its parts, and the tasks that look after them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from guestd.lifecycle.clock import TOLERANCE, ClockWatch
from guestd.lifecycle.events import Events
from guestd.lifecycle.generation import watch_generation
from guestd.lifecycle.idle import Limits
from guestd.lifecycle.resume import Resume
from guestd.lifecycle.stop import Stop
from guestd.lifecycle.watch import Watch
from guestd.storage.mounts import Mounts
from guestd.wire.result import FAILED_STATUS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from typing import Protocol

    from guestd.config import Settings
    from guestd.lifecycle.resume import Peer as ResumePeer
    from guestd.lifecycle.resume import Resumable
    from guestd.lifecycle.stop import Peer as StopPeer
    from guestd.lifecycle.timeline import Timeline
    from guestd.lifecycle.workload import Workload
    from guestd.session.jobs import Jobs

    class Peer(StopPeer, ResumePeer, Protocol):
        """A connection."""

    class TheSession(Resumable, Protocol):
        """What is known above this room."""

        settings: Settings
        jobs: Jobs
        clock: Callable[[], tuple[float, float]]
        requested: tuple[str, float]

        @property
        def connections(self) -> Collection[Peer]: ...


_log = logging.getLogger("guestd.life")
#: After a mistake of guestd's own in one of the tasks, before it is begun again.
_BREATHER = 1.0


class Life:
    """See the module."""

    def __init__(self, session: TheSession) -> None:
        settings, jobs, clock = session.settings, session.jobs, session.clock
        self.events = Events(clock)
        limits = Limits(settings.idle.timeout, settings.idle.lifetime, settings.idle.warning)
        self.watch = Watch(limits, jobs, self.events, clock, lambda: session.requested)
        self.stop = Stop(settings, jobs, self.events, clock, session.connections)
        self.resume = Resume(settings, session, jobs, self.events, self.watch)
        self.timeline: Timeline | None = None
        self.workload: Workload | None = None
        if settings.workload.command:
            from guestd.lifecycle.workload import Workload

            self.workload = Workload(settings, jobs, self.events, clock, self._workload_ended)
            self.watch.workload = self.stop.workload = self.workload
            self.workload.changed = self._workload_changed
        self.mounts = Mounts(settings, jobs, self.events, clock, jobs.identity_of)
        self.mounts.failed = self._mount_failed
        self.stop.mounts = self.mounts
        self.resume.menders["mounts"] = self.mounts.mend
        self.events.say("started", session_id=session.session_id, generation=session.generation)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_kept_up, "what is mounted", self.mounts.run)
            nursery.start_soon(_kept_up, "idleness", self._watch)
            if self.workload is not None:
                nursery.start_soon(_kept_up, "the workload", self._run_workload)
            nursery.start_soon(_kept_up, "the clock", self._watch_clock)
            nursery.start_soon(_kept_up, "copies of the machine", self._resume_when_copied)
            await trio.sleep_forever()

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        stop = self.stop
        return {
            "activity": self.watch.describe(),
            "mounts": self.mounts.summary(),
            "workspace": {**self.mounts.workspace(), "there": None},
            "workload": None if self.workload is None else self.workload.describe(),
            "stopping": stop.cause if stop.asked.is_set() else None,
            "timeline": {} if self.timeline is None else self.timeline.describe(),
        }

    def take_over(self, before: Mapping[str, Any]) -> None:
        """Go on where a supervisor before this one stopped. It may have been of another version."""
        try:
            self.watch.take_over(before)
        except (KeyError, TypeError, ValueError) as error:
            _log.warning(
                "idle time and lifetime begin anew: what was known of them is not understood: %r", error
            )

    def change(self, *, idle: float | None, lifetime: float | None) -> None:
        """Other limits, from now on."""
        before = self.watch.limits
        self.watch.limits = Limits(
            before.idle if idle is None else idle,
            before.lifetime if lifetime is None else lifetime,
            before.warning,
        )
        self.watch.look()

    def _workload_changed(self) -> None:
        self.watch.changed()

    async def _run_workload(self) -> None:
        """It is not started without the file systems that it needs, neither at first nor again."""
        assert self.workload is not None
        await self.workload.run(self.mounts.wait_until_open)

    def _mount_failed(self, path: str) -> None:
        if self.mounts.settings.storage.required == "stop" and not self.stop.asked.is_set():
            self.stop.status = FAILED_STATUS
            self.stop.ask("mounts", action="exit", by=path)

    def _workload_ended(self, status: int) -> None:
        if not self.stop.asked.is_set():
            self.stop.status = status
            self.stop.ask("workload", action="exit")

    async def _watch(self) -> None:
        await self.watch.run(lambda cause: None if self.stop.asked.is_set() else self._stop_for(cause))

    def _stop_for(self, cause: str) -> None:
        self.stop.ask(cause)

    async def _watch_clock(self) -> None:
        watch = ClockWatch()
        self.resume.clock_watch = watch
        try:
            while True:
                jump = await watch.jumped()
                self.events.say("clock", set_by=jump.set_by, slept=jump.slept)
                if jump.slept > TOLERANCE:
                    await self.resume.run("suspend")
        finally:
            self.resume.clock_watch = None
            watch.close()

    async def _resume_when_copied(self) -> None:
        """The kernel says that this machine is a copy. Told in bursts, it is mended once more behind each."""
        news = trio.Event()

        def told() -> None:
            news.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_kept_up, "the generation", lambda: watch_generation(told))
            while True:
                await news.wait()
                news = trio.Event()
                await self.resume.run("copy")


async def _kept_up(what: str, run: Callable[[], Awaitable[None]]) -> None:
    """A mistake in one of these tasks ends neither the others nor the session."""
    while True:
        try:
            await run()
            return
        except Exception:  # noqa: BLE001  see above; the log has it
            _log.exception("guestd made a mistake: %s is looked after anew", what)
            await trio.sleep(_BREATHER)
