"""The operation that replaces this supervisor by another version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import guestd
from guestd.errors import Conflict, ShuttingDown

if TYPE_CHECKING:
    from guestd.errors import GuestdError
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields


def upgrade(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Hand over to the installed version, or to the program that is named. The answer comes before that."""
    program = fields.texts("program", None)
    session.upgrade.check_possible(program)
    channel.accept({})

    async def answer() -> dict[str, Any]:
        await session.upgrade.prepare(program)
        # The END leaves first: whoever leaves waits for what is on its way.
        session.upgrade.go(program)
        return {"from": guestd.__version__, "generation": session.generation}

    connection.start_soon(channel, answer)


def hindrance(session: Session) -> GuestdError | None:
    """Why this supervisor cannot be replaced at present."""
    if session.life.stop.asked.is_set():
        return ShuttingDown("the session is stopping: nothing takes guestd's place any more")
    lost = [job.id for job in session.jobs if job.result is None and not job.survives]
    if lost:
        named = ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
        return Conflict(
            f"{len(lost)} jobs run that would not survive it ({named}): whoever keeps guestd's descriptors had no"
            " room for theirs (init.fd_store); end them, or wait for their end"
        )
    return None
