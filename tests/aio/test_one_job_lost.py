"""A mistake of guestd's own in the care of one job is that job's end, told as unknown, and nobody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from guestd.session.job import Job
from guestd.session.terms import Surroundings, Terms
from guestd.session.timers import Timers
from guestd.wire.result import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

_TERMS = Terms(timeout=None, grace=1, drain=1, retain=1, scope=None, kill_on_disconnect=False)


class _NoProcesses:
    """Neither spawner nor reaper nor cgroups: nothing is started here."""


def _surroundings(nursery: trio.Nursery, ended: Callable[[Job], None]) -> Surroundings:
    nothing = _NoProcesses()
    return Surroundings(
        spawner=nothing,  # pyright: ignore[reportArgumentType]  see _NoProcesses
        reaper=nothing,  # pyright: ignore[reportArgumentType]
        cgroups=None,
        nursery=nursery,
        clock=lambda: (1.0, 2.0),
        timers=Timers(),
        chronicle=nothing,  # pyright: ignore[reportArgumentType]
        statuses=nothing,  # pyright: ignore[reportArgumentType]
        ended=ended,
    )


async def _fail() -> None:
    await trio.lowlevel.checkpoint()
    raise RuntimeError("a mistake")


@pytest.mark.logs("guestd made a mistake")
async def test_a_task_that_fails_ends_its_job_as_unknown_and_leaves_the_nursery_alone() -> None:
    ended: list[Job] = []
    async with trio.open_nursery() as nursery:
        around = _surroundings(nursery, ended.append)
        broken, whole = (Job(name, "command", "mark", _TERMS, around) for name in ("broken", "whole"))
        for job in (broken, whole):
            job._started = around.clock()
        around.start_soon(broken, _fail)
        await broken.ended.wait()
        assert not nursery.cancel_scope.cancel_called
    assert ended == [broken]
    assert broken.result is not None
    assert broken.result.outcome is Outcome.UNKNOWN
    assert "a mistake" in str(broken.result.message)
    assert whole.result is None


@pytest.mark.logs("a timer failed")
async def test_a_timer_that_fails_does_not_stop_the_others(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers()
    rang: list[float] = []
    done = trio.Event()

    def fail() -> None:
        raise RuntimeError("a mistake")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        for delay in (3, 1, 2):
            timers.after(delay, lambda: rang.append(trio.current_time()))
        timers.after(1.5, fail)
        timers.after(4, done.set)
        start = trio.current_time()
        await done.wait()
        assert [each - start for each in rang] == [1, 2, 3]
        nursery.cancel_scope.cancel()
