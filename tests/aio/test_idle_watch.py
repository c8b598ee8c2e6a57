"""Whole days of sessions, with a clock that jumps: what is announced when, what ends when, how rarely it is looked."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from guestd.errors import LimitReached
from guestd.lifecycle.events import Events
from guestd.lifecycle.idle import BUSY, Hold, Limits, WorkloadFacts
from guestd.lifecycle.watch import GUEST_HOLDS_MAX, HOLDS_MAX, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.testing import MockClock

    from guestd.session.jobs import Jobs


@dataclass
class _Jobs:
    """As much of the session's jobs as a watch looks at."""

    all: list[Any] = field(default_factory=list[Any])
    listeners: list[Callable[[Any], None]] = field(default_factory=list["Callable[[Any], None]"])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all)

    async def run(self, seconds: float, *, background: bool = False) -> None:
        """A command."""
        job = SimpleNamespace(
            id="c", kind="command", result=None, terms=SimpleNamespace(background=background)
        )
        self.all.append(job)
        await trio.sleep(seconds)
        job.result = SimpleNamespace(ended_by=None)
        for listener in self.listeners:
            listener(job)


class _Day:
    """A session from its beginning to its end."""

    def __init__(self, limits: Limits) -> None:
        self.jobs = _Jobs()
        self.begun = trio.current_time()
        self.requested = ("", 0.0)
        self.events = Events(self._clock)
        self.watch = Watch(limits, cast("Jobs", self.jobs), self.events, self._clock, lambda: self.requested)
        self.looks = 0
        verdict = self.watch.verdict

        def counted(*, thorough: bool) -> Any:  # noqa: ANN401
            self.looks += 1
            return verdict(thorough=thorough)

        self.watch.verdict = counted

    def _clock(self) -> tuple[float, float]:
        return trio.current_time(), trio.current_time()

    def request(self) -> None:
        self.requested = ("exec", trio.current_time())

    @property
    def now(self) -> float:
        return round(trio.current_time() - self.begun, 1)

    async def end(self) -> tuple[str, float]:
        """Why it ended, and when."""
        found: list[tuple[str, float]] = []
        await self.watch.run(lambda cause: found.append((cause, self.now)))
        return found[0]

    @property
    def said(self) -> list[tuple[str, float]]:
        events = [self.events.get(number) for number in range(1, self.events.next)]
        return [(event["event"], round(event["at"] - self.begun, 1)) for event in events]


async def test_an_hour_of_work_and_then_nothing(autojump_clock: MockClock) -> None:
    day = _Day(Limits())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(day.jobs.run, 3600)
        assert await day.end() == ("idle", 4500)
    assert day.said == [("idle_soon", 4440)]
    assert day.looks < 12


async def test_work_without_end_is_over_after_the_lifetime(autojump_clock: MockClock) -> None:
    day = _Day(Limits())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(day.jobs.run, 100_000)
        assert await day.end() == ("lifetime", 28800)
        nursery.cancel_scope.cancel()
    assert day.said == [("lifetime_soon", 28740)]
    assert day.looks < 60


async def test_background_work_is_none(autojump_clock: MockClock) -> None:
    day = _Day(Limits())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: day.jobs.run(100_000, background=True))
        assert await day.end() == ("idle", 900)
        nursery.cancel_scope.cancel()


async def test_a_request_now_and_then_is_enough_until_it_stays_out(autojump_clock: MockClock) -> None:
    day = _Day(Limits())

    async def ask() -> None:
        for _ in range(10):
            await trio.sleep(870)
            day.request()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        assert await day.end() == ("idle", 9600)
    # Each of them came half a minute after the announcement, which was taken back when its time had come.
    assert day.said[:2] == [("idle_soon", 840), ("active", 900)]
    assert day.said[-1] == ("idle_soon", 9540)


