"""Every process guestd creates is created here, and told to the reaper in the same breath.

Two ways, chosen by what is asked:

- *direct*: libc's posix_spawn, for a child that is who the supervisor is. Directory and umask are taken from
  the
  thread that spawns, so neither costs a fork. While every mount is local that thread is the loop's, and it is
  over in 0.1 ms; as soon as one is not, it is a worker that has left the process's fs_struct, and a file
  system that hangs holds nobody else.
- *launcher*: a small process that clones itself (see launcher.py). For another user, limits, nice,
  capabilities.

So no path blocks the loop. What each takes, and what was tried besides, is in docs/decisions.md. Other worker
threads of this process see the directory and umask change for a moment: they use absolute paths, and set
modes on what they make.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import marshal
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

import guestd
from guestd.errors import StartFailed
from guestd.process import launcher
from guestd.process.mounts import Mounts
from guestd.process.posix_spawn import posix_spawn
from guestd.process.program import enter_directory, find_program
from guestd.process.tree import children_of_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.cgroup import Cgroup
    from guestd.process.identity import Identity
    from guestd.process.reaper import Exit, Reaper

_CLONE_FS = 0x00000200
_libc = ctypes.CDLL(None, use_errno=True)
#: How many spawns may wait for slow file systems at once before others wait for them.
_THREADS = 64
#: What guestd was started with, and gives to its children. It raises its own, and programs that use
#: select(2), or close every descriptor they could have, would suffer from that.
CHILD_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)
#: A launcher that has not forked in this time has lost its memory or its mind.
_LAUNCHER_PATIENCE = 10.0


@dataclass(slots=True, kw_only=True)
class Plan:
    """A process to be. `cwd` lists directories to try, the first of which is the one that matters."""

    program: str
    argv: list[bytes]
    env: dict[bytes, bytes]
    cwd: list[str]
    identity: Identity
    #: The child's descriptors: one of this process's, or None for closed.
    fds: dict[int, int | None]
    umask: int = 0o022
    rlimits: list[tuple[int, tuple[int, int]]] = field(default_factory=list[tuple[int, tuple[int, int]]])
    nice: int = 0
    oom_score_adj: int = 0
    no_new_privs: bool = False
    drop_capabilities: list[int] = field(default_factory=list[int])
    #: To be born into, where it is the launcher that spawns. None afterwards if that could not be.
    cgroup: Cgroup | None = None


class Spawner:
    """Starts what a Plan says."""

    def __init__(self, own: Identity, reaper: Reaper) -> None:
        self._own = own
        self._reaper = reaper
        self._threads = trio.CapacityLimiter(_THREADS)
        self._launcher = _Launcher(reaper)
        # What a child inherits. Lowering it again needs a privilege, so a child that is to have this one is
        # left alone.
        self._own_oom_score_adj = read_oom_score_adj()
        self._mounts = Mounts()
        self._threads_can_leave = True

    @property
    def launcher_pid(self) -> int | None:
        return self._launcher.pid

    def refresh(self) -> None:
        """The supervisor's own oom_score_adj has changed."""
        self._own_oom_score_adj = read_oom_score_adj()

    def is_plain(self, plan: Plan) -> bool:
        """Is the child who this process is, with nothing taken away? Then it is spawned directly."""
        return (
            plan.identity[:3] == self._own[:3]
            and not plan.rlimits
            and not plan.nice
            and not plan.no_new_privs
            and not plan.drop_capabilities
        )

    def starts_at_once(self, plan: Plan) -> bool:
        """Can it be spawned from the loop's own thread, because nothing it touches can make that wait?"""
        return self.is_plain(plan) and self._mounts.all_local()

    def start_at_once(self, plan: Plan, told: Callable[[Exit], None]) -> int:
        """Start it and return its pid; `told` hears how it ends. Raises StartFailed with stage and errno."""
        pid = _DirectSpawn(plan, self._own_oom_score_adj).run()
        self._reaper.expect(pid, told)
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
                        self._reaper.expect(spawn.pid, told)
                        return spawn.pid
                return await self._launcher.start(self._as_request(plan), plan, told)
        except OSError as error:
            # Of this process's own: no descriptor left, or no room for a launcher.
            raise explain(plan, "fork", error.errno or errno.EIO, error.strerror or str(error)) from None

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


