"""The operations there are, by name."""

from __future__ import annotations

import time
from functools import partial
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING

from guestd import observe
from guestd.errors import GuestdError
from guestd.service import commands, shells, status, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

    Operation = Callable[[Session, Connection, Channel, Fields], None]

#: Who only looks does not use the session.
_ONLY_LOOK = {"audit", "commands", "events", "list", "mounts", "ps", "stat", "status", "wait", "watch"}
#: Fields of a request that its record has: numbers, flags and short texts, but for these, which are in the job's own
#: record, or secret, or about how something is shown.
_UNRECORDED = {
    "op",
    "shell",
    "traceparent",
    "tracestate",
    "window",
    "tape",
    "term",
    "colorterm",
    "client",
    "token",
}
_RECORDED_FIELDS, _RECORDED_NAME, _RECORDED_TEXT = 64, 64, 1024
#: Not begun before the file systems that have to be there are there.
_OF_FILES = {
    "hash", "list", "make", "move", "pack", "read", "remove", "stat", "unpack", "watch", "write",
}  # fmt: skip
_NEEDS_MOUNTS = {"exec", "shell"} | _OF_FILES


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
    **{name: _late("mounts", name) for name in ("mount", "unmount", "mounts")},
    "forward": _late("forward", "forward"),
    "audit": _late("audit", "audit"),
    **{name: _late("lifecycle", name) for name in ("busy", "events", "timers", "stop", "resume")},
    **{name: _late("files", {"list": "list_", "hash": "hash_"}.get(name, name)) for name in _OF_FILES},
}


def _record(
    name: str, operation: Operation, session: Session, connection: Connection, channel: Channel, fields: Fields
) -> None:  # fmt: skip
    """Begin the operation, and say who asked for what, and whether that was taken."""
    try:
        operation(session, connection, channel, fields)
    except GuestdError as error:
        observe.did(name, connection.peer, **_facts(channel, fields), result=error.code, why=error.message)
        raise
    observe.did(name, connection.peer, **_facts(channel, fields), result="accepted")


def _facts(channel: Channel, fields: Fields) -> dict[str, object]:
    if not observe.observers:
        return {}
    # What a client says stands apart: it is not to look like what guestd says.
    asked: dict[str, object] = {
        key: value
        for key, value in islice(fields.to_map().items(), _RECORDED_FIELDS)
        if key not in _UNRECORDED
        and len(key) <= _RECORDED_NAME
        and (isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _RECORDED_TEXT))
    }
    return {"asked": asked or None, "job": channel.subject}


class SessionOperations:
    """The table, bound to the session it works on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _begin_with_mounts(
        self, operation: Operation, connection: Connection, channel: Channel, fields: Fields
    ) -> None:
        """What works on files waits for the file systems that have to be there, unless it is asked not to."""
        mounts = self._session.life.mounts
        regardless = fields.flag("without_mounts")
        known = fields.raw("id")
        # Whoever comes back to a job starts nothing.
        is_there = isinstance(known, str) and self._session.jobs.knows(known)
        if mounts.is_open or is_there or regardless:
            operation(self._session, connection, channel, fields)
        else:
            connection.begin_later(
                channel, mounts.wait, lambda: operation(self._session, connection, channel, fields)
            )

    def find(self, name: str) -> Callable[[Connection, Channel, Fields], None] | None:
        operation = _TABLE.get(name)
        if operation is None:
            return None
        recorded = operation
        if name not in _ONLY_LOOK:
            self._session.requested = (name, time.monotonic())
            recorded = partial(_record, name, operation)
        if name in _NEEDS_MOUNTS:
            return lambda connection, channel, fields: self._begin_with_mounts(
                recorded, connection, channel, fields
            )
        return lambda connection, channel, fields: recorded(self._session, connection, channel, fields)

    def names(self) -> list[str]:
        return sorted(_TABLE)
