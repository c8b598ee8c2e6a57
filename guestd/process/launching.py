"""The supervisor's end of the launcher: started when first needed, asked one thing at a time."""

from __future__ import annotations

import errno
import marshal
import os
import resource
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from math import inf
from typing import TYPE_CHECKING

import trio

import guestd
from guestd.errors import StartFailed
from guestd.process import launcher
from guestd.process.plan import CHILD_NOFILE, explain, write_oom_score_adj
from guestd.process.posix_spawn import posix_spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.plan import Plan
    from guestd.process.reaper import Exit, Reaper

#: A launcher that has not forked in this time has lost its memory or its mind.
_LAUNCHER_PATIENCE = 10.0
#: One that nobody needs any more leaves in some milliseconds; killed, it has as long once more.
_LEAVING = 0.5


class Launcher:
    """The supervisor's end of the launcher. Started when first needed, and again when it has died."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._socket: socket.socket | None = None
        self._turn = trio.Lock()
        self._gone = trio.Event()
        self.pid: int | None = None

    async def leave(self) -> None:
        """At the end: let it go, and see it off. Nothing of a supervisor's own outlives it."""
        self.close()
        for force in (False, True):
            if self.pid is None:
                return
            if force:
                os.kill(self.pid, signal.SIGKILL)
            with trio.move_on_after(_LEAVING):
                await self._gone.wait()

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
                place = launcher.NO_WITNESS
                if plan.witness is not None:
                    fds.insert(1, plan.witness[0])
                    place = plan.witness[1]
                message = launcher.head(in_group=plan.cgroup is not None, witness=place) + message
                given = [source for source in plan.fds.values() if source is not None]
                answer, since = await self._clone(plan, message, fds + given)
                if answer.startswith(launcher.OUTSIDE):
                    plan.cgroup = None
                pid = int(answer.removeprefix(launcher.OUTSIDE))
            return await self._watch(pid, since, report, plan, told)
        finally:
            os.close(report)

    async def _clone(self, plan: Plan, message: bytes, fds: list[int]) -> tuple[bytes, float]:
        """One request, one answer. Shielded, since an answer nobody took would be taken for the next one's."""
        async with self._turn:
            with trio.move_on_after(_LAUNCHER_PATIENCE, shield=True):
                if self._socket is None:
                    self._begin()
                connection = self._socket
                assert connection is not None
                since = time.monotonic()
                if plan.is_asked_for is not None:
                    plan.is_asked_for()
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
                        return answer, since
                    number = -int(answer)
                    raise explain(plan, "fork", number, os.strerror(number))
            self._give_up()
        raise StartFailed(
            "could not start: guestd's launcher process died or hung; the next start gets a new one",
            stage="fork", errno=errno.EAGAIN,
        )  # fmt: skip

    async def _watch(
        self, pid: int, since: float, report: int, plan: Plan, told: Callable[[Exit], None]
    ) -> int:
        """Wait until the program runs, or has failed to."""
        gate = _Gate()
        self._reaper.expect(pid, gate.told, since)
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
        self._gone = trio.Event()
        pid = self.pid
        self._reaper.expect(pid, lambda _: self._ended(pid), inf)

    def _ended(self, pid: int) -> None:
        if self.pid == pid:
            self.pid = None
            self._gone.set()
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
