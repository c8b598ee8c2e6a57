"""The operation that replaces this supervisor by another version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import guestd

if TYPE_CHECKING:
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
