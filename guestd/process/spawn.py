"""Every process guestd creates is created here, and told to the reaper in the same breath.

Two ways, chosen by what is asked:

- *direct*: libc's posix_spawn, for a child that is who the supervisor is. Directory and umask are taken from
  the
  thread that spawns, so neither costs a fork. While every mount is local that thread is the loop's, and it is
  over in 0.1 ms; as soon as one is not, it is a worker that has left the process's fs_struct, and a file
  system that hangs holds nobody else.
- *launcher*: a small process that clones itself (see launcher.py). For another user, limits, nice,
  capabilities, and for everything on a terminal.

So no path blocks the loop. What each takes, and what was tried besides, is in docs/decisions.md. Other worker
threads of this process see the directory and umask change for a moment: they use absolute paths, and set
modes on what they make.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

import trio

from guestd.errors import StartFailed
from guestd.process.launching import Launcher
from guestd.process.members import children_of_thread
from guestd.process.mounts import Mounts
from guestd.process.plan import CHILD_NOFILE, explain, read_oom_score_adj, write_oom_score_adj
from guestd.process.posix_spawn import posix_spawn
from guestd.process.program import enter_directory, find_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.identity import Identity
    from guestd.process.plan import Plan
    from guestd.process.reaper import Exit, Reaper

_CLONE_FS = 0x00000200
_libc = ctypes.CDLL(None, use_errno=True)
#: How many spawns may wait for slow file systems at once before others wait for them.
_THREADS = 64


class Spawner:
    """Starts what a Plan says."""

    def __init__(self, own: Identity, reaper: Reaper) -> None:
        self._own = own
        self._reaper = reaper
        self._threads = trio.CapacityLimiter(_THREADS)
        self._launcher = Launcher(reaper)
        # What a child inherits. Lowering it again needs a privilege, so a child that is to have this one is
        # left alone.
        self._own_oom_score_adj = read_oom_score_adj()
        #: Processes of guestd's own, which the end of all jobs leaves alone.
        self.spared: set[int] = set()
        self._mounts = Mounts()
        self._threads_can_leave = True

    @property
    def launcher_pid(self) -> int | None:
        return self._launcher.pid

    def refresh(self) -> None:
        """The supervisor's own oom_score_adj has changed."""
        self._own_oom_score_adj = read_oom_score_adj()

    def is_plain(self, plan: Plan) -> bool:
        """Is the child who this process is, with nothing taken away and no terminal? Then it is spawned directly."""
        return (
            plan.identity[:3] == self._own[:3]
            and not plan.rlimits
            and not plan.nice
            and not plan.no_new_privs
            and not plan.drop_capabilities
            and not plan.terminal
            and plan.witness is None
        )

    def starts_at_once(self, plan: Plan) -> bool:
        """Can it be spawned from the loop's own thread, because nothing it touches can make that wait?"""
        return self.is_plain(plan) and self._mounts.all_local()

    def start_at_once(self, plan: Plan, told: Callable[[Exit], None]) -> int:
        """Start it and return its pid; `told` hears how it ends. Raises StartFailed with stage and errno."""
        pid = _DirectSpawn(plan, self._own_oom_score_adj).run()
        # No status can have been taken between the two: what is remembered for this number was another's.
        self._reaper.expect(pid, told, inf)
        return pid

    async def start(self, plan: Plan, told: Callable[[Exit], None]) -> int:
        """The same for every plan. Cancelled before the program runs, nothing of it is left behind."""
        try:
            with self._reaper.spawning():
                if self.is_plain(plan) and self._threads_can_leave:
                    spawn = _DirectSpawn(plan, self._own_oom_score_adj)
                    try:
                        await self._in_thread(spawn)
                    except _NoOwnDirectory:
                        self._threads_can_leave = False
                    else:
                        self._reaper.expect(spawn.pid, told, spawn.since)
                        return spawn.pid
                return await self._launcher.start(self._as_request(plan), plan, told)
        except OSError as error:
            # Of this process's own: no descriptor left, or no room for a launcher.
            raise explain(plan, "fork", error.errno or errno.EIO, error.strerror or str(error)) from None

    async def leave(self) -> None:
        """At the end, while there is a reaper still: the launcher is gone when this returns."""
        await self._launcher.leave()

    def close(self) -> None:
        """Let the launcher go."""
        self._launcher.close()
        self._mounts.close()

    async def _in_thread(self, spawn: _DirectSpawn) -> None:
        spawn.take_fds()
        try:
            await trio.to_thread.run_sync(spawn.run_apart, limiter=self._threads, abandon_on_cancel=True)
        except trio.Cancelled:
            spawn.abandon()
            raise
        if spawn.failure is not None:
            raise spawn.failure

    def _as_request(self, plan: Plan) -> dict[str, object]:
        return {
            "program": plan.program,
            "argv": plan.argv,
            "env": plan.env,
            "cwd": plan.cwd,
            "identity": (plan.identity.uid, plan.identity.gid, list(plan.identity.groups)),
            "change_identity": plan.identity[:3] != self._own[:3],
            "fds": [(target, source is not None) for target, source in plan.fds.items()],
            "umask": plan.umask,
            "rlimits": plan.rlimits,
            "nice": plan.nice,
            "oom_score_adj": plan.oom_score_adj,
            "no_new_privs": plan.no_new_privs,
            "drop_capabilities": plan.drop_capabilities,
            "terminal": plan.terminal,
        }


