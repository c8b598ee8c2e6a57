"""What goes on until Ctrl+C, over as many connections as that takes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import trio

from guestd.client.tasks import background
from guestd.ctl.failures import say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from guestd.client import Notice


def tell_notice(notice: Notice) -> None:
    """Of a connection that was lost, and of one that was found."""
    if notice.what == "again":
        say("connected again")
    elif notice.error is not None:
        say(f"{notice.error.message}; next try in {notice.delay:.0f} s")


async def until_interrupted(run: Callable[[], Awaitable[None]]) -> None:
    """Until it is over, or Ctrl+C."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        done = trio.CancelScope()
        async with background() as tasks:
            tasks.start_soon(_cancel_at, signals, done)
            with done:
                await run()


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
