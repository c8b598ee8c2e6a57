"""The operations there are, by name."""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING

from guestd.service import commands, shells, status, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

    Operation = Callable[[Session, Connection, Channel, Fields], None]

#: Who only looks does not use the session.
_ONLY_LOOK = {"commands", "events", "ps", "status", "wait"}


def _late(module: str, name: str) -> Operation:
    """An operation whose module is imported when it is first asked for."""

    def begin(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
        operation: Operation = getattr(import_module(f"guestd.service.{module}"), name)
        operation(session, connection, channel, fields)

    return begin


_TABLE: dict[str, Operation] = {
    "exec": commands.exec_,
    "attach": commands.attach,
    "shell": shells.shell,
    "commands": shells.commands,
    "wait": commands.wait,
    "kill": commands.kill,
    "ps": commands.ps,
    "status": status.status,
    "upgrade": upgrade.upgrade,
    **{name: _late("lifecycle", name) for name in ("busy", "events", "timers", "stop", "resume")},
}


class SessionOperations:
    """The table, bound to the session it works on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, name: str) -> Callable[[Connection, Channel, Fields], None] | None:
        operation = _TABLE.get(name)
        if operation is None:
            return None
        if name not in _ONLY_LOOK:
            self._session.requested = (name, time.monotonic())
        return lambda connection, channel, fields: operation(self._session, connection, channel, fields)

    def names(self) -> list[str]:
        return sorted(_TABLE)
