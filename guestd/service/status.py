"""The state of the session, in one answer."""

from __future__ import annotations

import os
import resource
import sys
from typing import TYPE_CHECKING, Any

import trio

import guestd
from guestd.wire.frames import VERSION

if TYPE_CHECKING:
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

_PAGE = resource.getpagesize()
_PATIENCE = 1.0
_LOOKERS = trio.CapacityLimiter(2)


def status(session: Session, _connection: Connection, channel: Channel, fields: Fields) -> None:
    """Answer at once; nothing here is measured over time."""
    del fields
    channel.accept({})

    async def answer() -> dict[str, Any]:
        found = describe(session)
        # The workspace may be on a file system that does not answer: nobody but who asks waits for it, and
        # not for long.
        with trio.move_on_after(_PATIENCE):
            found["workspace"]["there"] = await trio.to_thread.run_sync(
                os.path.isdir, session.settings.workspace, abandon_on_cancel=True, limiter=_LOOKERS
            )
        return found

    _connection.start_soon(channel, answer, only_asks=True)


def describe(session: Session) -> dict[str, Any]:
    settings = session.settings
    jobs = list(session.jobs)
    wall, mono = session.clock()
    return {
        **session.identity(),
        "version": guestd.__version__,
        "protocol": VERSION,
        "fell_back": session.upgrade.fell_back,
        "python": ".".join(map(str, sys.version_info[:3])),
        "pid": os.getpid(),
        "started_at": session.started[0],
        "uptime": mono - session.started[1],
        "now": wall,
        "listening": session.listening,
        "connections": len(session.connections) - session.guests,
        "guests": session.guests,
        "jobs": {
            "running": session.jobs.running,
            "kept": len(jobs) - session.jobs.running,
            "started": session.jobs.started,
            "limit": settings.limits.jobs,
        },
        "tapes": {"bytes": sum(job.held_bytes for job in jobs), "limit": settings.limits.tapes},
        "processes": {
            "orphans_reaped": session.reaper.orphans,
            "cgroups": session.has_cgroups,
            "launcher": session.spawner.launcher_pid,
        },
        "memory": {"rss": _own_memory()},
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        **session.life.describe(),
        **session.telemetry.describe(),
        **session.relays.describe(),
    }


def _own_memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE
