"""`guestd check`: what is in force, where it comes from, and what is wrong, without changing anything.

The settings' own problems come from `config`; here they are held against this machine: does the user exist, can the
runtime directory be written, is the token a secret. What guestd copes with by itself is a note and not a problem.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from guestd._config_kinds import TableOf, as_list, as_table
from guestd.config import Problem, Settings, environment_name, keys_of
from guestd.errors import ConfigError, StartFailed
from guestd.process.identity import Users
from guestd.transport.access import read_token
from guestd.wire.address import Address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from guestd.config import Configuration, Origin

#: Longer values do not push the column of sources away.
_VALUE_WIDTH = 44


class Row(NamedTuple):
    """One setting: what is in force, for a person and for a program, and where it comes from."""

    key: str
    shown: str
    value: object
    raw: object
    origin: Origin


class Report(NamedTuple):
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]


def examine(configuration: Configuration) -> Report:
    """Hold the settings against this machine."""
    found = list(_world(configuration.settings, configuration.origins))
    return Report(
        rows=tuple(_rows(configuration)),
        problems=(*configuration.problems, *(each for each, stops in found if stops)),
        notes=tuple(each for each, stops in found if not stops),
    )


def as_text(report: Report) -> str:
    """For a person."""
    key_width = max(len(row.key) for row in report.rows)
    value_width = min(_VALUE_WIDTH, max(len(row.shown) for row in report.rows))
    lines = [f"{row.key:{key_width}}  {row.shown:{value_width}}  {row.origin}" for row in report.rows]
    for title, found in (("note", report.notes), ("problem", report.problems)):
        lines += ["", *(f"{title}: {each}" for each in found)] if found else []
    count = len(report.problems)
    good = "guestd can start with these settings"
    lines += [
        "",
        f"{count} problem{'s' if count > 1 else ''}: guestd cannot start like this" if count else good,
    ]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> str:
    """For a program."""
    import json

    settings = {
        row.key: {
            "value": _plain(row.value),
            "shown": row.shown,
            **_origin(row.origin),
            "raw": _plain(row.raw),
        }
        for row in report.rows
    }
    said = {
        title: [
            {"key": each.key, "message": each.message, "fix": each.fix, **_origin(each.origin)}
            for each in found
        ]
        for title, found in (("problems", report.problems), ("notes", report.notes))
    }
    return json.dumps({"ok": not report.problems, "settings": settings, **said}) + "\n"


def reference() -> str:
    """Every setting as a Markdown table: what docs/configuration.md shows."""
    lines = ["| key | default | what may be set | what it does |", "|---|---|---|---|"]
    for name, key in keys_of(Settings).items():
        default = key.show(key.kind.read(key.default))
        cells = (f"`{name}`", default, key.kind.describe(), key.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _rows(configuration: Configuration) -> Iterator[Row]:
    for name, key in keys_of(Settings).items():
        value: object = configuration.settings
        for part in name.split("."):
            value = getattr(value, part)
        table = as_table(value) if isinstance(key.kind, TableOf) else None
        if isinstance(key.kind, TableOf) and table:
            for entry, each in table.items():
                dotted = f"{name}.{entry}"
                origin = configuration.origins[dotted]
                yield Row(dotted, key.kind.value.show(each), each, origin.raw, origin)
        else:
            origin, kind = configuration.origins[name], key.kind
            yield Row(name, key.show(value), kind.public(value), kind.public(origin.raw), origin)


def _world(settings: Settings, origins: Mapping[str, Origin]) -> Iterator[tuple[Problem, bool]]:
    """What this machine has against the settings, and whether guestd cannot start like that."""

    def wrong(key: str, what: str, fix: str) -> tuple[Problem, bool]:
        return Problem(origins[key], key, f"{key} {what}", fix), True

    def note(key: str, what: str, fix: str) -> tuple[Problem, bool]:
        return Problem(origins[key], key, f"{key} {what}", fix), False

    for key, path in (
        ("runtime_dir", settings.runtime_dir),
        ("command.spool_dir", settings.command.spool_dir),
    ):
        if path and (reason := _cannot_fill(path)):
            fix = f"make it writable for uid {os.geteuid()}, or choose another with {environment_name(key)}"
            yield wrong(key, f"is {path}: {reason}", fix)
    for address in settings.listen:
        if address.scheme == "unix" and (reason := _cannot_fill(os.path.dirname(address.path) or ".")):
            yield wrong("listen", f"has {address}: {reason}", "choose a directory guestd can write to")
        elif address.scheme == "vsock" and not os.path.exists("/dev/vsock"):
            yield wrong("listen", f"has {address}: there is no /dev/vsock", "give the machine a vsock device")
    if settings.token_file and (said := _token_trouble(settings.token_file)):
        yield wrong("token_file", f"is {settings.token_file}: {said[0]}", said[1])
    if not os.path.isdir(settings.workspace):
        what = f"is {settings.workspace}, which is no directory here now"
        yield note("workspace", what, "commands will start in their user's home until it is there")
    users = Users()
    own = users.own_identity()
    try:
        identity = users.resolve(users.default_user(settings.user), None, None, own)
    except StartFailed:
        what = f'is "{settings.user}": there is no such user in /etc/passwd'
        yield wrong("user", what, "create it in the image, or name another")
    else:
        if own.uid not in {0, identity.uid}:
            what = f'is "{settings.user}", which uid {own.uid} cannot become'
            yield wrong("user", what, "start guestd as root, or leave the setting empty")
    if settings.shell and not (os.path.isfile(settings.shell) and os.access(settings.shell, os.X_OK)):
        yield wrong(
            "shell", f"is {settings.shell}: it cannot be executed", "expected a shell, such as /bin/sh"
        )


def _cannot_fill(path: str) -> str | None:
    """Why guestd could not make files there; it makes directories that are missing."""
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        return f"{there} is not a directory"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"


def _token_trouble(path: str) -> tuple[str, str] | None:
    """What is wrong with the token's file, and what to do. The token itself is never shown."""
    fix = f"put a long random text there: head -c 32 /dev/urandom | base64 > {path}; chmod 600 {path}"
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"it cannot be read: {error.strerror}", fix
    if not stat.S_ISREG(mode):
        return "it is not a file", fix
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"others can get at it, its mode is {stat.S_IMODE(mode):04o}", f"chmod 600 {path}"
    try:
        read_token(path)
    except ConfigError as error:
        return error.message.partition(": ")[2], fix
    return None


def _origin(origin: Origin) -> dict[str, object]:
    return {"source": origin.source, "name": origin.name, "line": origin.line}


def _plain(value: object) -> object:
    """A value as JSON can have it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if (table := as_table(value)) is not None:
        return {name: _plain(each) for name, each in table.items()}
    if (items := as_list(value)) is not None and not isinstance(value, Address):
        return [_plain(each) for each in items]
    return str(value)