class _NoOwnDirectory(Exception):
    """This machine does not let a thread leave the process's fs_struct (a seccomp filter of a container)."""


class _Abandoned(Exception):
    """Nobody waits for this spawn any more."""


class _DirectSpawn:
    """One spawn; and in a worker thread, whose child it is when the caller has gone meanwhile."""

    def __init__(self, plan: Plan, own_oom_score_adj: int) -> None:
        self._plan = plan
        self._own_oom_score_adj = own_oom_score_adj
        self._fds: dict[int, int | None] = plan.fds
        self._lock = threading.Lock()
        self._begun = False
        self._abandoned = False
        self.pid = 0
        self.since = 0.0
        self.failure: Exception | None = None

    def run(self) -> int:
        """Spawn from this thread. Raises StartFailed."""
        plan = self._plan
        stage = "cwd"
        umask = os.umask(plan.umask)
        try:
            enter_directory(plan.cwd)
            stage = "exec"
            path = plan.env.get(b"PATH")
            program = find_program(plan.program, None if path is None else os.fsdecode(path))
            if self._abandoned:
                raise _Abandoned
            self.since = time.monotonic()
            self.pid = posix_spawn(program, plan.argv, plan.env, self._fds)
        except OSError as error:
            if stage == "exec" and error.errno in {errno.EAGAIN, errno.ENOMEM}:
                stage = "fork"  # posix_spawn is both, and it is the new process that there was no room for
            raise explain(plan, stage, error.errno or errno.EIO, error.strerror or str(error)) from None
        finally:
            os.umask(umask)
            os.chdir("/")
        self._adjust(self.pid)
        return self.pid

    def run_apart(self) -> None:
        """Spawn from a worker thread, whose directory and umask are its own."""
        with self._lock:
            if self._abandoned:
                return
            self._begun = True
        try:
            # Trio keeps its threads; one that has left stays apart, and asking again costs nothing.
            if _libc.unshare(_CLONE_FS):
                raise _NoOwnDirectory
            self.run()
        except (StartFailed, _NoOwnDirectory, _Abandoned) as failure:
            # Carried by hand: an exception that crosses threads grows a traceback, and this one is an
            # outcome.
            self.failure = failure
        finally:
            self._close_fds()
        if self._abandoned:
            self._clear()

    def take_fds(self) -> None:
        """Have the child's descriptors as this spawn's own: the caller closes its when it gives up, and their numbers
        would mean something else by the time a file system answers. Raises OSError.
        """
        self._fds = {}
        try:
            for target, source in self._plan.fds.items():
                self._fds[target] = None if source is None else fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError:
            self._close_fds()
            raise

    def abandon(self) -> None:
        """The caller is gone. Both sides write before they read, so that at least one of them sees to the
        child.
        """
        with self._lock:
            self._abandoned = True
            if not self._begun:
                self._close_fds()
        self._clear()

    def _close_fds(self) -> None:
        for fd in self._fds.values():
            if fd is not None:
                os.close(fd)

    def _clear(self) -> None:
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _adjust(self, pid: int) -> None:
        """What can only be done from outside: the child runs already, so what it forked by now is adjusted as
        well.
        """
        adjust = self._plan.oom_score_adj != self._own_oom_score_adj
        if not adjust and resource.getrlimit(resource.RLIMIT_NOFILE) == CHILD_NOFILE:
            return  # it has all that by inheritance
        pending, seen = [pid], set[int]()
        while pending:
            each = pending.pop()
            seen.add(each)
            # Ended already, or not ours to change, or no descriptor to look with. None of it may hide that the program
            # runs: the reaper and the result speak about that.
            with suppress(OSError):
                resource.prlimit(each, resource.RLIMIT_NOFILE, CHILD_NOFILE)
                if adjust:
                    write_oom_score_adj(each, self._plan.oom_score_adj)
            with suppress(OSError):
                pending += [child for child in children_of_thread(each) if child not in seen]
