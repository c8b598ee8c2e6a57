"""A job: an id, its processes, its output on tapes, its input, and an exit slot that anybody can read at any
time.

It belongs to the session, never to a connection. Its end is a small machine of facts (`_settle`): the first
process has been reaped; its streams have ended or were drained long enough; whoever ends the tree is done;
the kernel was asked about memory. Facts arrive in any order, and when the last one is in, the result is
written once.

What decides the end is the exit of the first process, not the end of its streams: a background child that
holds stdout delays the result by a bounded drain, and its later output is read and thrown away, so that
nobody dies of SIGPIPE.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import StartFailed
from guestd.process.launcher import NEVER
from guestd.process.oom import killed_for_memory
from guestd.process.reaper import Exit
from guestd.process.tree import Tree
from guestd.session.attachment import Attachment
from guestd.session.once import Once
from guestd.session.verdict import Facts, lost, not_started, verdict
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.process.cgroup import Cgroup
    from guestd.process.plan import Plan
    from guestd.process.tree import Ending, Member
    from guestd.session.chronicle import Page
    from guestd.session.input import Feed
    from guestd.session.recording import Recording, Viewer
    from guestd.session.terms import Surroundings, Terms
    from guestd.wire.result import Result

#: A directly spawned job lives outside of a cgroup for so long. See process/cgroup.py for what moving costs.
SETTLE_IN = 0.05
#: How long a program runs before anybody waits for its output. Two tasks and their wake-ups for each command
#: that is over sooner would cost more than the command's own exec; and the first output of any other comes a
#: millisecond later.
PUMP_AFTER = 0.001
#: How long a job that is to end with its client waits for that one after the supervisor was replaced.
RETURN_IN = 10.0
#: A launcher whose supervisor has died answers what it was asked within moments. Nothing wakes whoever waits for it.
_WITNESS_PATIENCE, _WITNESS_LOOKS = 2.0, 0.01


class Job:
    """See the module."""

    def __init__(self, job_id: str, kind: str, mark: str, terms: Terms, around: Surroundings) -> None:
        self.id = job_id
        self.kind = kind
        self.mark = mark
        self.terms = terms
        self.about: Mapping[str, Any] = {}
        self.recordings: list[Recording] = []
        self.input: Feed | None = None
        self.attachments: set[Attachment] = set()
        #: In the order in which they came: who looks at the output for the job itself hears first.
        self.viewers: dict[Viewer, None] = {}
        self.pid: int | None = None
        self.result: Result | None = None
        #: The program runs, or is known not to.
        self.start_settled = Once()
        self.ended = trio.Event()
        #: Where it is written down, if this job is to survive the supervisor; and what its kind has to write there.
        self.page: Page | None = None
        self.facts: Callable[[], Mapping[str, Any]] = dict
        self._around = around
        self._cgroup: Cgroup | None = None
        self._tree: Tree | None = None
        self._started: tuple[float, float] | None = None
        self._exit: Exit | None = None
        self._ended_by: EndedBy | None = None
        self._end_with: tuple[float, str] = (terms.grace, "tree")
        self._ending: Ending | None = None
        self._ending_runs = False
        self._patience = trio.CancelScope()
        self._owed: dict[int, int] = {}
        self._pumping = False
        self._draining = False
        self._drained = False
        self._memory_asked = False
        self._out_of_memory = False
        self._starting = trio.CancelScope()
        self._timer = trio.CancelScope()

    # --------------------------------------------------------------------------------------- states

    @property
    def state(self) -> str:
        if self.result is not None:
            return "ended"
        if self.pid is None:
            return "starting"
        return "ending" if self._ended_by is not None else "running"

    @property
    def started_at(self) -> float | None:
        return self._started[0] if self._started else None

    @property
    def started(self) -> tuple[float, float] | None:
        """When, by the wall clock and the monotonic one."""
        return self._started

    @property
    def ending_as(self) -> tuple[EndedBy | None, tuple[float, str]]:
        """Who has it ended, and with which grace and scope."""
        return self._ended_by, self._end_with

    @property
    def cgroup_path(self) -> str | None:
        return None if self._cgroup is None else self._cgroup.path

    @property
    def held_bytes(self) -> int:
        return sum(recording.held_bytes for recording in self.recordings)

    # ------------------------------------------------------------------------------------- starting

    def start(self, plan: Plan, close_child_fds: Callable[[], None]) -> None:
        """Start it: at once where that waits for nothing, else from a task. `close_child_fds` closes this
        side's copies.

        When this returns the program runs, or is known not to, or is on its way.
        """
        self._started = self._around.clock()
        self._around.chronicle.open(self)
        if self.page is None and self._around.spawner.starts_at_once(plan):
            try:
                pid = self._around.spawner.start_at_once(plan, self._on_exit)
            except StartFailed as failure:
                close_child_fds()
                self._not_started(failure)
                return
            close_child_fds()
            self._has_started(pid)
        else:
            self._around.start_soon(self, self._start_slowly, plan, close_child_fds)

    async def _start_slowly(self, plan: Plan, close_child_fds: Callable[[], None]) -> None:
        around = self._around
        pid = None
        try:
            with self._starting:
                if self.terms.timeout is not None:
                    self._starting.deadline = trio.current_time() + self.terms.timeout
                if around.cgroups is not None and not around.spawner.is_plain(plan):
                    self._cgroup = plan.cgroup = around.cgroups.create(self.mark)
                self._is_spawning(plan)
                pid = await around.spawner.start(plan, self._on_exit)
                if self._cgroup is not plan.cgroup:
                    self.remove_cgroup()
                    self._cgroup = None
        except StartFailed as failure:
            self._not_started(failure)
            return
        finally:
            close_child_fds()
        if pid is None:
            self._not_started(self._why_cancelled())
        else:
            self._has_started(pid)

    def _is_spawning(self, plan: Plan) -> None:
        if self.page is not None:
            plan.witness, plan.is_asked_for = self.page.witness, self.page.spawning

    def _has_started(self, pid: int) -> None:
        around = self._around
        self.pid = pid
        if self.page is not None:
            self.page.started(pid)
        self._tree = Tree(pid, self.mark, self._cgroup, around.reaper)
        if self._exit is not None:
            self._tree.first_has_ended()
        around.timers.after(PUMP_AFTER, self._start_pumps)
        if self.input is not None:
            self._around.start_soon(self, self.input.feed)
        if self.terms.timeout is not None:
            self._around.start_soon(self, self._watch_time)
        if self._cgroup is None and around.cgroups is not None:
            around.timers.after(SETTLE_IN, self._start_settling_in)
        self.start_settled.happen()
        if self._ended_by is not None:
            # Asked for in the very moment of the start.
            self._begin_ending(*self._end_with)
        self._settle()

    def go_on(
        self, pid: int | None, pidfd: int | None, started: tuple[float, float], cgroup: Cgroup | None,
        by: EndedBy | None, end_with: tuple[float, str],
    ) -> None:  # fmt: skip
        """Take up a job that another supervisor has started. `pid` is None while it may still come to be."""
        self._started, self._cgroup, self._ended_by, self._end_with = started, cgroup, by, end_with
        if pid is None:
            self._around.statuses.hold()
            self._around.start_soon(self, self._find_out)
        else:
            self._goes_on(pid, pidfd)

    async def _find_out(self) -> None:
        """The supervisor before this one asked its launcher for the program, and did not live to hear the answer."""
        assert self.page is not None
        pid = 0
        try:
            with trio.move_on_after(_WITNESS_PATIENCE):
                while not (pid := self.page.witnessed):  # noqa: ASYNC110  another process writes it, into memory
                    await trio.sleep(_WITNESS_LOOKS)
            if pid not in {0, NEVER}:
                self._goes_on(pid, None)
                return
        finally:
            # Whatever became of it, the others' statuses are waited for.
            self._around.statuses.release()
        self._not_started(
            StartFailed(
                "could not start: guestd was replaced in the moment of the start, before the program ran"
                " (fork, ECANCELED)",
                stage="fork", errno=errno.ECANCELED,
            )
        )  # fmt: skip

    def _goes_on(self, pid: int, pidfd: int | None) -> None:
        around = self._around
        self.pid = pid
        if self.page is not None:
            assert self._started is not None
            around.statuses.expect(pid, self._started[1], self.page.exits)
        self._tree = Tree(pid, self.mark, self._cgroup, around.reaper, adopted=True)
        self._pumping = True
        for recording in self.recordings:
            if recording.is_open:
                around.start_soon(self, recording.pump)
        if self.input is not None:
            around.start_soon(self, self.input.feed)
        if self.terms.timeout is not None:
            around.start_soon(self, self._watch_time)
        self.start_settled.happen()
        around.start_soon(self, self._watch_adopted, pid, pidfd)
        if self._ended_by is not None:
            self._begin_ending(*self._end_with)
        elif self.terms.kill_on_disconnect:
            # Whoever it is to end with has lost the connection with the supervisor, and is on the way back.
            around.timers.after(RETURN_IN, self._end_if_alone)

    async def _watch_adopted(self, pid: int, pidfd: int | None) -> None:
        assert self._started is not None
        assert self.page is not None
        try:
            noted = self.page.exit_status
            if noted is not None:
                ended = Exit(noted, None, *self._around.clock(), None)
            else:
                ended = await self._around.statuses.ending(pid, self._started[1], pidfd)
        finally:
            if pidfd is not None:
                os.close(pidfd)
        self._on_exit(ended)

    def _end_if_alone(self) -> None:
        if not self.attachments:
            self.end(EndedBy.DISCONNECT)

    def ended_before(self, result: Result, started: tuple[float, float]) -> None:
        """It had ended under another supervisor already."""
        self._started, self.pid, self.result = started, result.pid, result
        self.start_settled.happen()
        self.ended.set()

    def _start_pumps(self) -> None:
        """Read what the program writes as it comes. One that is over by now was read at its exit."""
        if not self._pumping:
            self._pumping = True
            for recording in self.recordings:
                if recording.is_open:
                    self._around.start_soon(self, recording.pump)

    def _start_settling_in(self) -> None:
        if self.result is None:
            self._around.start_soon(self, self._settle_in)

    async def _settle_in(self) -> None:
        """Give a job that lasts a cgroup. A short one is over before that would have been worth its price."""
        assert self._tree is not None
        assert self._around.cgroups is not None
        group = self._around.cgroups.create(self.mark)
        if group is not None:
            await trio.to_thread.run_sync(self._tree.settle_in, group)
            self._cgroup = group
            self._write_down()

    def refuse(self, failure: StartFailed, by: EndedBy | None = None) -> None:
        """End a job that is not even tried: what was asked cannot be started, and that is its result."""
        self._started = self._around.clock()
        self._ended_by = by
        self._not_started(failure)

    def _why_cancelled(self) -> StartFailed:
        if self._ended_by is not None:
            return StartFailed(
                "could not start: it was killed before the program ran (killed)", stage="killed"
            )
        return StartFailed(
            f"could not start: the program did not run within its timeout of {self.terms.timeout} s; its file or its"
            " directory is on a file system that does not answer (exec, ETIMEDOUT)",
            stage="exec", errno=errno.ETIMEDOUT,
        )  # fmt: skip

    def _not_started(self, failure: StartFailed) -> None:
        for recording in self.recordings:
            recording.hang_up()
        self.start_settled.happen()
        self._publish(not_started(self._facts(), failure))

    # ------------------------------------------------------------------------------------ attaching

    def attach(self, start: Mapping[int, int], wake: Callable[[], None], *, holds: bool) -> Attachment:
        """A new viewer, each of its cursors at the given offset."""
        attachment = Attachment(self, start, wake, holds=holds)
        self.attachments.add(attachment)
        self.viewers[attachment] = None
        return attachment

    def detach(self, attachment: Attachment) -> None:
        self.attachments.discard(attachment)
        self.viewers.pop(attachment, None)
        if attachment.holds:
            for recording in self.recordings:
                recording.made_room()

    # --------------------------------------------------------------------------------------- ending

    def signal(self, number: int, *, first_only: bool) -> int:
        """Send a signal; returns how many processes got it."""
        if self._tree is None:
            return 0
        return len(self._tree.signal(number, first_only=first_only))

    def end(self, by: EndedBy, *, grace: float | None = None, scope: str | None = None) -> None:
        """Begin to end it: SIGTERM (SIGHUP for a shell), grace, SIGKILL. Asked again with less grace, what is under
        way is shortened.
        """
        if self.result is not None:
            return
        grace = self.terms.grace if grace is None else grace
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + grace)
        if self._ended_by is not None:
            before, scope = self._end_with
            self._end_with = (min(before, grace), scope)
            return
        self._ended_by = by
        self._end_with = (grace, scope or self.terms.scope or "tree")
        self._write_down()
        if self.pid is None:
            self._starting.cancel()
        elif not self._ending_runs:
            self._begin_ending(*self._end_with)

    @property
    def has_left(self) -> bool:
        """Did it leave something running?"""
        return self.result is not None and (self.result.left["count"] > 0 or not self.remove_cgroup())

    async def end_left(self, grace: float) -> Ending | None:
        """End what a finished job left running."""
        return None if self._tree is None else await self._tree.end(grace=grace)

    def close(self, *, read_on: bool = False) -> None:
        """Forget it: nothing of it can be read any more."""
        for recording in self.recordings:
            recording.close(read_on=read_on)
        if self.input is not None:
            self.input.close()
        self.remove_cgroup()
        if self.page is not None:
            self.page.close()
            self.page = None

    def _write_down(self) -> None:
        if self.page is not None:
            self.page.write()

    def remove_cgroup(self) -> bool:
        """True when nothing of the job lives any more, as far as its cgroup knows."""
        return self._cgroup is None or self._cgroup.remove()

    def _begin_ending(self, grace: float, scope: str) -> None:
        self._ending_runs = True
        self._patience = trio.CancelScope()
        self._around.start_soon(self, self._end_processes, grace, scope == "leave")

    async def _end_processes(self, grace: float, first_only: bool) -> None:  # noqa: FBT001  start_soon takes no keywords
        assert self._tree is not None
        self._ending = await self._tree.end(
            grace=grace, first_signal=self.terms.first_signal, first_only=first_only, patience=self._patience
        )
        self._ending_runs = False
        self._settle()

    async def _watch_time(self) -> None:
        assert self.terms.timeout is not None
        assert self._started is not None
        with self._timer:
            spent = self._around.clock()[1] - self._started[1]
            await trio.sleep(max(0.0, self.terms.timeout - spent))
            if self._exit is None:
                self.end(EndedBy.TIMEOUT)

    # ----------------------------------------------------------------------------- facts of the end

    def stream_changed(self) -> None:
        """Bytes have come, or a stream has ended."""
        if self._exit is not None:
            self._settle()

    def _on_exit(self, ended: Exit) -> None:
        try:
            self._note_exit(ended)
        except Exception as error:
            # The reaper has others to tell; the log entry is its own.
            self.lose(error)
            raise

    def _note_exit(self, ended: Exit) -> None:
        self._timer.cancel()
        if self._tree is not None:
            self._tree.first_has_ended()
        for recording in self.recordings:
            recording.drain()
            # What was written by now is owed to the readers, however slowly they take it.
            self._owed[recording.stream] = recording.unread()
        # Only now: the streams that have just ended would have settled a job whose others are still to be
        # drained.
        self._exit = ended
        if self.start_settled.happened:
            self._settle()

    def _settle(self) -> None:
        """Write the result if every fact is in; otherwise see to the next one. Cheap, and harmless to call
        again.
        """
        if (
            self._exit is None
            or self.result is not None
            or self._ending_runs
            or not self.start_settled.happened
        ):
            return
        if self.terms.scope == "tree" and self._ending is None and self._survivors():
            self._begin_ending(self.terms.grace, "tree")
        elif not self._streams_are_done():
            if not self._draining:
                self._draining = True
                self._start_pumps()
                self._around.timers.after(self.terms.drain, self._has_drained)
        elif self._exit.victim is not None and self._ended_by is None and not self._memory_asked:
            self._memory_asked = True
            self._around.start_soon(self, self._ask_about_memory)
        else:
            self._publish(verdict(self._facts()))

    def _streams_are_done(self) -> bool:
        if self._drained:
            for recording in self.recordings:
                if recording.is_open and recording.end < self._owed[recording.stream]:
                    recording.take_rest(self._owed[recording.stream])
        return all(
            not recording.is_open or (self._drained and recording.end >= self._owed[recording.stream])
            for recording in self.recordings
        )

    def _has_drained(self) -> None:
        self._drained = True
        self._settle()

    async def _ask_about_memory(self) -> None:
        assert self._exit is not None
        assert self._exit.victim is not None
        assert self._started is not None
        in_group = self._cgroup is not None and self._cgroup.oom_kills() > 0
        # The kernel's log can be long: read it beside the loop.
        self._out_of_memory = in_group or await trio.to_thread.run_sync(
            killed_for_memory,
            self._exit.victim,
            self._started[1],
        )
        self._settle()

    def _survivors(self) -> list[Member]:
        """Who lives on after the first process."""
        if self._tree is None:
            return []
        if self._cgroup is not None:
            return [] if self._cgroup.remove() else self._tree.members()
        # Whatever it left has lost its parent, so it is among the adopted; most commands leave nothing.
        return self._tree.members() if self._around.reaper.adopted() else []

    def lose(self, error: Exception) -> None:
        """A mistake of guestd's own: what became of the job is not known, and that is its result."""
        self.give_up(f"guestd made a mistake while it cared for the job: {error!r}")

    def give_up(self, why: str) -> None:
        """What becomes of it will not be known here, and that is its result."""
        if self.result is None:
            facts = self._facts()
            facts.left = [] if self._tree is None else self._tree.members()
            self._publish(lost(facts, why))

    def _facts(self) -> Facts:
        assert self._started is not None
        return Facts(
            id=self.id, kind=self.kind, pid=self.pid, started=self._started, now=self._around.clock(),
            exit=self._exit, ended_by=self._ended_by, ending=self._ending, out_of_memory=self._out_of_memory,
            left=self._survivors() if self._exit is not None else [],
            peak_memory=self._cgroup.peak_memory() if self._cgroup is not None else None,
            streams={
                recording.name: {"bytes": recording.end, "kept_from": recording.start}
                for recording in self.recordings
            },
            held=[recording.name for recording in self.recordings if recording.is_open],
            accepted_input=self.input.offset if self.input is not None else 0,
        )  # fmt: skip

    def _publish(self, result: Result) -> None:
        self.result = result
        for recording in self.recordings:
            recording.stop_recording()
        if self.input is not None:
            self.input.close()
        if self.page is not None:
            self.page.ended()
        self.ended.set()
        for attachment in list(self.attachments):
            attachment.news()
        self._around.ended(self)
