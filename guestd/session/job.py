"""A job: an id, its processes, its output on tapes, its input, and an exit slot that anybody can read at any
time.

It belongs to the session, never to a connection. How it ends is in `jobend`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from guestd import observe
from guestd.errors import StartFailed
from guestd.process.launcher import NEVER
from guestd.process.reaper import Exit
from guestd.process.tree import Tree
from guestd.session.attachment import Attachment
from guestd.session.jobend import JobEnd
from guestd.session.once import Once
from guestd.session.verdict import given_up, lost, not_started, replaced
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.process.cgroup import Cgroup
    from guestd.process.plan import Plan
    from guestd.process.tree import Ending
    from guestd.session.chronicle import Page
    from guestd.session.input import Feed
    from guestd.session.recording import Recording, Viewer
    from guestd.session.terms import Surroundings, Terms
    from guestd.session.trace import Trace
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
        #: The trace that its span belongs to, where telemetry is on; the span's own id is the mark. And what of its
        #: environment may be told.
        self.trace: Trace | None = None
        self.shown_env: Mapping[str, str] = {}
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
        #: Its processes, once there are any; and the group that the kernel lists them in, where there is one.
        self.tree: Tree | None = None
        self.cgroup: Cgroup | None = None
        self._around = around
        self._started: tuple[float, float] | None = None
        self._pumping = False
        self._starting = trio.CancelScope()
        self._end = JobEnd(self, around)
        self.stream_changed = self._end.stream_changed

    # --------------------------------------------------------------------------------------- states

    @property
    def state(self) -> str:
        if self.result is not None:
            return "ended"
        if self.pid is None:
            return "starting"
        return "ending" if self._end.by is not None else "running"

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
        return self._end.by, self._end.how

    @property
    def survives(self) -> bool:
        """Will the next supervisor go on with it, should this one end?"""
        return self.page is not None and self.page.survives

    @property
    def cgroup_path(self) -> str | None:
        return None if self.cgroup is None else self.cgroup.path

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
        observe.began("job", self)
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
                    self.cgroup = plan.cgroup = around.cgroups.create(self.mark)
                self._is_spawning(plan)
                pid = await around.spawner.start(plan, self._on_exit)
                if self.cgroup is not plan.cgroup:
                    self.remove_cgroup()
                    self.cgroup = None
        except StartFailed as failure:
            self._not_started(failure)
            return
        finally:
            close_child_fds()
        if pid is None:
            self._not_started(given_up(self.terms.timeout, killed=self._end.by is not None))
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
        self.tree = Tree(pid, self.mark, self.cgroup, around.reaper)
        self._end.began()
        around.timers.after(PUMP_AFTER, self.start_pumps)
        if self.input is not None:
            self._around.start_soon(self, self.input.feed)
        if self.cgroup is None and around.cgroups is not None:
            around.timers.after(SETTLE_IN, self._start_settling_in)
        self.start_settled.happen()
        if self._end.by is not None:
            # Asked for in the very moment of the start.
            self._end.begin()
        self._end.settle()

    def go_on(
        self, pid: int | None, pidfd: int | None, started: tuple[float, float], cgroup: Cgroup | None,
        by: EndedBy | None, end_with: tuple[float, str],
    ) -> None:  # fmt: skip
        """Take up a job that another supervisor has started. `pid` is None while it may still come to be."""
        self._started, self.cgroup, self._end.by, self._end.how = started, cgroup, by, end_with
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
        self._not_started(replaced())

    def _goes_on(self, pid: int, pidfd: int | None) -> None:
        around = self._around
        self.pid = pid
        if self.page is not None:
            assert self._started is not None
            around.statuses.expect(pid, self._started[1], self.page.exits)
        self.tree = Tree(pid, self.mark, self.cgroup, around.reaper, adopted=True)
        self._end.began()
        self._pumping = True
        for recording in self.recordings:
            if recording.is_open:
                around.start_soon(self, recording.pump)
        if self.input is not None:
            around.start_soon(self, self.input.feed)
        self.start_settled.happen()
        around.start_soon(self, self._watch_adopted, pid, pidfd)
        if self._end.by is not None:
            self._end.begin()
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

    def start_pumps(self) -> None:
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
        assert self.tree is not None
        assert self._around.cgroups is not None
        group = self._around.cgroups.create(self.mark)
        if group is not None:
            await trio.to_thread.run_sync(self.tree.settle_in, group)
            self.cgroup = group
            self._write_down()

    def refuse(self, failure: StartFailed, by: EndedBy | None = None) -> None:
        """End a job that is not even tried: what was asked cannot be started, and that is its result."""
        self._started = self._around.clock()
        self._end.by = by
        self._not_started(failure)

    def _not_started(self, failure: StartFailed) -> None:
        for recording in self.recordings:
            recording.hang_up()
        self.start_settled.happen()
        self.publish(not_started(self._end.facts(), failure))

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
        if self.tree is None:
            return 0
        return len(self.tree.signal(number, first_only=first_only))

    def end(self, by: EndedBy, *, grace: float | None = None, scope: str | None = None) -> None:
        """Begin to end it: SIGTERM (SIGHUP for a shell), grace, SIGKILL. Asked again with less grace, what is under
        way is shortened.
        """
        if self.result is not None or not self._end.ask(by, grace, scope):
            return
        self._write_down()
        if self.pid is None:
            self._starting.cancel()
        else:
            self._end.begin()

    @property
    def has_left(self) -> bool:
        """Did it leave something running?"""
        return self.result is not None and (self.result.left["count"] > 0 or not self.remove_cgroup())

    async def end_left(self, grace: float) -> Ending | None:
        """End what a finished job left running."""
        return None if self.tree is None else await self.tree.end(grace=grace)

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
        return self.cgroup is None or self.cgroup.remove()

    def _on_exit(self, ended: Exit) -> None:
        try:
            self._end.note_exit(ended)
        except Exception as error:
            # The reaper has others to tell; the log entry is its own.
            self.lose(error)
            raise

    def lose(self, error: Exception) -> None:
        """A mistake of guestd's own: what became of the job is not known, and that is its result."""
        self.give_up(f"guestd made a mistake while it cared for the job: {error!r}")

    def give_up(self, why: str) -> None:
        """What becomes of it will not be known here, and that is its result."""
        if self.result is None:
            facts = self._end.facts()
            facts.left = [] if self.tree is None else self.tree.members()
            self.publish(lost(facts, why))

    def publish(self, result: Result) -> None:
        """That is what has become of it."""
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
        observe.ended("job", self)
        self._around.ended(self)
