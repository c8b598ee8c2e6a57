"""The supervisor: the tree of nurseries, when it is ready, and the order of its end.

    reaper            until the very last process
      jobs            outlive every connection
        connections   outlive their listeners
          listeners

The end goes from the bottom up: no new connections; nothing new is started and what runs is ended; the
connections hear the results and are told goodbye; then the rest. Each step is bounded by `stop.grace`.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

import guestd
from guestd.errors import ConfigError, GuestdError, ShuttingDown
from guestd.process import cgroup
from guestd.process.identity import Users
from guestd.process.plan import write_oom_score_adj
from guestd.process.reaper import Reaper
from guestd.process.spawn import Spawner
from guestd.service.session import Session, read_boot_id
from guestd.session.command import Command
from guestd.session.jobs import FDS_IN_RESERVE, FDS_OF_A_JOB, Jobs
from guestd.session.program import Programs
from guestd.session.shell import Shell
from guestd.transport.access import Access
from guestd.transport.doors import Doors
from guestd.transport.listeners import open_listeners, passed_listeners

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.config import Settings
    from guestd.transport.listeners import Listener

_log = logging.getLogger("guestd")
#: After the grace, for what cannot be hurried: the kernel taking back memory, last frames to a peer.
_LAST_STEPS = 5.0
_STDERR_FD = 2
#: Settings that cannot be used, as service managers know it: starting again does not help.
EX_CONFIG = 78


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    _own_descriptors()
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log.level.upper(),
        format="guestd: %(levelname)s: %(name)s: %(message)s",
    )
    _raise_fd_limit(settings)
    environ = dict(os.environ)
    # What counts until trio listens, and again in the last moments, when nobody does: Python's own handlers would end
    # this process in the middle of its end.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: early.append(number))
    try:
        access = Access(settings)
    except ConfigError as error:
        sys.stderr.write(f"guestd: {error.message}\n")
        return EX_CONFIG
    try:
        has_token = access.has_token
        listeners = passed_listeners(environ, has_token=has_token) or open_listeners(
            settings, has_token=has_token
        )
    except GuestdError as error:
        sys.stderr.write(f"guestd: {error.message}\n")
        return error.exit_status
    try:
        trio.run(_Supervisor(settings, access, listeners, environ, early).run, strict_exception_groups=True)
    finally:
        for listener in listeners:
            listener.close()
        # A signal that comes now has its wish already; an interpreter that takes itself apart would die of it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return 0


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        access: Access,
        listeners: list[Listener],
        environ: Mapping[str, str],
        early: list[int],
    ) -> None:
        self._early = early
        self._settings = settings
        self._access = access
        self._listeners = listeners
        self._environ = environ
        self._stop_signals = 0

    async def run(self) -> None:
        settings = self._settings
        reaper = Reaper(_clock)
        cgroups = _find_cgroups() if settings.command.cgroup == "auto" else None
        users = Users()
        own = users.own_identity()
        spawner = Spawner(own, reaper)
        _protect(settings.supervisor.oom_score_adj, spawner)
        programs = Programs(settings, users, own, os.environb)
        jobs = Jobs(
            settings,
            Command(programs),
            Shell(programs),
            spawner=spawner,
            reaper=reaper,
            cgroups=cgroups,
            clock=_clock,
        )
        session = Session(
            settings=settings, jobs=jobs, reaper=reaper, spawner=spawner, clock=_clock, has_cgroups=cgroups is not None,
            boot_id=read_boot_id(),
            listening=[listener.name for listener in self._listeners], started=_clock(),
        )  # fmt: skip
        try:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as base:
                    base.start_soon(reaper.run)
                    async with trio.open_nursery() as outer:
                        await outer.start(jobs.run)
                        await self._serve(session, signals)
                        outer.cancel_scope.cancel()
                    base.cancel_scope.cancel()
        finally:
            jobs.close()
            spawner.close()
            if cgroups is not None:
                cgroups.close()
            reaper.close()

    async def _serve(self, session: Session, signals: trio.abc.ReceiveChannel[int] | object) -> None:
        doors = Doors(session, self._access)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in self._listeners:
                    accepting.start_soon(doors.accept, listener, connections)
                self._ready(session)
                if not self._early:
                    await _first(signals)
                accepting.cancel_scope.cancel()
            await self._stop(session, connections, signals)

    def _ready(self, session: Session) -> None:
        notify(self._environ, "READY=1")
        sys.stderr.write(f"guestd {guestd.__version__}: READY, listening on {', '.join(session.listening)}\n")
        sys.stderr.flush()
        # What was imported stays: no collection need walk through it again.
        gc.freeze()

    async def _stop(self, session: Session, connections: trio.Nursery, signals: object) -> None:
        grace = self._settings.stop.grace
        _log.info("stopping: %d jobs run; grace %s s", session.jobs.running, grace)
        notify(self._environ, "STOPPING=1")
        with trio.move_on_after(grace + _LAST_STEPS):
            async with trio.open_nursery() as hurry:
                hurry.start_soon(self._hurry, session, signals)
                await session.jobs.stop(grace)
                hurry.cancel_scope.cancel()
            async with trio.open_nursery() as farewells:
                for connection in session.connections:
                    farewells.start_soon(connection.goodbye, ShuttingDown("the session has stopped"))
        connections.cancel_scope.cancel()

    async def _hurry(self, session: Session, signals: object) -> None:
        """A second signal shortens the end."""
        await _first(signals)
        _log.info("stopping at once")
        await session.jobs.stop(0)


async def _first(signals: object) -> None:
    async for _ in signals:  # pyright: ignore[reportUnknownVariableType, reportGeneralTypeIssues]
        return


def _clock() -> tuple[float, float]:
    return time.time(), time.monotonic()


def _find_cgroups() -> cgroup.Cgroups | None:
    """What the world has made of its cgroups is no reason not to start: trees are then found through /proc."""
    try:
        return cgroup.find()
    except OSError as error:
        _log.warning("no cgroups for jobs: %s", error)
        return None


def _protect(oom_score_adj: int, spawner: Spawner) -> None:
    """The supervisor is the last to be killed for memory, where it has the right to say so."""
    with suppress(PermissionError, FileNotFoundError):
        write_oom_score_adj("self", oom_score_adj)
    spawner.refresh()


def _own_descriptors() -> None:
    """Have something at 0, 1 and 2, where every child's own are put; and hand none of the others on to children."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR_FD:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Python has none where there was no descriptor when it began.
    sys.stderr = sys.stderr or open(_STDERR_FD, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  for good
    for name in os.listdir("/proc/self/fd"):
        if int(name) > _STDERR_FD:
            with suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def _raise_fd_limit(settings: Settings) -> None:
    """The usual soft limit of 1024 is there for programs that use select(2), and the kernel's own hard one, 4096, is
    too low for as many jobs as the settings allow. Where it stays lower, fewer can run.
    """
    limits, kept = settings.limits, settings.command.retain_count
    wanted = FDS_OF_A_JOB * (limits.jobs + kept) + limits.connections + FDS_IN_RESERVE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with suppress(ValueError, OSError):  # no right to
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell the service manager, by systemd's protocol, where there is one."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.send(state.encode())
