"""The end of the session, in one order for all causes, within the time that was given.

    nothing new is started · the workload, then commands and shells · hooks · telemetry and disks · mounts · the receipt

Each step has a point of the whole time by which it is over, done or not; what ends early leaves its time to those
behind it. What could not be done is in the receipt, and nothing waits for it: not for a process that cannot be killed,
a disk that does not answer, a collector that is dead, or a client that does not read. Asked again with less time, it
hurries; it never takes longer.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import trio

from guestd import observe
from guestd.errors import ShuttingDown
from guestd.lifecycle.machine import POWEROFF
from guestd.wire.result import EndedBy, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator

    from guestd.config import Settings
    from guestd.errors import GuestdError
    from guestd.lifecycle.events import Events
    from guestd.lifecycle.workload import Workload
    from guestd.session.job import Job
    from guestd.session.jobs import Jobs
    from guestd.storage.mounts import Mounts
    from guestd.wire.result import Result

_log = logging.getLogger("guestd.stop")
#: By which part of the whole time a step is over. The workload has its head start alone; what still runs of the
#: programs is killed at the second; the kernel has until the third to take it away.
_HEAD_START, _PROGRAMS, _KILLED, _HOOKS, _FLUSHED, _UNMOUNTED, _SAID = (
    0.2, 0.6, 0.7, 0.78, 0.84, 0.94, 0.97,
)  # fmt: skip
#: Less time than this is none for disks and last words, whatever was given. Programs get no more than was given.
LEAST = 1.0
#: What is killed has so long at least to leave, at the cost of the time before that.
_TO_LEAVE = 0.3
#: Later than this at a point of time, and this process itself did not run, or the machine.
_STOOD_STILL = 0.05
#: Jobs that a receipt names.
_NAMED = 100
RECEIPT = "receipt.json"


class Peer(Protocol):
    """A connection, as far as a stop needs it."""

    async def goodbye(self, error: GuestdError) -> None: ...


class Stop:
    """See the module. Waits in `run` until somebody asks."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        events: Events,
        clock: Callable[[], tuple[float, float]],
        connections: Collection[Peer],
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._events = events
        self._clock = clock
        self._connections = connections
        self.workload: Workload | None = None
        self.mounts: Mounts | None = None
        self.asked = trio.Event()
        self.cause = ""
        self.action = POWEROFF
        #: What `guestd serve` ends with.
        self.status = 0
        self.receipt: dict[str, Any] | None = None
        #: Called with the receipt. They must not block.
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        #: What ends by itself when a stop is asked for, and had better be over before disks are unmounted.
        self.before_disks: list[Callable[[], Awaitable[None]]] = []
        #: What else has to leave this machine before it ends. Each is given up when its time is over.
        self.flushes: list[Callable[[], Awaitable[None]]] = []
        self._by = ""
        self._given = self._grace = 0.0
        self._begun = self._start = self._latest = 0.0
        self._share = 0.0
        self._scope = trio.CancelScope()
        self._hurry: trio.Nursery | None = None

    # ---------------------------------------------------------------------------------------- asking

    def ask(self, cause: str, *, grace: float | None = None, action: str = POWEROFF, by: str = "") -> float:
        """Stop, for that reason, within so much time. Returns how long it may still take."""
        grace = self._settings.stop.grace if grace is None else grace
        now = trio.current_time()
        if not self.asked.is_set():
            self.cause, self.action, self._by = cause, action, by
            self._given, self._begun = grace, now
            self._grace, self._start = grace, now
            self._latest = now + max(grace, LEAST)
            self.asked.set()
        elif now + grace < self._start + self._grace:
            _log.info("stopping within %g s", grace)
            self._grace, self._start = grace, now
            self._latest = min(self._latest, now + max(grace, LEAST))
            self._scope.deadline = min(self._scope.deadline, self._due(self._share))
            if self._hurry is not None:
                self._hurry.start_soon(self._jobs.stop, self._left(_PROGRAMS))
        return max(0.0, self._due(1.0) - now)

    def _due(self, share: float) -> float:
        whole = self._grace if share <= _PROGRAMS else max(self._grace, LEAST)
        after = share * whole
        if share == _PROGRAMS:
            after = min(after, _KILLED * max(self._grace, LEAST) - _TO_LEAVE)
        return min(self._latest, self._start + after)

    def _left(self, share: float) -> float:
        return max(0.0, self._due(share) - trio.current_time())

    @property
    def left(self) -> float:
        """What is left of the time that was given."""
        return self._left(1.0)

    @contextmanager
    def _until(self, share: float) -> Generator[None]:
        """Give up what is inside when its time is over, also if that is moved."""
        with trio.CancelScope(deadline=self._due(share)) as self._scope:
            self._share = share
            yield

    # ----------------------------------------------------------------------------------------- the order

    async def run(self, announce: Callable[[], None]) -> None:
        """Wait until it is asked for, and do it. `announce` is called when it begins."""
        await self.asked.wait()
        announce()
        # Only now: most of a session's life needs none of it.
        from guestd.lifecycle.flush import flush
        from guestd.lifecycle.hooks import run_hooks

        jobs = self._jobs
        wall = self._clock()[0]
        _log.info("stopping (%s): %d jobs run; grace %g s", self.cause, jobs.running, self._given)
        jobs.refuse_new()
        if self.mounts is not None:
            self.mounts.rest()
        self._events.say("stopping", cause=self.cause, by=self._by, grace=self._given)
        observe.began(
            "stop", self, cause=self.cause, who=self._by or None, grace=self._given, jobs=jobs.running
        )
        running = [job for job in jobs if job.result is None and job.id not in jobs.last]
        async with trio.open_nursery() as hurry:
            self._hurry = hurry
            await self._end_programs()
            self._hurry = None
            hurry.cancel_scope.cancel()
        hooks: list[dict[str, Any]] = []
        stop = self._settings.stop
        with self._until(_HOOKS):
            await run_hooks(
                jobs, self._settings, "stop", stop.hooks, hooks,
                limit=stop.hook_timeout, until=lambda: self._due(_HOOKS),
            )  # fmt: skip
            for wait in self.before_disks:
                await wait()
        telemetry = await self._flush_rest()
        flushed: list[dict[str, Any]] = []
        with self._until(_FLUSHED):
            await flush(jobs, self._settings, flushed)
        if self.mounts is not None:
            with self._until(_UNMOUNTED):
                await self.mounts.end(lambda: self._due(_UNMOUNTED), flushed)
        self.receipt = {
            "cause": self.cause,
            "by": self._by,
            "at": wall,
            "grace": self._given,
            "took": trio.current_time() - self._begun,
            "action": self.action,
            "status": self.status,
            "workload": self._tell_workload(),
            **_told(running),
            "hooks": hooks,
            "telemetry": telemetry,
            "filesystems": flushed,
        }
        await self._keep(self.receipt)
        observe.ended("stop", self, **self._outcome())
        self._events.say("stopped", took=self.receipt["took"])
        for listener in self.listeners:
            listener(self.receipt)
        await self._say_goodbye()

    def _outcome(self) -> dict[str, object]:
        """What there is to tell of it in a record."""
        receipt = self.receipt or {}
        unsafe = [
            each["path"]
            for each in receipt.get("filesystems", ())
            if not each["synced"] and each["type"] != "tmpfs"
        ]
        unreached = receipt.get("unreached", {}).get("count")
        return {
            "cause": self.cause, "who": self._by or None, "took": receipt.get("took"), "action": self.action,
            "ended": receipt.get("ended", {}).get("count"), "unreached": unreached, "unsafe": unsafe or None,
            "why": "not everything was ended or is on its disk" if unsafe or unreached else None,
        }  # fmt: skip

    async def _end_programs(self) -> None:
        jobs, workload = self._jobs, self.workload
        if workload is not None:
            workload.stop()
            job = workload.job
            if job is not None:
                with self._until(_HEAD_START):
                    job.end(EndedBy.STOP, grace=self._left(_PROGRAMS))
                    await job.ended.wait()
        with self._until(_KILLED):
            await jobs.stop(self._left(_PROGRAMS))
        late = trio.current_time() - self._due(_KILLED)
        if late >= 0:
            # Some cannot be killed; others nobody has come to kill, because of those or because nobody ran.
            jobs.kill_rest()
            if late > _STOOD_STILL:
                with trio.move_on_after(_TO_LEAVE):
                    await jobs.stop(0.0)
        for job in [each for each in jobs if each.id not in jobs.last]:
            job.give_up(
                "it could not be ended: its process does not leave, as one that waits in the kernel for a disk or a"
                " server (state D)"
            )
        if workload is not None:
            with self._until(_KILLED):
                await workload.copied.wait()

    def _tell_workload(self) -> dict[str, Any] | None:
        """How it ended, with the stop or before it."""
        if self.workload is None or not self._jobs.knows(self.workload.id):
            return None
        job = self._jobs.get(self.workload.id)
        return None if job.result is None else _tell(job.id, job.kind, job.result)

    async def _flush_rest(self) -> dict[str, Any]:
        """Whatever else has asked to be flushed."""
        done = 0
        with self._until(_HOOKS + (_FLUSHED - _HOOKS) / 2):
            for each in self.flushes:
                try:
                    await each()
                    done += 1
                except Exception:  # noqa: BLE001  one that cannot be flushed is no reason not to stop
                    _log.exception("something could not be flushed")
        return {"asked": len(self.flushes), "done": done}

    async def _keep(self, receipt: dict[str, Any]) -> None:
        """For whoever looks afterwards, where the runtime directory outlives this process."""
        import json

        text = json.dumps(receipt, indent=1, default=str) + "\n"
        path = os.path.join(self._settings.runtime_dir, RECEIPT)
        with self._until(_SAID):
            try:
                await trio.to_thread.run_sync(_write, path, text, abandon_on_cancel=True)
            except OSError as error:
                _log.warning("the receipt could not be written to %s: %s", path, error.strerror)

    async def _say_goodbye(self) -> None:
        with self._until(_SAID):
            async with trio.open_nursery() as farewells:
                for connection in list(self._connections):
                    farewells.start_soon(connection.goodbye, ShuttingDown("the session has stopped"))


def _told(running: list[Job]) -> dict[str, Any]:
    """What was ended and how, as many by name as a person reads; and what could not be ended."""
    ended: list[dict[str, Any]] = []
    unreached: list[dict[str, Any]] = []
    for job in running:
        result = job.result
        assert result is not None
        ended.append(_tell(job.id, job.kind, result))
        unreached += [{"id": job.id, **each} for each in result.unreached["processes"]]
        if result.outcome is Outcome.UNKNOWN:
            unreached += [{"id": job.id, "pid": job.pid, "name": None}]
    return {
        "ended": {"count": len(ended), "jobs": ended[:_NAMED]},
        "unreached": {"count": len(unreached), "processes": unreached[:_NAMED]},
    }


def _tell(job_id: str, kind: str, result: Result) -> dict[str, Any]:
    ended_by = None if result.ended_by is None else result.ended_by.value
    return {
        "id": job_id, "kind": kind, "outcome": result.outcome.value, "status": result.status, "ended_by": ended_by,
        "message": result.message,
    }  # fmt: skip


def _write(path: str, text: str) -> None:
    fresh = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    with open(fresh, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, path)
