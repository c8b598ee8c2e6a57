"""What is written down of each job, so that the next supervisor can go on with it when this one dies at any instant.

A job has a *page*: a ledger with all that is not in its descriptors, and four groups of those with whoever keeps
them. `j`: the ledger and the tapes, for as long as the job is remembered. `l`: the ends of its pipes or its terminal
that this side reads, and its pidfd, until its output has ended. `i`: the end of its input, which must not be kept a
moment longer than it is open here, or the program would wait for the end of its input. `s`: the files behind its tapes,
as long as these; apart, since a program writes all that is in them, and could write what looks like a page.

The page is written before the program is started and after each change of what is on it. What changes with every
key that is typed is a number in the ledger. What is written down of the session itself is in sessionpage.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import asdict
from os import fstat
from typing import TYPE_CHECKING, Any

import msgpack

from guestd.process.members import read_member
from guestd.session.memory import Journal, LedgerMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from guestd.ledger import Ledger
    from guestd.process.reaper import Reaper
    from guestd.process.store import FdStore
    from guestd.session.job import Job
    from guestd.session.keyboard import Typist
    from guestd.session.recording import Recording

_log = logging.getLogger("guestd.chronicle")
#: A request may be large (an environment of a megabyte); what is written down of it is not.
ENTRY_MAX = 512 * 1024
#: Numbers in the ledger: which file is the journal of the input, and the tape of each stream (from 1 on), and the tail
#: behind it; how far a terminal's output was looked at; whether the program may have been started, and as which
#: process.
JOURNAL_INODE, TAPE_INODE, TAIL_INODE, LOOKED_TO, SPAWNING, PID = 0, 1, 5, 10, 11, 12
#: Who types now: which of two places holds it, and in each the slot + 1, how much had gone in, and how much of theirs.
WRITER, WRITER_PLACES = 13, 14
#: How much the program has of what each of those typed who have a slot.
TYPED = 32
#: The status of the first process, with a bit that says that there is one.
EXIT, EXIT_KNOWN = 20, 1 << 32
#: To whom its end was told: a bit for the audit log and one for the exporter.
TOLD, AUDITED, EXPORTED = 21, 1, 2
#: The file behind the tape of each stream (from 1 on).
SPOOL_INODE = 22
JOB_GROUP, LIVE_GROUP, INPUT_GROUP, SPOOL_GROUP = "j", "l", "i", "s"
GROUPS = (JOB_GROUP, LIVE_GROUP, INPUT_GROUP, SPOOL_GROUP)
VERSION = 1
#: What a job may come to have kept: page and journal, tapes and tails, pipes or a terminal with its relay, its pidfd.
_FDS_OF_A_JOB = 10


class Chronicle:
    """Gives each job its page, where somebody keeps descriptors."""

    def __init__(self, store: FdStore, reaper: Reaper) -> None:
        self.store = store
        self.reaper = reaper
        #: Has one survive no longer whom that costs the least; False when there is nobody.
        self.spare_one: Callable[[], bool] = _nobody
        self._has_said = False

    def make_room(self, count: int) -> bool:
        """Room for so many descriptors, at the cost of what has ended."""
        while self.store.room < count:
            if not self.spare_one():
                if not self._has_said:
                    _log.warning(
                        "no more descriptors are kept for the next supervisor (init.fd_store, FileDescriptorStoreMax):"
                        " what is started now does not survive this one"
                    )
                self._has_said = True
                return False
        return True

    def forget(self, mark: str) -> None:
        """Have nothing kept of that job any more."""
        for group in GROUPS:
            self.store.forget(group + mark)

    def open(self, job: Job) -> None:
        """A page for a job that is about to start."""
        if not self.store.there or job.result is not None or not self.make_room(_FDS_OF_A_JOB):
            return
        try:
            memory = LedgerMemory(ENTRY_MAX)
        except OSError as error:
            _log.warning("job %s will not survive this supervisor: %s", job.id, error.strerror)
            return
        job.page = Page(self, job, memory)
        job.page.begin()


class Page:
    """See the module."""

    def __init__(self, chronicle: Chronicle, job: Job, memory: LedgerMemory, pid_started: int = 0) -> None:
        self._chronicle, self._store, self._reaper = chronicle, chronicle.store, chronicle.reaper
        #: The next supervisor will find it.
        self.survives = True
        self._job = job
        self._memory = memory
        self._live = True
        self._has_input = job.input is not None
        self._pid_started = pid_started

    @property
    def ledger(self) -> LedgerMemory:
        return self._memory

    def begin(self) -> None:
        """Before the program is started."""
        job = self._job
        self.write()
        kept = [self._memory.fd]
        if job.input is not None:
            job.input.journal = journal = Journal()
            self._memory.ledger.set_number(JOURNAL_INODE, fstat(journal.fd).st_ino)
            kept.append(journal.fd)
        self._keep(JOB_GROUP, kept)
        self._keep(LIVE_GROUP, [recording.fd for recording in job.recordings])
        if job.input is not None and job.input.fd is not None:
            self._keep(INPUT_GROUP, [job.input.fd])
        self.listen()

    def _keep(self, group: str, fds: Sequence[int]) -> None:
        """All of them, or nothing of the job: of half of it the next supervisor would make something else."""
        if self.survives and not (
            self._chronicle.make_room(len(fds)) and self._store.keep(group + self._job.mark, fds)
        ):
            self.give_up()

    def give_up(self) -> None:
        """It does not survive. What is written down from now on nobody reads."""
        self.survives = False
        self._chronicle.forget(self._job.mark)

    @property
    def is_at_rest(self) -> bool:
        """It has ended, and left nothing that is still read."""
        return self._job.result is not None and not self._live

    def listen(self) -> None:
        """Hear of what is to be kept, and what no longer."""
        if self._job.input is not None:
            self._job.input.closing = self.input_closes
        for recording in self._job.recordings:
            recording.survives = self

    def spawning(self) -> None:
        """From now on its program may run; before, it certainly has not."""
        self._memory.ledger.set_number(SPAWNING, 1)
        self._reaper.watch(self)

    @property
    def witness(self) -> tuple[int, int]:
        """Where a new process writes down its number, or that it came to nothing."""
        return self._memory.fd, self._memory.ledger.place(PID)

    @property
    def witnessed(self) -> int:
        """What was written there: 0 before anything was."""
        return self._memory.ledger.number(PID)

    def started(self, pid: int) -> None:
        """Its program runs."""
        # At once: all else about it can be found with this.
        self._memory.ledger.set_number(PID, pid)
        member = read_member(pid)
        self._pid_started = 0 if member is None else member.started
        self.write()
        self._reaper.unwatch(self)
        if self.exit_status is None:
            self._reaper.note(pid, self.exits)
        # The kernel tells whoever holds this how the process ended, long after everybody else has forgotten.
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            self._keep(LIVE_GROUP, [pidfd])
            os.close(pidfd)

    def exits(self, status: int) -> None:
        """Its first process has ended, so."""
        self._memory.ledger.set_number(EXIT, status | EXIT_KNOWN)

    @property
    def exit_status(self) -> int | None:
        """How its first process ended, when that is known."""
        noted = self._memory.ledger.number(EXIT)
        return noted & ~EXIT_KNOWN if noted & EXIT_KNOWN else None

    def tell(self, what: int) -> None:
        """Its end has been told, there: the next supervisor need not."""
        self._memory.ledger.set_number(TOLD, self._memory.ledger.number(TOLD) | what)

    def is_told(self, what: int) -> bool:
        return bool(self._memory.ledger.number(TOLD) & what)

    def keep_tape(self, recording: Recording) -> None:
        """The first byte is there to be read."""
        if recording.memory_fd is not None:
            self._memory.ledger.set_number(TAPE_INODE + recording.stream, fstat(recording.memory_fd).st_ino)
            self._keep(JOB_GROUP, [recording.memory_fd])
        if recording.spool is not None:
            self._memory.ledger.set_number(SPOOL_INODE + recording.stream, fstat(recording.spool.fd).st_ino)
            self._keep(SPOOL_GROUP, [recording.spool.fd])

    def keep_tail(self, recording: Recording, fd: int) -> None:
        """Output that its tape had no room for is in that file."""
        self._memory.ledger.set_number(TAIL_INODE + recording.stream, fstat(fd).st_ino)
        self._keep(JOB_GROUP, [fd])

    def keep_relay(self, fds: Sequence[int]) -> None:
        """A pipe that output passes through."""
        self._keep(LIVE_GROUP, fds)

    def input_closes(self) -> None:
        """The input's end is about to be closed here."""
        if self._has_input:
            self._has_input = False
            self._store.forget(INPUT_GROUP + self._job.mark)

    def set_number(self, which: int, value: int) -> None:
        """A fact that changes all the time."""
        self._memory.ledger.set_number(which, value)

    def write(self) -> None:
        """Everything as it is now."""
        entry = {**self._job.facts(), **_entry(self._job), "pid_started": self._pid_started}
        try:
            self._memory.ledger.write(msgpack.packb(entry, unicode_errors="surrogateescape"))
        except ValueError as error:
            # Too large. What can be cut is what is only shown.
            _log.warning("job %s: %s; only the essential is written down", self._job.id, error)
            entry["about"], entry["asked"] = {}, {}
            with suppress(ValueError):
                self._memory.ledger.write(msgpack.packb(entry, unicode_errors="surrogateescape"))

    def ended(self) -> None:
        """Its result is there."""
        self._reaper.unwatch(self)
        self.write()
        self.output_ended()

    def output_ended(self) -> None:
        """Give back the ends of what nobody writes to any more. What was left behind still needs its reader."""
        if self._live and not any(recording.is_open for recording in self._job.recordings):
            self._live = False
            self._store.forget(LIVE_GROUP + self._job.mark)

    def close(self) -> None:
        """The job is forgotten."""
        self._reaper.unwatch(self)
        self.input_closes()
        if self._live:
            self._live = False
            self._store.forget(LIVE_GROUP + self._job.mark)
        self._store.forget(JOB_GROUP + self._job.mark)
        if any(recording.spool is not None for recording in self._job.recordings):
            self._store.forget(SPOOL_GROUP + self._job.mark)
        if self._job.input is not None and self._job.input.journal is not None:
            self._job.input.journal.close()
        self._memory.close()

    # ------------------------------------------------------------------------------- typing, see keyboard.py

    def settled(self, typist: Typist) -> None:
        if typist.slot is not None:
            self._memory.ledger.set_number(TYPED + typist.slot, typist.settled)

    def sending(self, typist: Typist | None, passed_on: int) -> None:
        ledger = self._memory.ledger
        slot, settled = (0, 0) if typist is None or typist.slot is None else (typist.slot + 1, typist.settled)
        place = 1 - ledger.number(WRITER)
        for at, value in enumerate((slot, passed_on, settled)):
            ledger.set_number(WRITER_PLACES + 3 * place + at, value)
        # From this store on it counts.
        ledger.set_number(WRITER, place)

    def joined(self) -> None:
        self.write()


