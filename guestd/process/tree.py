"""A job's tree: every process that came from it, found and ended, however it forked.

Where the job has a cgroup, the kernel keeps the list. Elsewhere, and for what has moved itself out of the
group, three traces are followed: descent, the session that the job's first process leads, and the mark that
the job's environment carries. This process is a child subreaper, so whatever lost its parent is among its own
children.

Nobody else is hit: see `members`.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from guestd.process.environment import MARK
from guestd.process.members import (
    Member,
    census,
    children_of,
    children_of_thread,
    marks_of,
    read_member,
    same,
    send,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestd.process.cgroup import Cgroup

FIRST_SIGNAL: int = signal.SIGTERM
#: After SIGKILL: a process may take its time to leave (a large memory to give back), or never leave (state
#: D).
KILL_PATIENCE = 2.0
_MOVES = 5
#: How long processes are run after that go on to fork faster than they are found. A cgroup needs none of it.
CHASE = 10.0
#: In a row, of some 50 us each: then others get their turn.
_LOOKS = 50
_QUIET = 3
#: So often in a row, and so long apart, nobody is to be found of those who went on to fork.
_SURE, _SURE_AFTER = 3, 0.01
_ROUNDS = 10
#: Between looks at who is left, when nothing that was known has ended: new forks do not tell.
_LOOK_AGAIN = 0.1


class Ending(NamedTuple):
    """What ending a tree came to: who lived and is gone, and who is not."""

    gone: list[Member]
    unreached: list[Member]


class OwnChildren(Protocol):
    """What the reaper knows of this process's children."""

    def expects(self, pid: int) -> bool: ...
    def adopted(self) -> list[int]: ...


