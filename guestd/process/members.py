"""Living processes, as /proc shows them: who they are, whose children, and which job's mark they bear.

A signal for exactly one of them goes through a pidfd, checked against the start time after opening: a number that was
reused is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import NamedTuple

from guestd.process.environment import MARK

_MARK = f"{MARK}=".encode()
#: An exec takes the kernel a fraction of a millisecond; a look, some 20 us.
_EXEC_LOOKS = 100
#: Of the flags in /proc/PID/stat: it ends, and executes nothing any more.
_PF_EXITING = 0x4


class Member(NamedTuple):
    """A living process: its pid means something only together with when it started."""

    pid: int
    name: str
    started: int
    session: int


def send(member: Member, number: int) -> bool:
    """Signal exactly this process. False when it has ended or may not be signalled."""
    try:
        pidfd = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return False
    try:
        if not same(member):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True


def same(member: Member) -> bool:
    """Does the pid still mean the process it meant?"""
    now = read_member(member.pid)
    return now is not None and now.started == member.started


def read_member(pid: int) -> Member | None:
    """The living process of that pid; None for one that has ended, reaped or not."""
    found = _read_stat(pid)
    if found is None:
        return None
    name, fields = found
    return Member(pid, name.decode("utf-8", "replace"), int(fields[19]), int(fields[3]))


def _read_stat(pid: int) -> tuple[bytes, list[bytes]] | None:
    """Its name and what stands behind that, from the state on; None for one that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold anything, spaces and parentheses too; its end is the last parenthesis.
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    # A zombie of more than one thread has lost its first, and goes on without it.
    if fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1:
        return None
    return head.partition(b"(")[2], fields


def children_of(pid: int) -> list[int]:
    """Its children, of whichever of its threads."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += children_of_thread(pid, thread)
    return found


def children_of_thread(pid: int, thread: int | str | None = None) -> list[int]:
    """The children of one thread, by default the first. That one also gets whatever the process adopts as
    subreaper.
    """
    try:
        with open(f"/proc/{pid}/task/{thread or pid}/children", "rb") as file:
            return [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def bears(pid: int, mark: str) -> bool:
    """Has that process the mark of that job?"""
    return f"{MARK}={mark}".encode() in (marks_of(pid, wait=True) or ())


class _Traces(NamedTuple):
    marks: list[bytes]
    session: int


class _Census:
    """Every process and the traces that it bears. Shared by all who ask in the same moment: each of two hundred jobs
    that end together looking at all their processes would keep the loop for seconds.
    """

    def __init__(self) -> None:
        self._found: dict[int, _Traces] = {}
        self._good_until = 0.0

    def take(self) -> dict[int, _Traces]:
        begun = time.monotonic()
        if begun >= self._good_until:
            self._found = {
                member.pid: _Traces(marks_of(member.pid) or [], member.session)
                for name in os.listdir("/proc")
                if name.isdecimal() and (member := read_member(int(name)))
            }
            # As long again as it took: who is forked meanwhile has a parent that is known, or has lost it and is this
            # process's own child; both are looked at afresh.
            self._good_until = 2 * time.monotonic() - begun
        return self._found


census = _Census()


def marks_of(pid: int, *, wait: bool = False) -> list[bytes] | None:
    """The marks of a process. `wait`: look again at one that shows nothing at all, for as long as an exec may take.
    None for one that is at its end: its memory is gone, its children are still its own.
    """
    environment = _environment(pid)
    for _ in range(_EXEC_LOOKS if wait else 0):
        # Nothing at all: it may be in the middle of an exec, where the new program has no memory to speak of yet. It is
        # about to have the mark that it had a moment ago. The kernel fills in the arguments before the environment, so
        # the environment is read once more behind them.
        if environment != b"":
            break
        found = _read_stat(pid)
        if found is None:
            return []
        if int(found[1][6]) & _PF_EXITING:
            return None
        has_arguments = _read(pid, "cmdline") != b""
        environment = _environment(pid)
        if has_arguments:
            break
        os.sched_yield()
    if not environment or _MARK not in environment:
        return []
    return [entry for entry in environment.split(b"\0") if entry.startswith(_MARK)]


def _environment(pid: int) -> bytes | None:
    """Its first thread shows none when it has ended; the others, that go on without it, still do."""
    found = _read(pid, "environ")
    if found == b"":
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                if not found and thread != str(pid):
                    found = _read(pid, f"task/{thread}/environ") or b""
    return found


def _read(pid: int, name: str) -> bytes | None:
    """None for another user's process, or one that is gone; nothing, for one that has no memory any more."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except ProcessLookupError:
        # As newer kernels say it (6.18 does; 6.1 has an empty file).
        return b""
    except OSError:
        return None