def typed(ledger: Ledger, slots: Mapping[str, int], passed_on: int) -> dict[str, int]:
    """How much the program has of what each of those typed, when so much has gone in from all."""
    place = WRITER_PLACES + 3 * ledger.number(WRITER)
    writer, before, settled = (ledger.number(place + at) for at in range(3))
    return {
        name: settled + passed_on - before if slot + 1 == writer else ledger.number(TYPED + slot)
        for name, slot in slots.items()
    }


def _entry(job: Job) -> dict[str, Any]:
    by, end_with = job.ending_as
    return {
        "version": VERSION,
        "id": job.id,
        "kind": job.kind,
        "mark": job.mark,
        "about": job.about,
        "trace": job.trace,
        "shown_env": job.shown_env,
        "terms": asdict(job.terms),
        "started": job.started,
        "pid": job.pid,
        "cgroup": job.cgroup_path,
        "streams": [
            {
                "stream": recording.stream, "name": recording.name, "capacity": recording.capacity,
                "inode": None if recording.at_end else fstat(recording.fd).st_ino,
                "spool": None if recording.spool is None else [recording.spool.limit, recording.spool.patient],
            }
            for recording in job.recordings
        ],
        "input": job.input is not None,
        "ended_by": None if by is None else by.value,
        "end_with": end_with,
        "result": None if job.result is None else job.result.to_map(),
    }  # fmt: skip


def _nobody() -> bool:
    return False
