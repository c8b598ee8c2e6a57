"""Operations on file systems: mount, unmount, mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guestd.storage.plan import FORMATS, FSCK, TYPES, Wanted, mistakes

if TYPE_CHECKING:
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

_TEXT_MAX = 4096
_MOST_SECONDS = 3600.0
_MODE_MAX = 0o7777
#: How long `mounts` waits for a look at those that are slow.
_PATIENCE = 2.0


def mount(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Mount a file system; with a path or a name alone, one that is known."""
    wanted = _read(fields)
    if fields.has("type"):
        found = mistakes([Wanted(wanted)], 1)
        if found:
            raise fields.bad(found[0].field, f"{found[0].fix.removeprefix('expected ')}")
    channel.accept({})

    async def answer() -> dict[str, Any]:
        return await session.life.mounts.mount(wanted)

    connection.start_soon(channel, answer)


def unmount(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Take one down, by path or name."""
    force, given = fields.flag("force"), fields.text("path", most=_TEXT_MAX)
    session.life.mounts.find(given)
    channel.accept({})

    async def answer() -> dict[str, Any]:
        return await session.life.mounts.unmount(given, force=force)

    connection.start_soon(channel, answer)


def mounts(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """All of them, each looked at now."""
    del fields
    channel.accept({})

    async def answer() -> dict[str, Any]:
        await session.life.mounts.look_now(_PATIENCE)
        return session.life.mounts.describe()

    connection.start_soon(channel, answer, only_asks=True)


def _read(fields: Fields) -> dict[str, object]:
    """Every field, checked for what it is; whether they make a mount is the plan's to say."""

    def text(name: str) -> str:
        return fields.text(name, "", most=_TEXT_MAX)

    program = fields.raw("program")
    mode = fields.integer("mode", None, most=_MODE_MAX)
    owner = fields.name_or_number("owner")
    found: dict[str, object] = {
        **{name: text(name) for name in ("name", "path", "source", "upper", "work", "env_file")},
        "type": fields.choice("type", TYPES, ""),
        "options": fields.texts("options", []),
        "read_only": fields.flag("read_only"),
        "owner": "" if owner is None else str(owner),
        "mode": "" if mode is None else f"{mode:04o}",
        # Nobody else waits for what is asked for at run time.
        "required": False,
        "timeout": fields.seconds("timeout", None, most=_MOST_SECONDS) or None,
        "format": fields.choice("format", FORMATS, ""),
        "fsck": fields.choice("fsck", FSCK, FSCK[0]),
        "grow": fields.flag("grow", default=True),
        "cover": fields.flag("cover"),
        "program": text("program") if isinstance(program, str) else fields.texts("program", []),
        "env": fields.text_map("env"),
    }
    if not fields.has("path") and not fields.has("name"):
        raise fields.bad("path", "a path, or a name for /mnt/NAME")
    return found
