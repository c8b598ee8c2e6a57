"""The operations there are, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.service import commands, shells, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

_TABLE: dict[str, Callable[[Session, Connection, Channel, Fields], None]] = {
    "exec": commands.exec_,
    "attach": commands.attach,
    "shell": shells.shell,
    "commands": shells.commands,
    "wait": commands.wait,
    "kill": commands.kill,
    "ps": commands.ps,
    "status": status.status,
}


class SessionOperations:
    """The table, bound to the session it works on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, name: str) -> Callable[[Connection, Channel, Fields], None] | None:
        operation = _TABLE.get(name)
        if operation is None:
            return None
        return lambda connection, channel, fields: operation(self._session, connection, channel, fields)

    def names(self) -> list[str]:
        return sorted(_TABLE)
