"""What signals ask of a session: SIGTERM and SIGINT for its end, SIGHUP that its settings are read again."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import trio

from guestd.errors import GuestdError, Unsupported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from guestd.service.session import Session

_log = logging.getLogger("guestd")


class Orders:
    """`early`: what came before Trio listened; without a handler it would have been the end of the supervisor."""

    def __init__(self, session: Session, early: list[int]) -> None:
        self._session = session
        self._early = early

    async def heed_stops(self, signals: AsyncIterator[int]) -> None:
        """A signal stops the session; a second one takes the grace away."""
        stop = self._session.life.stop
        while True:
            if not self._came_early({signal.SIGTERM, signal.SIGINT}):
                await anext(signals)
            stop.ask("signal", grace=0.0 if stop.asked.is_set() else None)

    async def heed_hang_ups(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """SIGHUP: read the settings again. That is what an upgrade to the same version does, and nothing else notices.
        Where there can be none, it is what a hang-up has always been, and the session stops.
        """
        session = self._session
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            task_status.started()
            while True:
                if not self._came_early({signal.SIGHUP}):
                    await anext(signals)
                try:
                    await session.upgrade.prepare(None)
                except Unsupported:
                    session.life.stop.ask("signal")
                except GuestdError as error:
                    _log.warning("the settings were not read again: %s", error.message)
                else:
                    session.upgrade.go(None)

    def _came_early(self, wanted: set[int]) -> bool:
        found = [number for number in self._early if number in wanted]
        for number in found:
            self._early.remove(number)
        return bool(found)
