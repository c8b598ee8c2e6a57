"""The audit log: a record of each thing that was done; who, what, when, with which result, never the output.

What happens is noted in the loop, as it is told (see observe.py), in a bounded queue. A moment later a thread makes
records of it, masks what is secret, chains them and writes them down, so that a disk which does not answer holds up
nobody. What the queue had no room for is counted, and the next record that is written says how many it were.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from guestd.session.chronicle import AUDITED
from guestd.session.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from guestd.config import Settings
    from guestd.telemetry.journal import Journal
    from guestd.wire.chain import Head, Report

_log = logging.getLogger("guestd.audit")
#: How long a note waits for others to be written with it. What a kill -9 can cost.
GATHER = 0.05
#: Records written at once.
_BATCH = 1000
#: After a failure to write, doubled up to the second.
_AGAIN, _AGAIN_MAX = 1.0, 60.0
#: Looking at it is told apart from writing: neither waits for a thread that the other holds.
_WRITERS, _READERS = trio.CapacityLimiter(1), trio.CapacityLimiter(2)
#: Things of which the beginning is remembered at once.
_OPEN_MAX = 100_000
#: Kinds whose end alone is a record, which has their beginning in it. What is not here has two.
_ONLY_END = frozenset({"job", "resume", "stop", "workload_start", "mount", "unmount", "relay", "forward"})
#: Kinds that are no deeds of their own: a request has said the same already, or the guest's own programs do it.
_UNRECORDED = frozenset({"attachment", "forward", "relay"})


class _Note(NamedTuple):
    """What is known of a record in the loop. `thing`: whose facts are looked at in the thread."""

    at: float
    event: str
    who: str
    facts: Mapping[str, object]
    job: Job | None = None
    #: The supervisor before this one may have told it.
    again: bool = False


class Audit:
    """See the module. An observer; `run` is its task. `listeners` hear of lines that were written, and must not
    wait.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], tuple[float, float]],
        identity: Callable[[], Mapping[str, object]],
    ) -> None:
        audit = settings.audit
        self.path = audit.path or f"{settings.runtime_dir}/audit.jsonl"
        self._settings = settings
        self._clock = clock
        self._identity = identity
        self._notes: deque[_Note] = deque()
        #: What was said of things when they began.
        self._begun: dict[Hashable, Mapping[str, object]] = {}
        self._news = trio.Event()
        self._one = trio.Lock()
        self._journal: Journal | None = None
        self._writing: list[_Note] = []
        self._closed = self._given_up = False
        self._told_before: set[tuple[object, object]] = set()
        #: How the log was found, until that is written.
        self._opening: Mapping[str, object] | None = None
        #: Notes that the queue had no room for: altogether, and since a record has last said so.
        self.dropped = self._untold = 0
        self.written = 0
        self.failure: str | None = None
        self._failing_since: float | None = None
        self.listeners: list[Callable[[list[bytes]], None]] = []
        #: Called when there is more to read.
        self.followers: list[Callable[[], None]] = []

    # ------------------------------------------------------------------------------------ hearing, in the loop

    def began(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None:
        if kind in _UNRECORDED or isinstance(thing, Job):
            return
        if len(self._begun) < _OPEN_MAX:
            self._begun[thing] = facts
        if kind not in _ONLY_END:
            self._note(f"{kind}_began", facts)

    def ended(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None:
        if kind in _UNRECORDED:
            return
        begun = self._begun.pop(thing, None)
        self._note(
            f"{kind}_ended",
            facts if begun is None else {**begun, **facts},
            thing if isinstance(thing, Job) else None,
        )

    def did(self, deed: str, who: str, facts: Mapping[str, object]) -> None:
        self._note(deed, {**facts, "who": who})

    def ended_before(self, job: Job) -> None:
        """It ended under the supervisor before this one, which may not have told."""
        self._note("job_ended", {}, job, again=True)

    def _note(
        self, event: str, facts: Mapping[str, object], job: Job | None = None, *, again: bool = False
    ) -> None:
        if self._closed:
            return
        if len(self._notes) >= self._settings.audit.queue:
            self._notes.popleft()
            self.dropped += 1
            self._untold += 1
        self._notes.append(
            _Note(self._clock()[0], event, str(facts.get("who") or "guestd"), facts, job, again)
        )
        self._news.set()

    # ------------------------------------------------------------------------------------ writing

    async def run(self) -> None:
        """Write until cancelled."""
        patience = _AGAIN
        while True:
            await self._news.wait()
            self._news = trio.Event()
            await trio.sleep(GATHER)
            if await self._write():
                patience = _AGAIN
            else:
                self._news.set()
                await trio.sleep(patience)
                patience = min(2 * patience, _AGAIN_MAX)

    async def close(self, why: str) -> None:
        """Write what is left and a last record that says that it is the last."""
        self._note("log_closed", {"why": why})
        self._closed = True
        if await self._write() and self._journal is not None and not self._given_up:
            self._journal.close()

    async def settle(self) -> None:
        """What has been noted by now is written."""
        await self._write()

    async def _write(self) -> bool:
        """Write all that is noted. False when that cannot be done now; what it was for waits on."""
        async with self._one:
            while (self._notes or self._writing) and not self._given_up:
                if not self._writing:
                    self._writing = [self._notes.popleft() for _ in range(min(_BATCH, len(self._notes)))]
                untold = self._untold
                try:
                    lines = await trio.to_thread.run_sync(
                        self._write_down, self._writing, untold, abandon_on_cancel=True, limiter=_WRITERS
                    )
                except OSError as error:
                    self._failed(error)
                    return False
                except trio.Cancelled:
                    # Whether they are written only the thread knows, which nobody waits for any more.
                    self._given_up = self._closed = True
                    raise
                self._untold -= untold
                self._written(lines)
        return True

    def _failed(self, error: OSError) -> None:
        why = f"{self.path}: {error.strerror}"
        if isinstance(error, BlockingIOError):
            why = f"{self.path}: another guestd writes it; give this one another `audit.path`"
        if self.failure is None:
            self._failing_since = self._clock()[0]
            _log.warning("the audit log cannot be written, and is tried again: %s", why)
        self.failure = why

    def _written(self, lines: list[bytes]) -> None:
        done, self._writing = self._writing, []
        if self.failure is not None:
            _log.warning("the audit log is written again")
        self.failure = self._failing_since = None
        self.written += len(lines)
        for note in done:
            if note.job is not None and note.job.page is not None:
                note.job.page.tell(AUDITED)
        for listener in self.listeners:
            listener(lines)
        for follower in list(self.followers):
            follower()

    def _write_down(self, notes: list[_Note], untold: int) -> list[bytes]:
        """In the thread. Its imports too: nothing else of guestd needs them."""
        from guestd.telemetry.journal import Journal, lately_ended
        from guestd.telemetry.record import record_of

        audit = self._settings.audit
        records: list[Mapping[str, object]] = []
        if self._journal is None:
            journal = Journal(self.path, mode=audit.mode, limit=audit.limit, files=audit.files)
            begun = journal.open()
            self._journal = journal
            # A kill -9 may have come between a record and the note that it was written.
            self._told_before = lately_ended(self.path) if begun["after"] == "died" else set()
            self._opening = {
                "at": notes[0].at, "event": "log_opened", "who": "guestd", **self._identity(), **begun,
            }  # fmt: skip
        if self._opening is not None:
            records.append(self._opening)
        if untold:
            records.append({"at": self._clock()[0], "event": "dropped", "who": "guestd", "count": untold})
        rule = self._settings.telemetry.arguments
        for note in notes:
            if (
                note.again
                and note.job is not None
                and (note.job.id, note.job.started_at) in self._told_before
            ):
                continue
            records.append(record_of(note.at, note.event, note.who, note.facts, note.job, rule))
        lines = self._journal.append(records)
        self._opening = None
        return lines

    # ------------------------------------------------------------------------------------ reading

    @property
    def head(self) -> Head | None:
        return None if self._journal is None else self._journal.head

    async def verify(self) -> Report:
        """Check the whole log as it is on the disk. Raises OSError."""
        from guestd.telemetry.journal import read_lines
        from guestd.wire.chain import verify

        await self._write()
        async with self._one:
            head = self.head
            return await trio.to_thread.run_sync(
                lambda: verify(read_lines(self.path), head, own=True),
                abandon_on_cancel=True,
                limiter=_READERS,
            )

    async def look(self, begin: Callable[[], Iterable[bytes]]) -> list[bytes]:
        """Lines from the files, while nothing is written to them."""
        async with self._one:
            return await trio.to_thread.run_sync(
                lambda: list(begin()), abandon_on_cancel=True, limiter=_READERS
            )

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        head = self.head
        return {
            "path": self.path,
            "written": self.written,
            "waiting": len(self._notes) + len(self._writing),
            "dropped": self.dropped,
            "head": None if head is None else {"n": head.n, "hash": head.hash},
            "failure": self.failure,
            "failing_since": self._failing_since,
        }
