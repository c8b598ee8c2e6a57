"""What a job works with, and on what terms it is ended and kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from signal import SIGTERM
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from guestd.process.cgroup import Cgroups
    from guestd.process.reaper import Reaper
    from guestd.process.spawn import Spawner
    from guestd.process.statuses import Statuses
    from guestd.session.chronicle import Chronicle
    from guestd.session.job import Job
    from guestd.session.timers import Timers

_log = logging.getLogger("guestd.jobs")


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What every job of a session uses."""

    spawner: Spawner
    reaper: Reaper
    cgroups: Cgroups | None
    nursery: trio.Nursery
    clock: Callable[[], tuple[float, float]]
    timers: Timers
    #: Where jobs are written down that are to survive the supervisor; and how those end that have.
    chronicle: Chronicle
    statuses: Statuses
    #: Hears of every job that has ended.
    ended: Callable[[Job], None]

    def start_soon(self, job: Job, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """A task for a job. It outlives every connection."""
        self.nursery.start_soon(_guarded, job, function, arguments)


@dataclass(slots=True, kw_only=True)
class Terms:
    """How a job is to be ended and kept."""

    timeout: float | None
    grace: float
    drain: float
    retain: float
    #: `tree`: everything goes with the first process. `leave`: nothing else is touched. None: `leave` at a
    #: normal end, `tree` at a timeout or a kill.
    scope: str | None
    kill_on_disconnect: bool
    #: What it is told first when it is to end. Shells do not end at SIGTERM.
    first_signal: int = SIGTERM
    #: It keeps the session awake no longer than its caller does.
    background: bool = False


async def _guarded(
    job: Job, function: Callable[..., Awaitable[object]], arguments: tuple[object, ...]
) -> None:
    try:
        await function(*arguments)
    except Exception as error:  # noqa: BLE001  a mistake in the care of one job is not the end of the others
        _log.exception("job %s: guestd made a mistake", job.id)
        job.lose(error)
