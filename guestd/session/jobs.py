"""All jobs of the session, by id: starting each id once, ending all of them, forgetting ended ones to stay in bounds.

An id that a client chose makes starting safe to repeat: the same request under it is the same job, another
one is a conflict. A kill that comes before its start is remembered, and wins.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from guestd.errors import Conflict, LimitReached, NotFound, ShuttingDown
from guestd.process.tree import end_below, kill_below
from guestd.session.adoption import NotBegun, adopt, go_on
from guestd.session.earlykills import EarlyKills
from guestd.session.holdings import Holdings
from guestd.session.jobid import check_id, new_id
from guestd.session.shell import ShellJob
from guestd.session.terms import Surroundings
from guestd.session.timers import Timers
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from guestd.config import Settings
    from guestd.process.cgroup import Cgroups
    from guestd.process.identity import Identity
    from guestd.process.reaper import Reaper
    from guestd.process.spawn import Spawner
    from guestd.process.statuses import Statuses
    from guestd.session.adoption import Kept
    from guestd.session.chronicle import Chronicle
    from guestd.session.command import Command, CommandRequest
    from guestd.session.job import Job
    from guestd.session.program import ProgramRequest
    from guestd.session.shell import Shell, ShellRequest

_log = logging.getLogger("guestd.jobs")
JobT = TypeVar("JobT", bound="Job")


#: Two streams each.
_TAPES_OF_A_COMMAND = 2
#: Descriptors a running job may come to hold: its three pipes, two tapes, and a process that is being ended. Of an
#: ended one the tapes are left.
FDS_OF_A_JOB, _FDS_OF_A_KEPT_JOB = 8, 6
#: Descriptors for everything else: listeners, and a look at /proc, without which no tree can be ended.
FDS_IN_RESERVE = 64


class Jobs:
    """See the module. Everything here happens between two checkpoints: no lock, no half-made entry."""

    def __init__(
        self,
        settings: Settings,
        command: Command,
        shell: Shell,
        *,
        spawner: Spawner,
        reaper: Reaper,
        cgroups: Cgroups | None,
        clock: Callable[[], tuple[float, float]],
        chronicle: Chronicle,
        statuses: Statuses,
        kept: Mapping[str, Kept],
    ) -> None:
        """`kept`: what is left of the jobs of the supervisor before this one."""
        self._chronicle = chronicle
        chronicle.spare_one = self._spare_one
        self._statuses = statuses
        self._found = kept
        self._settings = settings
        self._command = command
        self._shell = shell
        self._spawner = spawner
        self._reaper = reaper
        self._cgroups = cgroups
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._digests: dict[str, bytes] = {}
        self._holdings = Holdings()
        self.early_kills = EarlyKills(settings.limits.remembered_kills)
        # Jobs that are forgotten and still left something running in their cgroup.
        self._lingering: list[Job] = []
        self._stopping = False
        self._closing = False
        self._around: Surroundings | None = None
        self.started = 0
        #: Ids that only `start_own` may use.
        self.reserved: set[str] = set()
        #: Ids of jobs that `stop` leaves to whoever has started them: others need them until they have ended.
        self.last: set[str] = set()
        #: Hear of every job that has ended.
        self.listeners: list[Callable[[Job], None]] = []

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The jobs' own nursery: nothing in it belongs to a connection. Forgets what was kept long enough."""
        timers = Timers()
        async with trio.open_nursery() as nursery:
            self._around = Surroundings(
                spawner=self._spawner,
                reaper=self._reaper,
                cgroups=self._cgroups,
                nursery=nursery,
                clock=self._clock,
                timers=timers,
                chronicle=self._chronicle,
                statuses=self._statuses,
                ended=self._has_ended,
            )
            nursery.start_soon(timers.run)
            self._chronicle.store.run_in(nursery)
            for mark, kept in self._found.items():
                self._adopt(mark, kept, self._around)
            # Now everybody who waits for a status has said so.
            nursery.start_soon(self._statuses.run)
            task_status.started()
            while True:
                await self._holdings.wait_for_expiry()
                self._expire()

    def _adopt(self, mark: str, kept: Kept, around: Surroundings) -> None:
        """Go on with a job of the supervisor before this one."""
        try:
            job, entry = adopt(mark, kept, around, self._shell)
            self._jobs[job.id] = job
            if entry.get("digest"):
                self._digests[job.id] = entry["digest"]
            if entry["result"] is None:
                self._holdings.reserve(job.id, sum(recording.capacity for recording in job.recordings))
            go_on(job, entry, kept)
            if isinstance(job, ShellJob):
                self._shell.go_on(job, around)
            if job.result is not None and job.id not in self._holdings.ended:
                self._has_ended(job)
        except NotBegun:
            self._chronicle.forget(mark)
        except Exception as error:  # noqa: BLE001  whatever it is
            # One that cannot be gone on with must not cost the others; nor come back at the next start.
            _log.exception("what was kept of a job (%s) does not make one: %s", mark, error)
            self._chronicle.forget(mark)
            for job_id in [each.id for each in self if each.mark == mark]:
                self._forget(job_id)
        finally:
            kept.close()

    # -------------------------------------------------------------------------------------- finding

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def get(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound(
                f"there is no job {job_id!r}: it never was, or it ended and was forgotten (command.retain); "
                "`guestctl ps` lists those that are kept",
                id=job_id,
            )
        return job

    def knows(self, job_id: str) -> bool:
        return job_id in self._jobs

    @property
    def running(self) -> int:
        return len(self._jobs) - len(self._holdings.ended)

    # ------------------------------------------------------------------------------------- starting

    def start_command(self, job_id: str | None, request: CommandRequest) -> tuple[Job, bool]:
        """The job of that id, and whether it was made just now."""
        digest = None
        if job_id is None:
            job_id = new_id("c", self._jobs)
        else:
            self._check_free(job_id)
            digest = request.digest()
            known = self._jobs.get(job_id)
            if known is not None:
                if self._digests.get(job_id) != digest:
                    raise Conflict(
                        f"job {job_id!r} exists and was asked for differently; choose another id, or repeat that",
                        id=job_id,
                    )
                return known, False
        job = self._start(self._command.begin, job_id, request, _TAPES_OF_A_COMMAND)
        if digest is not None:
            self._digests[job_id] = digest
        return job, True

    def start_shell(self, job_id: str | None, request: ShellRequest) -> tuple[ShellJob, bool]:
        """The living shell of that id, or a new one; and whether it was made just now."""
        if job_id is None:
            job_id = new_id("s", self._jobs)
        else:
            self._check_free(job_id)
            known = self._jobs.get(job_id)
            if known is not None and known.kind != "shell":
                raise Conflict(
                    f"job {job_id!r} is a command; `attach` shows it, and a shell needs another id", id=job_id
                )
            if known is not None and known.result is None:
                shell = cast("ShellJob", known)
                shell.check_same(job_id, request)
                return shell, False
            if known is not None:
                # It has ended: somebody who opens it wants a shell, not a memory.
                self._forget(job_id)
        limit = self._settings.limits.shells
        running = sum(1 for job in self._jobs.values() if job.kind == "shell" and job.result is None)
        if running >= limit:
            raise LimitReached(
                f"{running} shells are open and the limit is {limit}; end some, or raise limits.shells",
                limit=limit, setting="limits.shells",
            )  # fmt: skip
        return self._start(self._shell.begin, job_id, request, 1), True

    def start_own(self, job_id: str, request: CommandRequest) -> Job:
        """A command of guestd's own: there are few of them, so no limit and no stop refuses one."""
        known = self._jobs.get(job_id)
        if known is not None:
            if known.result is None:
                raise Conflict(f"job {job_id!r} of guestd's own runs already", id=job_id)
            self._forget(job_id)
        return self._start(self._command.begin, job_id, request, _TAPES_OF_A_COMMAND, own=True)

    def identity_of(self, user: str) -> Identity:
        """A user by name or number; the empty name is whoever commands run as. Raises StartFailed."""
        return self._command.identity_of(user)

    def rename_ended(self, job_id: str, new_id: str) -> None:
        """Keep an ended job under another id, so that its own is free."""
        if new_id in self._jobs:
            self._forget(new_id)
        job = self._jobs[new_id] = self._jobs.pop(job_id)
        job.id = new_id
        self._holdings.rename(job_id, new_id)

    def refuse_new(self) -> None:
        """From now on nothing new is started."""
        self._stopping = True

    def _check_free(self, job_id: str) -> None:
        check_id(job_id)
        if job_id in self.reserved and job_id not in self._jobs:
            raise Conflict(f"the id {job_id!r} is guestd's own; choose another", id=job_id)

    def _start(
        self,
        begin: Callable[..., JobT],
        job_id: str,
        request: ProgramRequest,
        tapes: int,
        *,
        own: bool = False,
    ) -> JobT:
        if not own:
            if self._stopping:
                raise ShuttingDown("the session is stopping: nothing new is started")
            self._admit(request.tape, tapes)
        assert self._around is not None
        killed = self.early_kills.take(job_id)
        self.started += 1
        job = begin(job_id, os.urandom(8).hex(), request, self._around, killed=killed)
        self._jobs[job_id] = job
        if job.result is not None:
            self._has_ended(job)
        else:
            self._holdings.reserve(job_id, request.tape * tapes)
        return job

    def _admit(self, tape: int, tapes: int) -> None:
        limits, holdings = self._settings.limits, self._holdings
        if self.running >= limits.jobs:
            raise LimitReached(
                f"{self.running} jobs are running and the limit is {limits.jobs}; end some, or raise limits.jobs",
                limit=limits.jobs, setting="limits.jobs",
            )  # fmt: skip
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A supervisor that has run out of descriptors cannot end what it has started, so it never comes to that.
        connections = limits.connections + self._settings.agent.connections
        spare = most - min(connections, most // 4) - FDS_IN_RESERVE
        while FDS_OF_A_JOB * (self.running + 1) + _FDS_OF_A_KEPT_JOB * len(holdings.ended) > spare:
            if not self._forget_oldest():
                raise LimitReached(
                    f"{self.running} jobs are running, and guestd may have {most} descriptors (RLIMIT_NOFILE); end some"
                    " jobs, or start guestd with a higher limit",
                    limit=most, setting="RLIMIT_NOFILE",
                )  # fmt: skip
        while holdings.reserved_bytes + holdings.kept_bytes + tape * tapes > limits.tapes:
            if not self._forget_oldest():
                raise LimitReached(
                    f"the tapes of all jobs may take {limits.tapes} bytes and {holdings.reserved_bytes} are taken; ask"
                    f" for a smaller `tape` than {tape}, or raise limits.tapes",
                    limit=limits.tapes, setting="limits.tapes",
                )  # fmt: skip

    # -------------------------------------------------------------------------------------- killing

    async def stop(self, grace: float) -> None:
        """Refuse what is new, and end all that runs, everything at once, each within `grace`. What finished commands
        have left running on purpose ends with the session too. Called again with less grace, it hurries.
        """
        self._stopping = True
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for job in [*self, *self._lingering]:
                if job.has_left:
                    nursery.start_soon(job.end_left, grace)
            ending = [job for job in self if job.id not in self.last]
            for job in ending:
                job.end(EndedBy.STOP, grace=grace)
            for job in ending:
                await job.ended.wait()
        # Whatever is still there came from jobs that are forgotten, or shed all traces of theirs.
        await end_below(self._spared(), grace=max(0.0, started + grace - trio.current_time()))

    def kill_rest(self) -> None:
        """Where the time for all of that is over: what still runs is killed, and nobody waits for it."""
        # All at once, and quickly. What a supervisor before this one has started is not below it.
        kill_below(self._spared())
        for job in [*self, *self._lingering]:
            tree = job.tree if job.id not in self.last and (job.result is None or job.has_left) else None
            if tree is not None and tree.adopted:
                tree.signal(signal.SIGKILL)

    def _spared(self) -> set[int]:
        """What is not a job's, or has its turn later."""
        launcher = self._spawner.launcher_pid
        last = (job.pid for job in self if job.id in self.last and job.pid is not None)
        return {*self._spawner.spared, *last, *(() if launcher is None else (launcher,))}

    def close(self) -> None:
        self._closing = True
        for job_id in list(self._jobs):
            self._forget(job_id)
        self._command.close()

    # ----------------------------------------------------------------------------------------- forgetting

    def _has_ended(self, job: Job) -> None:
        if self._jobs.get(job.id) is not job:
            return  # refused before it was entered; `start_command` comes back to it
        assert job.result is not None
        spent = 0.0 if job.result.ended_mono is None else max(0.0, self._clock()[1] - job.result.ended_mono)
        holdings, bounds = self._holdings, self._settings.command
        holdings.keep(job.id, trio.current_time() + max(0.0, job.terms.retain - spent), job.held_bytes)
        while len(holdings.ended) > bounds.retain_count or holdings.kept_bytes > bounds.retain_bytes:
            if not self._forget_oldest():
                break
        for listener in self.listeners:
            listener(job)

    def _expire(self) -> None:
        now = trio.current_time()
        for job_id, kept in list(self._holdings.ended.items()):
            if kept.until <= now:
                if self._jobs[job_id].attachments:
                    # Somebody is still reading: as long again.
                    self._holdings.prolong(job_id, now + max(1.0, self._jobs[job_id].terms.retain))
                else:
                    self._forget(job_id)

    def _forget_oldest(self) -> bool:
        """Make room, with the one that ended first and that nobody is reading."""
        for job_id in self._holdings.ended:
            if not self._jobs[job_id].attachments:
                self._forget(job_id)
                return True
        return False

    def _spare_one(self) -> bool:
        """What has ended is only read again; what runs would be lost. So the oldest of the former does not survive."""
        for job_id in self._holdings.ended:
            page = self._jobs[job_id].page
            if page is not None and page.survives and page.is_at_rest:
                page.give_up()
                return True
        return False

    def _forget(self, job_id: str) -> None:
        job = self._jobs.pop(job_id)
        self._holdings.release(job_id)
        self._digests.pop(job_id, None)
        try:
            job.close(read_on=not self._closing)
        except Exception:  # noqa: BLE001  one job that cannot be put away is not the end of the others
            _log.exception("job %s could not be put away whole", job_id)
        self._lingering = [each for each in [*self._lingering, job] if not each.remove_cgroup()]
