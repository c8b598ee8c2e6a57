"""Operations on files: read, write, stat, list, make, remove, move, hash, pack, unpack, watch.

Requests are read here, field by field; what they ask for is done by a process of the user they name.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, cast

import trio

from guestd.config import capability_numbers
from guestd.errors import BadRequest, FileFailed, GuestdError, ShuttingDown, StartFailed, from_map
from guestd.process.identity import Users
from guestd.service.parts import Parts, key_of
from guestd.service.transfer import Transfer
from guestd.storage.file_agents import Agents
from guestd.wire.messages import unpack_payload

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.identity import Identity
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

    Operation = Callable[[Session, Connection, Channel, Fields], None]

_log = logging.getLogger("guestd.files")
#: As long as the kernel takes one.
_PATH_MAX = 4095
DIGESTS = ("sha256", "blake2b", "none")
#: Without a word from the client.
IGNORED = (".git", "node_modules")
_IGNORE_MAX = 256
_XATTRS_MAX = 64 * 1024


class Files:
    """The file processes of a session, and what is under way."""

    def __init__(self, session: Session) -> None:
        settings = session.settings
        self._session = session
        self.users = Users()
        self.own = self.users.own_identity()
        self.timeout = settings.files.timeout
        #: Folders that one watch may watch.
        self.watches = settings.files.watches
        self.agents = Agents(
            settings, session.spawner, self.own, list(capability_numbers(settings.command.drop_capabilities)),
            session.nursery, session.life.events.say,
        )  # fmt: skip
        self.under_way: set[Transfer] = set()
        self._connections: dict[Channel, Connection] = {}
        #: What has arrived of uploads whose connection was lost.
        self.parts = Parts(self, session)
        # Nothing is under way any more, and no process of ours keeps a file system from being unmounted.
        self._settled = trio.Event()
        session.life.stop.before_disks.append(self._settled.wait)
        session.nursery.start_soon(self._until_stop)

    @property
    def stopping(self) -> bool:
        return self._session.life.stop.asked.is_set()

    async def _until_stop(self) -> None:
        await self._session.life.stop.asked.wait()
        for transfer in list(self.under_way):
            transfer.stop(ShuttingDown("the session is stopping: the transfer was given up"), keep=False)
        self.agents.close()
        await self.parts.discard_all()
        await self.agents.wait_ended()
        self._settled.set()

    def begin(self, connection: Connection, channel: Channel, transfer: Transfer) -> None:
        """Do what a transfer is asked for."""
        if self.stopping:
            raise ShuttingDown("the session is stopping: nothing new is begun")
        if transfer.ask["upload"] is not None:
            self._take_over(transfer)
            self.parts.begin(transfer.identity, transfer.ask)
        channel.handler = transfer
        self._connections[channel] = connection

        async def answer() -> dict[str, Any]:
            try:
                return await transfer.run()
            finally:
                del self._connections[channel]
                if transfer.ask["upload"] is not None:
                    self.parts.end(transfer.ask)

        connection.start_soon(channel, answer)

    def _take_over(self, transfer: Transfer) -> None:
        """Who comes back is the one who goes on, also where the connection before was not known to be lost."""
        for other in self.sending(key_of(transfer.ask)):
            other.stop(FileFailed("another connection goes on with this upload"), keep=True)

    def sending(self, key: tuple[object, ...]) -> list[Transfer]:
        """Who sends that upload at the moment."""
        return [each for each in self.under_way if key_of(each.ask) == key]

    def connection_of(self, channel: Channel) -> Connection:
        return self._connections[channel]

    def identity(self, fields: Fields) -> Identity:
        """Whom it is done as."""
        user = fields.name_or_number("user")
        if user is None:
            user = self.users.default_user(self._session.settings.user)
        try:
            return self.users.resolve(user, None, None, self.own)
        except StartFailed:
            raise _nobody("user", user) from None

    def error(self, payload: memoryview) -> GuestdError:
        """What the file process said went wrong."""
        return from_map(unpack_payload(payload))

    def shown(self, ask: dict[str, Any]) -> str:
        path = ask["path"].decode("utf-8", "surrogateescape")
        return repr(path)

    def touch(self, ask: dict[str, Any]) -> None:
        self._session.life.watch.touch("transfer", f"{ask['op']} {self.shown(ask)}")


def files_of(session: Session) -> Files:
    """Made for the first request."""
    if session.files is None:
        session.files = Files(session)
    return session.files


# ---------------------------------------------------------------------------------------------------------- the fields


def _path(fields: Fields, name: str) -> bytes:
    text = fields.text(name)
    path = text.encode("utf-8", "surrogateescape")
    if not path or len(path) > _PATH_MAX:
        raise fields.bad(name, f"a path of 1 to {_PATH_MAX} bytes")
    return path


def _optional_path(fields: Fields, name: str) -> bytes | None:
    return _path(fields, name) if fields.has(name) else None


def _common(session: Session, op: str, fields: Fields, identity: Identity) -> dict[str, Any]:
    root = _optional_path(fields, "root")
    if root is not None and not root.startswith(b"/"):
        raise fields.bad("root", "an absolute path")
    bases = [os.fsencode(each) for each in (session.settings.workspace, identity.home, "/")]
    return {"op": op, "path": _path(fields, "path"), "root": root, "bases": bases, "uid": identity.uid}


def _digest(fields: Fields, usual: str = "none") -> str | None:
    chosen = fields.choice("digest", DIGESTS, usual)
    return None if chosen == "none" else chosen


def _owner(files: Files, fields: Fields, name: str) -> int | None:
    given = fields.name_or_number(name)
    if given is None or isinstance(given, int):
        return given
    try:
        if name == "owner":
            return files.users.resolve(given, None, None, files.own).uid
        return files.users.resolve(None, given, None, files.own).gid
    except StartFailed:
        raise _nobody(name, given) from None


def _nobody(field: str, name: object) -> BadRequest:
    table = "/etc/group" if field == "group" else "/etc/passwd"
    return BadRequest(f"there is no {field} {name!r} in {table}", field=field, expected="a name or a number")


def _xattrs(fields: Fields) -> dict[str, bytes]:
    found = fields.mapping("xattrs")
    for name, value in found.items():
        if not name.startswith("user.") or not isinstance(value, bytes) or len(value) > _XATTRS_MAX:
            raise fields.bad("xattrs", "a map of bin by names that begin with `user.`")
    return cast("dict[str, bytes]", found)


def _read(fields: Fields, files: Files) -> dict[str, Any]:
    del files
    return {
        "offset": fields.integer("offset", 0),
        "length": fields.integer("length", None),
        "version": fields.text("version", None, most=256),
        "digest": _digest(fields),
        "xattrs": fields.flag("xattrs"),
    }


def _write(fields: Fields, files: Files) -> dict[str, Any]:
    upload = fields.text("upload", None, most=256)
    return {
        "upload": None if upload is None else upload.encode("utf-8", "surrogateescape"),
        "mode": fields.integer("mode", None, most=0o7777),
        "owner": _owner(files, fields, "owner"),
        "group": _owner(files, fields, "group"),
        "mtime": fields.integer("mtime", None, least=-(2**63)),
        "xattrs": _xattrs(fields),
        "parents": fields.flag("parents"),
        "exclusive": fields.flag("exclusive"),
        "sync": fields.flag("sync", default=True),
        "digest": _digest(fields),
    }


def _pack(fields: Fields, files: Files) -> dict[str, Any]:
    del files
    return {
        "name": _optional_path(fields, "name"),
        "after": _optional_path(fields, "after"),
        "follow": fields.flag("follow"),
        "digest": _digest(fields),
    }


def _unpack(fields: Fields, files: Files) -> dict[str, Any]:
    del files
    return {
        "make": fields.flag("make", default=True),
        "parents": fields.flag("parents"),
        "fresh": fields.flag("fresh"),
        "owners": fields.flag("owners"),
        "digest": _digest(fields),
    }


def _watch(fields: Fields, files: Files) -> dict[str, Any]:
    ignore = fields.texts("ignore", list(IGNORED))
    if len(ignore) > _IGNORE_MAX:
        raise fields.bad("ignore", f"at most {_IGNORE_MAX} globs")
    return {
        "recursive": fields.flag("recursive", default=True),
        "ignore": [each.encode("utf-8", "surrogateescape") for each in ignore],
        "limit": files.watches,
        "listing": fields.flag("listing"),
    }


#: How each reads its fields; whether it takes data.
_OPERATIONS: dict[str, tuple[Callable[[Fields, Files], dict[str, Any]], bool]] = {
    "read": (_read, False),
    "write": (_write, True),
    "stat": (lambda fields, _: {"follow": fields.flag("follow", default=True)}, False),
    "list": (lambda _, __: {}, False),
    "make": (
        lambda fields, _: {
            "parents": fields.flag("parents"),
            "mode": fields.integer("mode", None, most=0o7777),
        },
        False,
    ),
    "remove": (lambda fields, _: {"recursive": fields.flag("recursive")}, False),
    "move": (
        lambda fields, _: {"to": _path(fields, "to"), "replace": fields.flag("replace", default=True)},
        False,
    ),
    "hash": (lambda fields, _: {"digest": _digest(fields, "sha256") or "sha256"}, False),
    "pack": (_pack, False),
    "unpack": (_unpack, True),
    "watch": (_watch, False),
}


def _begin(op: str, session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    files = files_of(session)
    read, takes = _OPERATIONS[op]
    identity = files.identity(fields)
    ask = {**_common(session, op, fields, identity), "upload": None, **read(fields, files)}
    transfer = Transfer(files, channel, identity, ask, takes=takes, keeps=ask["upload"] is not None)
    files.begin(connection, channel, transfer)


def _operation(op: str) -> Operation:
    def begin(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
        _begin(op, session, connection, channel, fields)

    return begin


read, write, hash_, pack, unpack, watch = map(
    _operation, ("read", "write", "hash", "pack", "unpack", "watch")
)
stat, list_, make, remove, move = map(_operation, ("stat", "list", "make", "remove", "move"))
