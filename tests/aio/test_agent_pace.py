"""However many guests ask, and however quickly, they are heeded at a rate, in the order in which they asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from guestd.transport.agents import Pace

if TYPE_CHECKING:
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
