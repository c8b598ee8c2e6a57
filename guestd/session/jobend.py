"""How a job ends: a small machine of facts.

The first process has been reaped; its streams have ended or were drained long enough; whoever ends the tree is done;
the kernel was asked about memory. Facts arrive in any order, and when the last one is in, the result is written once.

What decides the end is the exit of the first process, not the end of its streams: a background child that
holds stdout delays the result by a bounded drain, and its later output is read and thrown away, so that
nobody dies of SIGPIPE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from guestd.process.oom import killed_for_memory
from guestd.session.verdict import Facts, verdict
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from guestd.process.members import Member
    from guestd.process.reaper import Exit
    from guestd.process.tree import Ending
    from guestd.session.job import Job
    from guestd.session.terms import Surroundings


class JobEnd:
    """The end of one job, from who asks for it to the last fact."""

    def __init__(self, job: Job, around: Surroundings) -> None:
        self._job = job
        self._around = around
        #: Who has it ended, and with which grace and scope.
        self.by: EndedBy | None = None
        self.how: tuple[float, str] = (job.terms.grace, "tree")
        self._exit: Exit | None = None
        self._ending: Ending | None = None
        self._ending_runs = False
        self._patience = trio.CancelScope()
        self._owed: dict[int, int] = {}
        self._draining = False
        self._drained = False
        self._memory_asked = False
        self._out_of_memory = False
        self._timer = trio.CancelScope()

    # --------------------------------------------------------------------------------------- ending

    def ask(self, by: EndedBy, grace: float | None, scope: str | None) -> bool:
        """Have it ended. False when it is being ended already; then less grace shortens what is under way."""
        terms = self._job.terms
        grace = terms.grace if grace is None else grace
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + grace)
        if self.by is not None:
            before, scope = self.how
            self.how = (min(before, grace), scope)
            return False
        self.by = by
        self.how = (grace, scope or terms.scope or "tree")
        return True

    def began(self) -> None:
        """The program runs. It may have been asked to end, and may have ended, in that very moment."""
        assert self._job.tree is not None
        if self._exit is not None:
            self._job.tree.first_has_ended()
        if self._job.terms.timeout is not None:
            self._around.start_soon(self._job, self._watch_time)

    def begin(self) -> None:
        """Signal, grace, SIGKILL; once."""
        if not self._ending_runs:
            self._begin(*self.how)

    def _begin(self, grace: float, scope: str) -> None:
        self._ending_runs = True
        self._patience = trio.CancelScope()
        self._around.start_soon(self._job, self._end_processes, grace, scope == "leave")

    async def _end_processes(self, grace: float, first_only: bool) -> None:  # noqa: FBT001  start_soon takes no keywords
        job = self._job
        assert job.tree is not None
        self._ending = await job.tree.end(
            grace=grace, first_signal=job.terms.first_signal, first_only=first_only, patience=self._patience
        )
        self._ending_runs = False
        self.settle()

    async def _watch_time(self) -> None:
        job = self._job
        assert job.terms.timeout is not None
        assert job.started is not None
        with self._timer:
            spent = self._around.clock()[1] - job.started[1]
            await trio.sleep(max(0.0, job.terms.timeout - spent))
            if self._exit is None:
                job.end(EndedBy.TIMEOUT)

    # ---------------------------------------------------------------------------------------- facts

    def stream_changed(self) -> None:
        """Bytes have come, or a stream has ended."""
        if self._exit is not None:
            self.settle()

    def note_exit(self, ended: Exit) -> None:
        """The first process has ended, so."""
        job = self._job
        self._timer.cancel()
        if job.tree is not None:
            job.tree.first_has_ended()
        for recording in job.recordings:
            recording.drain()
            # What was written by now is owed to the readers, however slowly they take it.
            self._owed[recording.stream] = recording.unread()
        # Only now: the streams that have just ended would have settled a job whose others are still to be
        # drained.
        self._exit = ended
        if job.start_settled.happened:
            self.settle()

    def settle(self) -> None:
        """Write the result if every fact is in; otherwise see to the next one. Cheap, and harmless to call
        again.
        """
        job = self._job
        if (
            self._exit is None
            or job.result is not None
            or self._ending_runs
            or not job.start_settled.happened
        ):
            return
        if job.terms.scope == "tree" and self._ending is None and self._survivors():
            self._begin(job.terms.grace, "tree")
        elif not self._streams_are_done():
            if not self._draining:
                self._draining = True
                job.start_pumps()
                self._around.timers.after(job.terms.drain, self._has_drained)
        elif self._exit.victim is not None and self.by is None and not self._memory_asked:
            self._memory_asked = True
            self._around.start_soon(job, self._ask_about_memory)
        else:
            job.publish(verdict(self.facts()))

    def _streams_are_done(self) -> bool:
        recordings = self._job.recordings
        if self._drained:
            for recording in recordings:
                if recording.is_open and recording.end < self._owed[recording.stream]:
                    recording.take_rest(self._owed[recording.stream])
        return all(
            not recording.is_open or (self._drained and recording.end >= self._owed[recording.stream])
            for recording in recordings
        )

    def _has_drained(self) -> None:
        self._drained = True
        self.settle()

    async def _ask_about_memory(self) -> None:
        job = self._job
        assert self._exit is not None
        assert self._exit.victim is not None
        assert job.started is not None
        in_group = job.cgroup is not None and job.cgroup.oom_kills() > 0
        # The kernel's log can be long: read it beside the loop.
        self._out_of_memory = in_group or await trio.to_thread.run_sync(
            killed_for_memory,
            self._exit.victim,
            job.started[1],
        )
        self.settle()

    def _survivors(self) -> list[Member]:
        """Who lives on after the first process."""
        tree, cgroup = self._job.tree, self._job.cgroup
        if tree is None:
            return []
        if cgroup is not None:
            return [] if cgroup.remove() else tree.members()
        # Whatever it left has lost its parent, so it is among the adopted; most commands leave nothing.
        return tree.members() if self._around.reaper.adopted() else []

    def facts(self) -> Facts:
        """All that is known by now."""
        job = self._job
        assert job.started is not None
        return Facts(
            id=job.id, kind=job.kind, pid=job.pid, started=job.started, now=self._around.clock(),
            exit=self._exit, ended_by=self.by, ending=self._ending, out_of_memory=self._out_of_memory,
            left=self._survivors() if self._exit is not None else [],
            peak_memory=job.cgroup.peak_memory() if job.cgroup is not None else None,
            streams={
                recording.name: {"bytes": recording.end, "kept_from": recording.start}
                for recording in job.recordings
            },
            held=[recording.name for recording in job.recordings if recording.is_open],
            accepted_input=job.input.offset if job.input is not None else 0,
        )  # fmt: skip
