"""Going on with the jobs of the supervisor before this one: from their pages and descriptors back to jobs.

Whoever kept the descriptors gives them back under the names that `chronicle` has chosen. Nothing about them is
believed that they do not prove: a ledger and a tape have their marks, a pipe its inode, a process the moment it began.
What does not fit together is said in the log and given back.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from contextlib import suppress
from functools import partial
from stat import S_ISFIFO
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgpack

from guestd.ledger import HEADER_SIZE, is_ledger
from guestd.process.cgroup import Cgroup
from guestd.process.launcher import NEVER
from guestd.process.statuses import open_pidfd
from guestd.session.chronicle import (
    GROUPS,
    JOURNAL_INODE,
    LOOKED_TO,
    PID,
    SPAWNING,
    SPOOL_INODE,
    TAIL_INODE,
    TAPE_INODE,
    VERSION,
    Page,
    typed,
)
from guestd.session.input import Input
from guestd.session.job import Job
from guestd.session.memory import Journal, LedgerMemory, TapeMemory
from guestd.session.recording import NO_FD, Recording
from guestd.session.sessionpage import SESSION_GROUP
from guestd.session.shell import ShellJob
from guestd.session.shellpage import facts_of
from guestd.session.spool import Spool
from guestd.session.terms import Terms
from guestd.wire.result import EndedBy, Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.session.shell import Shell
    from guestd.session.terms import Surroundings
    from guestd.session.trace import Trace

_MARK_SIZE = 16


class Kept(NamedTuple):
    """The descriptors of one job, by group."""

    job: list[int]
    live: list[int]
    input: list[int]
    spool: list[int]

    def close(self) -> None:
        for fd in (*self.job, *self.live, *self.input, *self.spool):
            os.close(fd)


def sort(handed: Mapping[str, list[int]]) -> dict[str, Kept]:
    """What was handed over, by the mark of its job."""
    found: defaultdict[str, Kept] = defaultdict(lambda: Kept([], [], [], []))
    for name, fds in handed.items():
        group, mark = name[:1], name[1:]
        if group in GROUPS and len(mark) == _MARK_SIZE:
            found[mark][GROUPS.index(group)].extend(fds)
    return dict(found)


def is_kept(name: str) -> bool:
    """Is it the name of something that a supervisor has had kept, and not of a socket to listen on?"""
    return name == SESSION_GROUP or (name[:1] in GROUPS and len(name) == 1 + _MARK_SIZE)


class NotBegun(Exception):
    """Its program was never started, and whoever asked for it has not been told that it was: they will ask again."""


class Lost(Exception):
    """These descriptors do not make a job."""


def adopt(mark: str, kept: Kept, around: Surroundings, shells: Shell) -> tuple[Job, dict[str, Any]]:
    """The job that these descriptors are, not yet going on; and what else its page says. Raises Lost, OSError."""
    memory, entry = _read_page(kept.job)
    if entry["pid"] is None and entry["result"] is None:
        number = memory.ledger.number(PID)
        if number == NEVER or not memory.ledger.number(SPAWNING):
            memory.close()
            raise NotBegun
        entry["pid"] = number or None
    terms = Terms(**entry["terms"])
    kind = entry["kind"]
    job = (ShellJob if kind == "shell" else Job)(entry["id"], kind, mark, terms, around)
    job.about = entry["about"]
    job.trace, job.shown_env = _trace(entry.get("trace")), entry.get("shown_env") or {}
    tapes = _tapes(kept.job, memory, entry)
    if isinstance(job, ShellJob):
        for stream in entry["streams"]:
            master = _by_inode(kept.live, stream["inode"], is_terminal=True)
            relay = _relay(kept.live)
            shells.furnish_again(job, entry, master, relay, tapes.get(stream["stream"]), around)
        if job.terminal is not None:
            job.terminal.begin_at(memory.ledger.number(LOOKED_TO))
        if job.terminal is not None and job.terminal.keyboard is not None:
            keyboard = job.terminal.keyboard
            keyboard.journal = journal = _journal(kept.job, memory)
            slots: dict[str, int] = entry["typists"]
            for name, offset in typed(
                memory.ledger, slots, 0 if journal is None else journal.passed_on
            ).items():
                keyboard.recall(name, slots[name], offset)
    else:
        for stream in entry["streams"]:
            tape = tapes.get(stream["stream"])
            recording = Recording(
                stream["stream"], stream["name"], _by_inode(kept.live, stream["inode"]), stream["capacity"],
                job.viewers, job.stream_changed, _spool(kept.spool, memory, stream, tape), tape,
            )  # fmt: skip
            job.recordings.append(recording)
        if entry["input"]:
            # Without a descriptor its end was reached: what is still sent is known already, or nobody reads it.
            journal = _journal(kept.job, memory)
            job.input = Input(
                kept.input.pop() if kept.input else None, 0 if journal is None else journal.passed_on
            )
            job.input.journal = journal
    job.facts = partial(facts_of, job) if isinstance(job, ShellJob) else lambda: {"digest": entry["digest"]}
    _put_tails(kept.job, memory, job)
    job.page = Page(around.chronicle, job, memory, int(entry["pid_started"]))
    job.page.listen()
    return job, entry


def go_on(job: Job, entry: Mapping[str, Any], kept: Kept) -> None:
    """Take up where the other supervisor left off."""
    started = tuple(entry["started"])
    if entry["result"] is not None:
        job.ended_before(Result.from_map(entry["result"]), started)
        return
    pid, pid_started = entry["pid"], int(entry.get("pid_started") or 0)
    pidfd = _pidfd(kept.live)
    if pid is not None and pidfd is None:
        pidfd = open_pidfd(pid, pid_started, job.mark)
    by, path = entry["ended_by"], entry["cgroup"]
    job.go_on(
        pid, pidfd, started, None if path is None else Cgroup(path), None if by is None else EndedBy(by),
        tuple(entry["end_with"]),
    )  # fmt: skip


def _read_page(fds: list[int]) -> tuple[LedgerMemory, dict[str, Any]]:
    for fd in fds:
        if is_ledger(os.pread(fd, HEADER_SIZE, 0), os.fstat(fd).st_size):
            memory = LedgerMemory.adopt(fd)
            fds.remove(fd)
            break
    else:
        raise Lost("no ledger is among them")
    entry = cast(
        "dict[str, Any]", msgpack.unpackb(memory.ledger.read() or b"\x80", unicode_errors="surrogateescape")
    )
    if entry.get("version") != VERSION:
        memory.close()
        raise Lost(f"its ledger is of version {entry.get('version')}, and {VERSION} is known here")
    return memory, entry


def _trace(found: list[Any] | None) -> Trace | None:
    if found is None:
        return None
    # Only where telemetry is on: start-up is no time for what may not be needed.
    from guestd.session.trace import Trace

    return Trace(*found)


def _tapes(fds: list[int], memory: LedgerMemory, entry: Mapping[str, Any]) -> dict[int, TapeMemory]:
    found: dict[int, TapeMemory] = {}
    for stream in entry["streams"]:
        inode = memory.ledger.number(TAPE_INODE + stream["stream"])
        for fd in fds:
            if inode and os.fstat(fd).st_ino == inode:
                found[stream["stream"]] = TapeMemory.adopt(fd)
                fds.remove(fd)
                break
    return found


def _spool(
    fds: list[int], memory: LedgerMemory, stream: Mapping[str, Any], tape: TapeMemory | None
) -> Spool | None:
    fd = _by_inode(fds, memory.ledger.number(SPOOL_INODE + stream["stream"]) or None)
    if fd == NO_FD:
        return None
    limit, patient = stream["spool"]
    return Spool(fd, limit, patient=patient, oldest=0 if tape is None else tape.tape.start)


def _put_tails(fds: list[int], memory: LedgerMemory, job: Job) -> None:
    for recording in job.recordings:
        inode = memory.ledger.number(TAIL_INODE + recording.stream)
        for fd in fds:
            if inode and os.fstat(fd).st_ino == inode:
                recording.put_tail(fd)
                recording.stop_recording()


def _journal(fds: list[int], memory: LedgerMemory) -> Journal | None:
    inode = memory.ledger.number(JOURNAL_INODE)
    for fd in fds:
        if inode and os.fstat(fd).st_ino == inode:
            fds.remove(fd)
            return Journal(fd)
    return None


def _relay(fds: list[int]) -> tuple[int, int] | None:
    """The only pipe among the descriptors of a terminal, the end to read from first."""
    ends = [fd for fd in fds if S_ISFIFO(os.fstat(fd).st_mode)]
    if len(ends) != 2:
        return None
    for fd in ends:
        fds.remove(fd)
    read, write = sorted(ends, key=lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
    return read, write


def _by_inode(fds: list[int], inode: int | None, *, is_terminal: bool = False) -> int:
    """Take the descriptor with that inode out of the list. All terminals have the same one, but a job has only one."""
    for fd in fds:
        if inode is not None and os.fstat(fd).st_ino == inode and os.isatty(fd) == is_terminal:
            fds.remove(fd)
            return fd
    return NO_FD


def _pidfd(fds: list[int]) -> int | None:
    for fd in fds:
        with suppress(OSError):
            if "pidfd" in os.readlink(f"/proc/self/fd/{fd}"):
                fds.remove(fd)
                return fd
    return None
