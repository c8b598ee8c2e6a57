"""Jobs of guestd's own: the workload, hooks, checks, the flush at the end. They are jobs like any other, so they have
tapes, a tree that can be ended, and a result; but they keep nothing awake, and a stop does not refuse them.
"""

from __future__ import annotations

from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import trio

from guestd.session.command import CommandRequest
from guestd.session.terms import Terms
from guestd.wire.result import EndedBy, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from guestd.config import Settings
    from guestd.session.job import Job
    from guestd.session.jobs import Jobs
    from guestd.wire.result import Result

#: Of what a hook or a check prints, so much is kept.
_TAPE = 64 * 1024
_SHOWN = 500
#: After SIGKILL, for the kernel to take it away.
_GONE = 2.0


def own_request(
    settings: Settings,
    command: str | tuple[str, ...],
    *,
    user: str | int | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    grace: float = 1.0,
    retain: float = 0.0,
    tape: int = _TAPE,
) -> CommandRequest:
    """A command as the settings have it: words, or one line for the shell. Nothing of it outlives it."""
    defaults = settings.command
    return CommandRequest(
        argv=None if isinstance(command, str) else list(command),
        shell=command if isinstance(command, str) else None,
        env=dict(env or {}),
        cwd=cwd,
        user=user,
        group=None,
        groups=None,
        umask=defaults.umask,
        rlimits=dict(defaults.rlimits),
        nice=0,
        oom_score_adj=defaults.oom_score_adj,
        tape=tape,
        terms=Terms(
            timeout=None,
            grace=grace,
            drain=defaults.drain,
            retain=retain,
            scope="tree",
            kill_on_disconnect=False,
            background=True,
        ),
        stdin="none",
        spool=False,
    )


class Done(NamedTuple):
    """One that was run to its end, or given up. `text` is the end of what it said."""

    result: Result | None
    took: float
    text: str

    @property
    def went_well(self) -> bool:
        return self.result is not None and self.result.status == 0

    @property
    def why(self) -> str | None:
        """What went wrong."""
        result = self.result
        if result is None:
            return "it did not end, and could not be ended in time"
        if result.status == 0:
            return None
        said = f": {self.text}" if self.text else ""
        if result.outcome is Outcome.NOT_STARTED:
            return result.message or "could not start"
        if result.ended_by is not None:
            return f"it was ended after {self.took:.1f} s{said}"
        return f"it ended with {result.status}{said}"


async def run_own(
    jobs: Jobs, job_id: str, request: CommandRequest, limit: float, until: Callable[[], float] = lambda: inf
) -> Done:
    """Run one. It is ended after `limit` seconds, and so early that it is gone by `until`, if it can be ended."""
    begun = trio.current_time()
    job = jobs.start_own(job_id, request)
    room = until() - begun
    grace = min(request.terms.grace, room * 0.2)
    with kept(job):
        try:
            with trio.move_on_after(min(limit, room * 0.6)):
                await job.ended.wait()
            if job.result is None:
                job.end(EndedBy.TIMEOUT, grace=grace)
                with trio.move_on_at(min(until(), trio.current_time() + grace + _GONE)):
                    await job.ended.wait()
        finally:
            # Where the caller was cancelled it still runs.
            job.end(EndedBy.TIMEOUT, grace=0)
        return Done(job.result, trio.current_time() - begun, _said(job))


@contextmanager
def kept(job: Job) -> Generator[None]:
    """What it prints can be read until the block is left, however short it is kept otherwise."""
    attachment = job.attach({each.stream: 0 for each in job.recordings}, _nothing, holds=False)
    try:
        yield
    finally:
        attachment.detach()


def _nothing() -> None:
    pass


def _said(job: Job) -> str:
    """The end of what it printed, stderr first choice."""
    for recording in reversed(job.recordings):
        data = bytes(recording.read(max(recording.start, recording.end - _SHOWN), _SHOWN).data)
        if data.strip():
            return data.decode("utf-8", "replace").strip()
    return ""
