"""The supervisor: the tree of nurseries, when it is ready, and the order of its end.

    reaper            until the very last process
      jobs            outlive every connection
        connections   outlive their listeners
          listeners

The end goes from the bottom up: nothing new is started and what runs is ended (lifecycle/stop.py); the connections hear
the results and are told goodbye; then the rest. All of it is bounded by `stop.grace`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import trio

import guestd
from guestd.errors import ConfigError, GuestdError, ShuttingDown
from guestd.lifecycle.upgrade import HAND_OVER, Upgrade
from guestd.process import cgroup
from guestd.process.handed import AGENT, INIT, RELAY, take_handed
from guestd.process.identity import Users
from guestd.process.itself import notify, own_descriptors, protect, raise_fd_limit
from guestd.process.reaper import Reaper
from guestd.process.spawn import Spawner
from guestd.process.statuses import Statuses
from guestd.process.store import FdStore
from guestd.process.watchdog import Watchdog
from guestd.service.session import Session, read_boot_id
from guestd.service.upgrade import hindrance
from guestd.session.adoption import is_kept, sort
from guestd.session.chronicle import Chronicle
from guestd.session.command import Command
from guestd.session.jobs import FDS_IN_RESERVE, FDS_OF_A_JOB, Jobs
from guestd.session.program import Programs
from guestd.session.sessionpage import SessionPage
from guestd.session.shell import Shell
from guestd.transport.access import Access
from guestd.transport.doors import Doors
from guestd.transport.listeners import open_agent_listener, open_listeners, passed_listeners

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from guestd.config import Settings
    from guestd.relay.listening import Listening
    from guestd.transport.listeners import Listener

_log = logging.getLogger("guestd")
#: For the last words to all who are connected.
_FAREWELL = 2.0
#: After READY, before anything is done that is for later.
_SETTLED = 1.0
#: Settings that cannot be used, as service managers know it: starting again does not help.
EX_CONFIG = 78


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    own_descriptors()
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log.level.upper(),
        format="guestd: %(levelname)s: %(name)s: %(message)s",
    )
    raise_fd_limit(_wanted_fds(settings))
    environ = dict(os.environ)
    # What counts until trio listens, and again in the last moments, when nobody does: Python's own handlers would end
    # this process in the middle of its end.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: early.append(number))
    try:
        access = Access(settings)
    except ConfigError as error:
        sys.stderr.write(f"guestd: {error.message}\n")
        return EX_CONFIG
    try:
        has_token = access.has_token
        handed = take_handed(environ)
        passed = [fd for name, fds in handed.items() if not _is_our_own(name) for fd in fds]
        listeners = passed_listeners(passed, has_token=has_token)
        listening = None
        if not listeners:
            listeners = open_listeners(settings, has_token=has_token)
            listening = time.monotonic()
    except GuestdError as error:
        sys.stderr.write(f"guestd: {error.message}\n")
        return error.exit_status
    agents = passed_listeners(handed.get(AGENT, ()), has_token=has_token)
    if settings.agent.socket and not agents and (agent := open_agent_listener(settings)) is not None:
        agents.append(agent)
    supervisor = _Supervisor(settings, access, listeners, agents, environ, early, handed, listening)
    try:
        try:
            trio.run(supervisor.run, strict_exception_groups=True)
        except BaseExceptionGroup as group:
            if group.split(_MakeRoom)[1] is not None:
                raise
            return HAND_OVER
    finally:
        for listener in (*listeners, *agents):
            listener.close()
        # A signal that comes now has its wish already; an interpreter that takes itself apart would die of it.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    return supervisor.status


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        access: Access,
        listeners: list[Listener],
        agents: list[Listener],
        environ: Mapping[str, str],
        early: list[int],
        handed: Mapping[str, list[int]],
        listening: float | None,
    ) -> None:
        self._listening = listening
        self._early = early
        self._handed = handed
        self._settings = settings
        self._access = access
        self._listeners = listeners
        self._agents = agents
        self._environ = environ
        #: What this process ends with.
        self.status = 0

    async def run(self) -> None:
        settings = self._settings
        reaper = Reaper(_clock)
        cgroups = _find_cgroups() if settings.command.cgroup == "auto" else None
        users = Users()
        self._own = own = users.own_identity()
        spawner = Spawner(own, reaper)
        protect(settings.supervisor.oom_score_adj)
        spawner.refresh()
        store = FdStore(
            self._environ,
            {name: len(fds) for name, fds in self._handed.items() if is_kept(name) or name.startswith(RELAY)},
        )
        identity = SessionPage.find(self._handed, store)
        statuses = Statuses(next(iter(self._handed.get(INIT, ())), None), _clock)
        self._programs = programs = Programs(settings, users, own, os.environb)
        jobs = Jobs(
            settings,
            Command(programs),
            Shell(programs),
            spawner=spawner,
            reaper=reaper,
            cgroups=cgroups,
            clock=_clock,
            chronicle=Chronicle(store, reaper),
            statuses=statuses,
            kept=sort(self._handed),
        )
        leaving = trio.Event()
        session = Session(
            upgrade=Upgrade(store, statuses, spawner, own, leaving.set),
            settings=settings, jobs=jobs, reaper=reaper, spawner=spawner, clock=_clock, has_cgroups=cgroups is not None,
            boot_id=read_boot_id(), session_id=identity.session_id, generation=identity.generation,
            previous=identity.previous, restarts=identity.restarts, identity_changed=identity.write,
            uploads_changed=identity.note_uploads,
            listening=[listener.name for listener in self._listeners], started=_clock(),
        )  # fmt: skip
        try:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as base:
                    base.start_soon(reaper.run)
                    base.start_soon(Watchdog(self._environ, self._beat).run)
                    async with trio.open_nursery() as outer:
                        await outer.start(jobs.run)
                        await self._serve(session, identity, store, signals, leaving)
                        outer.cancel_scope.cancel()
                    await spawner.leave()
                    base.cancel_scope.cancel()
        except BaseException:
            # Not in order, or to make room for another: what is kept stays kept, for the supervisor after this one.
            await store.flush()
            store.close()
            raise
        finally:
            jobs.close()
            identity.close()
            statuses.close()
            await store.flush()
            store.close()
            spawner.close()
            if cgroups is not None:
                cgroups.close()
            reaper.close()

    async def _serve(
        self,
        session: Session,
        identity: SessionPage,
        store: FdStore,
        signals: AsyncIterator[int],
        leaving: trio.Event,
    ) -> None:
        doors = Doors(session, self._access)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in self._listeners:
                    accepting.start_soon(doors.accept, listener, connections)
                self._ready(session, identity, store)
                from guestd.lifecycle.orders import Orders

                if self._agents:
                    accepting.start_soon(self._let_guests_in, session, connections)
                async with trio.open_nursery() as living:
                    session.nursery = living
                    living.start_soon(session.life.run)
                    living.start_soon(session.telemetry.run)
                    living.start_soon(session.relays.run)
                    living.start_soon(_prepare)
                    if identity.uploads:
                        from guestd.service.files import files_of

                        files_of(session).parts.take_over(identity.uploads)
                    # Imported with the rest behind READY; what comes until then is in `early`.
                    orders = Orders(session, self._early)
                    living.start_soon(orders.heed_stops, signals)
                    living.start_soon(self._make_room, session, leaving)
                    await living.start(orders.heed_hang_ups)
                    await session.life.stop.run(lambda: notify(self._environ, "STOPPING=1"))
                    await session.telemetry.finish(session.life.stop.cause)
                    session.relays.end()
                    living.cancel_scope.cancel()
                accepting.cancel_scope.cancel()
            connections.cancel_scope.cancel()
        self._tell_init(session)

    async def _let_guests_in(self, session: Session, connections: trio.Nursery) -> None:
        # Only now: whoever has connected waits in the backlog, and the host's connections do not wait for this import.
        from guestd.transport.agents import AgentDoor

        door = AgentDoor(session)
        async with trio.open_nursery() as nursery:
            for listener in self._agents:
                nursery.start_soon(door.accept, listener, connections)

    def _beat(self) -> None:
        notify(self._environ, "WATCHDOG=1")

    def _ready(self, session: Session, identity: SessionPage, store: FdStore) -> None:
        listening = self._listen_for_relays(store)
        notify(self._environ, "READY=1")
        ready = time.monotonic()
        sys.stderr.write(f"guestd {guestd.__version__}: READY, listening on {', '.join(session.listening)}\n")
        sys.stderr.flush()
        # Imported only now, and there before the first request: nothing has waited since READY.
        from guestd.lifecycle.life import Life
        from guestd.lifecycle.timeline import Timeline
        from guestd.relay.relays import Relays
        from guestd.storage.mounts import may_mount
        from guestd.telemetry.telemetry import Telemetry

        session.life = life = Life(session)
        session.upgrade.hindrance = partial(hindrance, session)
        session.telemetry = Telemetry(session, self._programs, self._own, self._environ)
        life.mounts.changed = identity.note_mounts
        life.mounts.begin(may_mount(self._environ), identity.mounts)
        life.timeline = Timeline(
            self._environ,
            listening=self._listening,
            ready=ready,
            tell=lambda state: notify(self._environ, state),
        )
        life.timeline.follow(life.events)
        if identity.use is not None:
            life.take_over(identity.use)
        life.watch.changed = lambda: identity.note_use(life.watch.to_map())
        session.relays = Relays(
            session, lambda what: life.watch.touch("forward", what), life.events.say, listening
        )
        life.resume.menders["relays"] = session.relays.mend
        # What was imported stays: no collection need walk through it again.
        gc.freeze()

    def _listen_for_relays(self, store: FdStore) -> Listening | None:
        """Programs that wait for guestd to be ready find its relays. Without any, nothing is imported for them."""
        if not self._settings.relay and not any(name.startswith(RELAY) for name in self._handed):
            return None
        from guestd.relay.listening import Listening

        return Listening(self._settings, store, self._handed)

    async def _make_room(self, session: Session, leaving: trio.Event) -> None:
        """For another version, once it is to come: it takes up everything where this one leaves it."""
        await leaving.wait()
        session.leaving = True
        _log.info("making room for another supervisor: %d jobs run", session.jobs.running)
        error = ShuttingDown(
            "guestd is being replaced by another version, and everything goes on; come back at once"
        )
        with trio.move_on_after(_FAREWELL):
            async with trio.open_nursery() as farewells:
                for connection in session.connections:
                    farewells.start_soon(connection.goodbye, error)
        await session.telemetry.hand_over()
        if session.life.stop.asked.is_set():
            # Asked for in that moment: the end goes on to its own end, and there is nothing to make room for.
            return
        raise _MakeRoom

    def _tell_init(self, session: Session) -> None:
        from guestd.lifecycle.machine import tell_init

        stop = session.life.stop
        self.status = stop.status
        if stop.cause != "signal":
            tell_init(self._environ, stop.action, stop.status)


class _MakeRoom(Exception):
    """This process ends so that another takes its place."""


async def _prepare() -> None:
    """What only the end of the session needs is imported beside the first requests, not at that end: by then the files
    may be another version's, or on a disk that does not answer.
    """
    await trio.sleep(_SETTLED)
    for name in ("json", "guestd.lifecycle.flush", "guestd.lifecycle.hooks", "guestd.service.lifecycle"):
        await trio.to_thread.run_sync(import_module, name)
    # Whoever counts the tasks of a session finds as many as before.
    await trio.sleep_forever()


def _is_our_own(name: str) -> bool:
    """Is it the name of what a supervisor has put aside for the next one, and not of a socket to be reached on?"""
    return name in {INIT, AGENT} or name.startswith(RELAY) or is_kept(name)


def _clock() -> tuple[float, float]:
    return time.time(), time.monotonic()


def _find_cgroups() -> cgroup.Cgroups | None:
    """What the world has made of its cgroups is no reason not to start: trees are then found through /proc."""
    try:
        return cgroup.find()
    except OSError as error:
        _log.warning("no cgroups for jobs: %s", error)
        return None


def _wanted_fds(settings: Settings) -> int:
    """As many descriptors as everything has that the settings allow at once."""
    limits, kept = settings.limits, settings.command.retain_count
    connections = limits.connections + settings.agent.connections + settings.forward.connections
    connections += sum(2 * each.connections for each in settings.relay.values())
    return FDS_OF_A_JOB * (limits.jobs + kept) + connections + FDS_IN_RESERVE
