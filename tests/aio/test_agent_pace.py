"""However many guests ask, and however quickly, they are heeded at a rate, in the order in which they asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio

from guestd import observe
from guestd.service.agent import Guest, Leases
from guestd.transport.agents import Pace

if TYPE_CHECKING:
    import pytest
    from trio.testing import MockClock


async def test_a_burst_and_then_a_rate_for_all_together(autojump_clock: MockClock) -> None:
    pace = Pace(rate=200, burst=100)
    begun = trio.current_time()
    heeded: list[int] = []

    async def guest(number: int, times: int) -> None:
        for _ in range(times):
            await pace.turn()
            heeded.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest, 0, 400)
        nursery.start_soon(guest, 1, 100)
    assert round(trio.current_time() - begun, 2) == 2.0, "500 turns, of which 100 at once"
    # Who asks more often does not get more of them.
    shared = heeded[100:200]
    assert abs(shared.count(0) - shared.count(1)) <= 4


async def test_who_was_quiet_has_a_burst_again_and_no_more(autojump_clock: MockClock) -> None:
    pace = Pace(rate=10, burst=5)
    await trio.sleep(1000)
    begun = trio.current_time()
    for _ in range(6):
        await pace.turn()
    assert round(trio.current_time() - begun, 2) == 0.1
    await pace.turn(cost=10)
    assert round(trio.current_time() - begun, 2) == 1.1


def test_few_of_the_leases_that_a_guest_takes_turn_no_audit_log_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5000.0
    told: list[tuple[str, str, object, object]] = []

    def did(deed: str, who: str, facts: dict[str, object]) -> None:
        told.append((deed, who, facts["by"], facts["unrecorded"]))

    monkeypatch.setattr(observe, "observers", [cast("Any", SimpleNamespace(did=did))])
    leases = Leases(cast("Any", SimpleNamespace(clock=lambda: (0.0, now))))
    for number in range(1000):
        leases.note(Guest(1000, 42), by=str(number))
    assert told == [("busy", "guest uid 1000 pid 42", str(number), None) for number in range(10)]
    now += 6.0
    leases.note(Guest(0, 7), by="later")
    leases.note(Guest(0, 7), by="too soon")
    assert told[10:] == [("busy", "guest uid 0 pid 7", "later", 990)]
    now += 3600.0
    for _ in range(20):
        leases.note(Guest(0, 7), by=None)
    assert [each[3] for each in told[11:]] == [1, *[None] * 9]