class Tree:
    """The processes of one job. `pid` is the first one's, which led the session."""

    def __init__(
        self, pid: int, mark: str, cgroup: Cgroup | None, children: OwnChildren, *, adopted: bool = False
    ) -> None:
        """`adopted`: its processes are not this one's descendants; those of the supervisor before it had been."""
        self._pid = pid
        self.adopted = adopted
        self._entry = f"{MARK}={mark}".encode()
        self._cgroup = cgroup
        self._children = children
        self._first_ended = False

    def first_has_ended(self) -> None:
        """The first process has been reaped: from now on its number may be somebody else's."""
        self._first_ended = True

    def settle_in(self, cgroup: Cgroup) -> None:
        """Move everything that lives into a group, and what it forks meanwhile. May wait for the whole
        machine: in a thread.
        """
        # What the moved ones fork from now on is born in the group. The rounds are for what forked while others were
        # being moved; a program that is always quicker stays outside, and is found by its other traces.
        for _ in range(_MOVES):
            outside = {member.pid for member in self.members(thorough=True)}.difference(cgroup.pids())
            if not outside:
                break
            for pid in outside:
                with suppress(OSError):  # ended meanwhile, or a zombie; or one the kernel does not let go
                    cgroup.add(pid)
        self._cgroup = cgroup

    def members(self, *, thorough: bool = False) -> list[Member]:
        """Who lives. `thorough` looks at every process of the machine, for those that hid."""
        if self._cgroup is not None:
            pids = set(self._cgroup.pids())
            if thorough:
                pids |= self._followed(self._marked(), pids)
        elif thorough or self.adopted:
            pids = self._followed(self._marked(), self._first())
        else:
            # Descent from the first process while it lives; after that its children are this process's.
            pids = self._followed(self._children.adopted(), self._first())
        found = (read_member(pid) for pid in sorted(pids))
        return [member for member in found if member is not None]

    def signal(self, number: int, *, first_only: bool = False) -> list[Member]:
        """Send one signal to the whole tree, or only to its first process. Returns whom it reached."""
        return [member for member in self._targets(first_only=first_only) if send(member, number)]

    async def end(
        self, *, grace: float, first_signal: int = FIRST_SIGNAL, first_only: bool = False,
        patience: trio.CancelScope | None = None,
    ) -> Ending:  # fmt: skip
        """SIGTERM (or another), grace, SIGKILL. Comes back when all have gone, or when the rest cannot be reached.
        Cancelling `patience` shortens the grace.
        """
        # By what makes it the same process: its name changes when it executes another program.
        met: dict[tuple[int, int], Member] = {}

        def hit(members: list[Member], number: int) -> None:
            for member in members:
                # Also whom the signal comes too late for: what ended since the list was made ended of this. The kernel
                # itself ends stopped processes when those are gone who could continue them.
                met.setdefault((member.pid, member.started), member)
                send(member, number)

        if grace > 0:
            members = self._targets(first_only=first_only)
            hit(members, first_signal)
            if first_signal != FIRST_SIGNAL:
                # What the first process was told, others may have been started to ignore (nohup).
                hit([member for member in members if member.pid != self._pid], FIRST_SIGNAL)
            # A stopped process does not act on a signal before it continues.
            hit(members, signal.SIGCONT)
            with patience or trio.CancelScope() as waiting:
                waiting.deadline = min(waiting.deadline, trio.current_time() + grace)
                await self._gone(first_only=first_only)
        killed: set[Member] = set()
        hopeless = enough = trio.current_time() + CHASE
        # Whether there were more than those that were found at first; and how often nobody was found since.
        forks, sure = False, 0
        while trio.current_time() < min(hopeless, enough):
            members = self._targets(first_only=first_only)
            if not first_only and not members:
                appearing = self._appearing()
                forks = forks or appearing is None
                members = appearing or []
            if not members:
                if forks and sure < _SURE:
                    # Where the machine has other things to do, whoever is about to fork may stand still meanwhile, and
                    # be in nobody's list.
                    sure += 1
                    await trio.sleep(_SURE_AFTER)
                    continue
                break
            sure = 0
            if self._cgroup is not None and not first_only:
                self._cgroup.kill()
            if not killed.issuperset(members):
                forks = forks or bool(killed)
                hopeless = trio.current_time() + KILL_PATIENCE
                killed.update(members)
            hit(members, signal.SIGKILL)
            for _ in range(0 if first_only else _ROUNDS):
                fresh = self._appearing() or []
                if killed.issuperset(fresh):
                    break
                forks = True
                killed.update(fresh)
                hit(fresh, signal.SIGKILL)
            with trio.move_on_after(_LOOK_AGAIN):
                await _gone(members)
        unreached = self._targets(first_only=first_only)
        return Ending([member for member in met.values() if not same(member)], unreached)

    def _appearing(self) -> list[Member] | None:
        """Who has lost its parent, and lives. A program whose every process forks the next one and ends is never there
        when a list of the whole machine is done; but its newest process is always a child of this one, and as
        long as new ones come, there is one more to come. None when they came to the last look and none was met alive.
        """
        seen: set[int] = set()
        quiet = 0
        for _ in range(_LOOKS):
            fresh = set(children_of_thread(os.getpid())).difference(seen)
            seen.update(fresh)
            members = [member for pid in self._followed(fresh, set()) if (member := read_member(pid))]
            if members:
                return members
            quiet = 0 if fresh else quiet + 1
            if quiet == _QUIET:
                return []
        return None

    def _targets(self, *, first_only: bool) -> list[Member]:
        if not first_only:
            return self.members(thorough=True)
        first = None if self._first_ended else read_member(self._pid)
        return [] if first is None else [first]

    def _first(self) -> set[int]:
        return set() if self._first_ended else {self._pid}

    def _leads(self, session: int) -> bool:
        """Is it this job's session? Its number is not given out again while a process is in it; so where a
        process has that number after the first one has ended, it is another session.
        """
        return session == self._pid and not (self._first_ended and os.path.exists(f"/proc/{session}"))

    async def _gone(self, *, first_only: bool) -> None:
        while members := (self._targets(first_only=True) if first_only else self.members()):
            with trio.move_on_after(_LOOK_AGAIN):
                await _gone(members)

    def _followed(self, candidates: Iterable[int], known: set[int]) -> set[int]:
        """Those of `candidates` that bear a trace of the job, and all that descend from them or from `known`."""
        found = set(known)
        seen = {os.getpid()}
        waiting = list(candidates)
        while waiting:
            pid = waiting.pop()
            if pid in found or pid in seen or self._is_other_job(pid):
                continue
            seen.add(pid)
            bears = self._bears_trace(pid)
            if bears:
                found.add(pid)
            elif bears is None:
                # Whoever it leaves behind is its child still, and in nobody else's list.
                waiting += children_of(pid)
        pending = list(found)
        while pending:
            for child in children_of(pending.pop()):
                if child not in found:
                    found.add(child)
                    pending.append(child)
        return found

    def _marked(self) -> list[int]:
        """Every process of the machine that bears a trace."""
        return [
            pid
            for pid, traces in census.take().items()
            if self._entry in traces.marks or self._leads(traces.session)
        ]

    def _is_other_job(self, pid: int) -> bool:
        return (self._first_ended or pid != self._pid) and self._children.expects(pid)

    def _bears_trace(self, pid: int) -> bool | None:
        """None where nobody can tell: it is at its end, and shows nothing any more."""
        marks = marks_of(pid, wait=True)
        if marks is not None and self._entry in marks:
            return True
        member = read_member(pid)
        if member is None:
            return False
        return True if self._leads(member.session) else None if marks is None else False


async def end_below(spared: set[int], *, grace: float) -> None:
    """End every process that descends from this one, but for `spared`: SIGTERM, grace, SIGKILL. For the very end."""

    async def hit(number: int, *, again: bool) -> None:
        done: set[Member] = set()
        while members := _below(children_of_thread(os.getpid()), spared):
            for member in members:
                if again or member not in done:
                    send(member, number)
                    send(member, signal.SIGCONT)
            done.update(members)
            with trio.move_on_after(_LOOK_AGAIN):
                await _gone(members)

    if grace > 0:
        with trio.move_on_after(grace):
            # Not twice: to some a second SIGTERM means «at once».
            await hit(signal.SIGTERM, again=False)
    with trio.move_on_after(KILL_PATIENCE):
        await hit(signal.SIGKILL, again=True)


def kill_below(spared: set[int]) -> None:
    """Kill every process that descends from this one, whichever of its threads has started it, but for `spared`; and
    wait for none.
    """
    for member in _below(children_of(os.getpid()), spared):
        send(member, signal.SIGKILL)


def _below(children: Iterable[int], spared: set[int]) -> list[Member]:
    found: set[int] = set()
    pending = [pid for pid in children if pid not in spared]
    while pending:
        found.add(pid := pending.pop())
        pending += [child for child in children_of(pid) if child not in found]
    return [member for pid in found if (member := read_member(pid)) is not None]


async def _gone(members: list[Member]) -> None:
    """Wait until all of these have ended."""
    for member in members:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(member.pid)
            try:
                if same(member):
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
