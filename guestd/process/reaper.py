"""The only place that waits for children.

`waitpid` with no pid in particular takes whatever ended, so two places that wait corrupt each other: the one
that comes second invents an exit status. Here everything that ends is taken by one task, and what was
expected is told at once. Everything else is an orphan that this process adopted as subreaper; it is reaped
and forgotten.

SIGCHLD comes through a signalfd: one wake-up from signal to status, where a signal handler takes three.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from guestd.process.oom import Victim, read_victim

if TYPE_CHECKING:
    import resource
    from collections.abc import Callable, Generator

_log = logging.getLogger("guestd.reaper")
_PR_SET_CHILD_SUBREAPER = 36
_SIGSET_SIZE = 128
_SIGINFO_SIZE = 128
_LIST_SIZE = 4096
#: Spawns under way are few, and each is expected within moments of its child's birth.
_EARLY_MAX = 4096
#: In a wait status: a core was dumped.
_CORE = 0x80
_libc = ctypes.CDLL(None, use_errno=True)


class Witness(Protocol):
    """Where a child writes its own number as soon as it is born, and its status is written before it is taken."""

    @property
    def witnessed(self) -> int: ...
    def exits(self, status: int) -> None: ...


class Exit(NamedTuple):
    """How a child ended: the kernel's words."""

    #: None where nobody has told, which is possible only for what is not this process's child.
    status: int | None
    usage: resource.struct_rusage | None
    wall: float
    mono: float
    #: Who it was, when SIGKILL ended it: the zombie is the last to know its name.
    victim: Victim | None


class Reaper:
    """Create it on the main thread before any other thread exists: SIGCHLD must be blocked in all of them."""

    def __init__(self, clock: Callable[[], tuple[float, float]]) -> None:
        self._clock = clock
        self._expected: dict[int, Callable[[Exit], None]] = {}
        self._noting: dict[int, Callable[[int], None]] = {}
        self._witnesses: set[Witness] = set()
        # While a spawn is under way in a thread, its child may end before anybody has said to expect it.
        self._spawning = 0
        self._early: dict[int, Exit] = {}
        self.orphans = 0
        if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "this process could not become a child subreaper")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        mask = ctypes.create_string_buffer(_SIGSET_SIZE)
        _libc.sigemptyset(mask)
        _libc.sigaddset(mask, int(signal.SIGCHLD))
        self._fd: int = _libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "no signalfd for SIGCHLD")
        self._children = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Put the signal back where it was."""
        os.close(self._fd)
        os.close(self._children)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    @contextmanager
    def spawning(self) -> Generator[None]:
        """Around a spawn and its `expect`: keeps the status of a child that is quicker than its parent."""
        self._spawning += 1
        try:
            yield
        finally:
            self._spawning -= 1
            if not self._spawning:
                self.orphans += len(self._early)
                self._early.clear()

    def expect(self, pid: int, told: Callable[[Exit], None], since: float) -> None:
        """`told` is called once, with how `pid` ended; at once if it already has. It must not block.

        `since`: a moment before it was spawned. What ended before that had the number before it.
        """
        early = self._early.pop(pid, None)
        if early is not None and early.mono >= since:
            self._tell(told, early)
        else:
            self._expected[pid] = told

    def note(self, pid: int, noted: Callable[[int], None]) -> None:
        """`noted` hears the status of that child while the kernel still has it: should this process die in the next
        moment, nobody else would ever know.
        """
        self._noting[pid] = noted

    def watch(self, witness: Witness) -> None:
        """A child is about to be born that may end before anybody here knows its number. Until `note`, or `unwatch`."""
        self._witnesses.add(witness)

    def unwatch(self, witness: Witness) -> None:
        self._witnesses.discard(witness)

    def _unknown(self, pid: int) -> Callable[[int], None] | None:
        """Whose child that is, by what it has written itself."""
        for witness in self._witnesses:
            if witness.witnessed == pid:
                return witness.exits
        return None

    def _tell(self, told: Callable[[Exit], None], ended: Exit) -> None:
        """Whatever one of them makes of it, the others' children are still to be reaped."""
        try:
            told(ended)
        except Exception:  # noqa: BLE001  see above
            _log.exception("the end of a process could not be told")

    def expects(self, pid: int) -> bool:
        """Is it one of those somebody waits for, and not an orphan?"""
        return pid in self._expected

    def adopted(self) -> list[int]:
        """Children nobody expects: what lost its parent, and came here because this process is a subreaper.

        Such children are always given to the first thread, whose list is read through a descriptor kept open:
        it is asked for at the end of every command.
        """
        found = b""
        while len(piece := os.pread(self._children, _LIST_SIZE, len(found))) == _LIST_SIZE:
            found += piece
        return [pid for pid in map(int, (found + piece).split()) if pid not in self._expected]

    async def run(self) -> None:
        """Reap until cancelled."""
        while True:
            self.collect()
            await trio.lowlevel.wait_readable(self._fd)
            try:
                # Several children that end at once are one signal: what is read here only says «look».
                os.read(self._fd, _SIGINFO_SIZE * 16)
            except BlockingIOError:
                continue

    def collect(self) -> None:
        """Take everything that has ended."""
        while True:
            try:
                look = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if look is None:
                return
            pid = look.si_pid
            killed = look.si_code == os.CLD_KILLED and look.si_status == signal.SIGKILL
            victim = _victim(pid) if killed and (pid in self._expected or self._spawning) else None
            noted = self._noting.pop(pid, None) or self._unknown(pid)
            if noted is not None:
                noted(_status(look))
            _, status, usage = os.wait4(pid, 0)
            wall, mono = self._clock()
            ended = Exit(status, usage, wall, mono, victim)
            told = self._expected.pop(pid, None)
            if told is not None:
                self._tell(told, ended)
            elif self._spawning:
                self._early[pid] = ended
                if len(self._early) > _EARLY_MAX:
                    del self._early[next(iter(self._early))]
                    self.orphans += 1
            else:
                self.orphans += 1


def _status(look: os.waitid_result) -> int:
    """As wait4 has it."""
    if look.si_code == os.CLD_EXITED:
        return look.si_status << 8
    return look.si_status | (_CORE if look.si_code == os.CLD_DUMPED else 0)


def _victim(pid: int) -> Victim | None:
    try:
        return read_victim(pid)
    except OSError:  # no descriptor left: whose name it was is not worth everybody's reaper
        return None