async def test_holds(autojump_clock: MockClock) -> None:
    day = _Day(Limits(lifetime=0))

    async def hold() -> None:
        day.watch.hold(Hold("for a time", trio.current_time() + 5000))
        number = day.watch.hold(Hold("until let go", inf))
        await trio.sleep(2000)
        day.watch.release(number)
        day.watch.release(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        assert await day.end() == ("idle", 5900)


async def test_limits_that_change_are_heeded_at_once(autojump_clock: MockClock) -> None:
    day = _Day(Limits(0, 0))

    async def change() -> None:
        await trio.sleep(50_000)
        day.watch.limits = Limits(60, 0)
        day.watch.look()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        # Idle all the time: it is over as soon as somebody wants it to be.
        assert await day.end() == ("idle", 50_000)


async def test_a_resume_begins_it_anew(autojump_clock: MockClock) -> None:
    day = _Day(Limits())

    async def resume() -> None:
        await trio.sleep(880)
        day.watch.begin_anew()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(resume)
        assert await day.end() == ("idle", 1780)
    assert ("active", 880) in day.said


async def test_a_successor_goes_on_where_it_stopped(autojump_clock: MockClock) -> None:
    day = _Day(Limits(600, 0))
    day.watch.hold(Hold("for a time", trio.current_time() + 1000))
    day.watch.hold(Hold("of a connection", inf))
    await trio.sleep(500)
    day.request()
    after = _Day(Limits())
    after.watch.take_over(day.watch.to_map())
    assert await after.end() == ("idle", 1100), (
        "counted from its own beginning: the hold's end at 1000, and 600 s"
    )


async def test_what_held_up_to_the_death_of_a_supervisor_counts_up_to_then(autojump_clock: MockClock) -> None:
    """A successor that knew only of what happened before took a session that had been held, or whose workload had been
    busy, for as long as its idle time for idle at once.
    """
    held, worked, idle = (_Day(Limits(600, 0)) for _ in range(3))
    held.watch.hold(Hold("of a connection", inf))
    worked.watch.workload = cast("Any", SimpleNamespace(facts=WorkloadFacts(BUSY)))
    await trio.sleep(5000)
    for day, left in ((held, 600), (worked, 600), (idle, 0)):
        after = _Day(Limits())
        after.watch.take_over(day.watch.to_map())
        assert await after.end() == ("idle", left)
        # The clock has gone on by that; what the others know is as old as before.
        held.watch.hold(Hold("of a connection", inf))


async def test_a_lease_is_taken_again_under_its_name_and_never_shortened(autojump_clock: MockClock) -> None:
    day = _Day(Limits(60, 0))

    def lease(seconds: float, pid: int, name: str = "") -> None:
        hold = Hold(f"uid 7 pid {pid}", trio.current_time() + seconds, 7, name)
        day.watch.hold(hold, 2)

    lease(1000, 1)
    lease(10, 2)
    assert [hold.until - trio.current_time() for hold in day.watch.holds_of(7)] == [1000]
    lease(20, 3, "other")
    with pytest.raises(LimitReached, match=r"user 7 has 2 leases, and the limit is 2.*agent\.leases"):
        lease(20, 4, "one more")
    lease(2000, 5)
    await trio.sleep(21)
    lease(20, 6, "the place of one that is over")
    assert await day.end() == ("idle", 2060)


async def test_the_guests_own_leases_leave_room_for_the_hosts() -> None:
    day = _Day(Limits(60, 0))
    for uid in range(GUEST_HOLDS_MAX):
        day.watch.hold(Hold("x", inf, uid), 1)
    with pytest.raises(LimitReached, match="the users of this machine"):
        day.watch.hold(Hold("x", inf, 100_000), 1)
    for number in range(HOLDS_MAX):
        day.watch.hold(Hold(f"host {number}", inf))
    with pytest.raises(LimitReached):
        day.watch.hold(Hold("one more", inf))


def test_events_are_kept_within_a_bound() -> None:
    events = Events(lambda: (1.0, 2.0), kept=3)
    heard: list[int] = []
    events.followers.append(lambda: heard.append(events.next - 1))
    for number in range(5):
        events.say("it", number=number)
    assert (events.oldest, events.next, heard) == (3, 6, [1, 2, 3, 4, 5])
    assert events.get(3) == {"event": "it", "n": 3, "at": 1.0, "mono": 2.0, "number": 2}