class _Launcher:
    """The supervisor's end of the launcher. Started when first needed, and again when it has died."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._socket: socket.socket | None = None
        self._turn = trio.Lock()
        self.pid: int | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def start(self, request: dict[str, object], plan: Plan, told: Callable[[Exit], None]) -> int:
        report, report_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with ExitStack() as sent:
                sent.callback(os.close, report_end)
                fds = [report_end]
                if plan.cgroup is not None:
                    fds.append(plan.cgroup.open())
                    sent.callback(os.close, fds[-1])
                message = marshal.dumps(request)
                if len(message) >= launcher.REQUEST_MAX:
                    fds.append(_memfd_holding(message))
                    sent.callback(os.close, fds[-1])
                    message = marshal.dumps({"long": True})
                message = (launcher.WITHOUT_CGROUP if plan.cgroup is None else launcher.WITH_CGROUP) + message
                given = [source for source in plan.fds.values() if source is not None]
                answer = await self._clone(plan, message, fds + given)
                if answer.startswith(launcher.OUTSIDE):
                    plan.cgroup = None
                pid = int(answer.removeprefix(launcher.OUTSIDE))
            return await self._watch(pid, report, plan, told)
        finally:
            os.close(report)

    async def _clone(self, plan: Plan, message: bytes, fds: list[int]) -> bytes:
        """One request, one answer. Shielded, since an answer nobody took would be taken for the next one's."""
        async with self._turn:
            with trio.move_on_after(_LAUNCHER_PATIENCE, shield=True):
                if self._socket is None:
                    self._begin()
                connection = self._socket
                assert connection is not None
                try:
                    socket.send_fds(connection, [message], fds)
                    await trio.lowlevel.wait_readable(connection)
                    answer = connection.recv(64)
                except OSError:
                    answer = b""
                if self.pid is None:
                    self.close()  # it died meanwhile; what it had cloned has answered for itself
                if answer:
                    if not answer.startswith(b"-"):
                        return answer
                    number = -int(answer)
                    raise explain(plan, "fork", number, os.strerror(number))
            self._give_up()
        raise StartFailed(
            "could not start: guestd's launcher process died or hung; the next start gets a new one",
            stage="fork", errno=errno.EAGAIN,
        )  # fmt: skip

    async def _watch(self, pid: int, report: int, plan: Plan, told: Callable[[Exit], None]) -> int:
        """Wait until the program runs, or has failed to."""
        gate = _Gate()
        self._reaper.expect(pid, gate.told)
        try:
            await trio.lowlevel.wait_readable(report)
        except trio.Cancelled:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
        failure = os.read(report, 4096)
        if failure:
            stage, number, text = marshal.loads(failure)
            # What could not start has gone before anybody hears of it.
            await gate.ended.wait()
            raise explain(plan, stage, number, text)
        gate.open(told)
        return pid

    def _begin(self) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            mine.setblocking(False)
            root = os.path.dirname(os.path.dirname(guestd.__file__))
            # Isolated and without site: no environment variable and no .pth file reaches a process that stays
            # root.
            code = (
                f"import sys; sys.path.insert(0, {root!r}); from guestd.process.launcher import main; main()"
            )
            argv = [sys.executable, "-I", "-S", "-c", code]
            self.pid = posix_spawn(
                sys.executable, [os.fsencode(word) for word in argv], {},
                {0: None, launcher.CONTROL_FD: theirs.fileno()},
            )  # fmt: skip
            # What its children begin with.
            with suppress(OSError):  # no right to; or it has died already, which its socket tells
                resource.prlimit(self.pid, resource.RLIMIT_NOFILE, CHILD_NOFILE)
                write_oom_score_adj(self.pid, 0)
        self._socket = mine
        pid = self.pid
        self._reaper.expect(pid, lambda _: self._ended(pid))

    def _ended(self, pid: int) -> None:
        if self.pid == pid:
            self.pid = None
            # A start under way may have its answer in the socket still. It closes it.
            if not self._turn.locked():
                self.close()

    def _give_up(self) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.close()


class _Gate:
    """Holds back a child's end until it is known whether the program was ever run."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self._exit: Exit | None = None
        self._through: Callable[[Exit], None] | None = None

    def told(self, exit: Exit) -> None:  # noqa: A002  it is what the reaper calls it
        if self._through is not None:
            self._through(exit)
        else:
            self._exit = exit
            self.ended.set()

    def open(self, through: Callable[[Exit], None]) -> None:
        if self._exit is not None:
            through(self._exit)
        else:
            self._through = through


def _memfd_holding(data: bytes) -> int:
    """For a request too long for one message."""
    fd = os.memfd_create("guestd-request")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_oom_score_adj(pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/oom_score_adj") as file:
        return int(file.read())


def write_oom_score_adj(pid: int | str, value: int) -> None:
    fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def explain(plan: Plan, stage: str, number: int, text: str) -> StartFailed:
    """An error a person can act on: what was asked, what is wrong, what would be right."""
    name = errno.errorcode.get(number, str(number))
    match stage:
        case "exec" if number == errno.E2BIG:
            what = "argv and environment together are longer than the kernel takes; pass the data by stdin or a file"
        case "exec" if number == errno.ENOEXEC:
            what = f"{plan.program!r} has no format the kernel can run; a script needs a first line like #!/bin/sh"
        case "exec" if number == errno.ENOENT and "/" in plan.program:
            what = f"no such file: {plan.program!r}, or the interpreter that it names does not exist"
        case "exec":
            what = f"{plan.program!r}: {text}"
        case "cwd":
            what = f"the directory {plan.cwd[0]!r}: {text}"
        case "user":
            what = f"becoming user {plan.identity.name!r} (uid {plan.identity.uid}): {text}"
        case "fork" if number in {errno.EAGAIN, errno.ENOMEM}:
            what = f"no new process: {text}; the machine, or a limit on processes, is exhausted"
        case _:
            what = f"{stage}: {text}"
    return StartFailed(f"could not start: {what} ({stage}, {name})", stage=stage, errno=number)
