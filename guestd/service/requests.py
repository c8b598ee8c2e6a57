"""Requests that start a program, read and checked field by field, with the configured defaults for what is not said."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, cast

from guestd.errors import BadRequest, LimitReached
from guestd.process.terminal import SIZE_MAX, Size
from guestd.session.command import CommandRequest
from guestd.session.program import RLIMITS
from guestd.session.terms import Terms
from guestd.tape import LEAST_CAPACITY
from guestd.wire.messages import Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guestd.config import Settings

#: Where to begin showing a stream: an offset, or None for the oldest byte kept.
Start = int | None

SCOPES = ("tree", "leave")
ID_FIELD_MAX = 1024
_TRACE_FIELDS = {"traceparent": "TRACEPARENT", "tracestate": "TRACESTATE"}
_MOST_DRAIN = 3600.0
_POINTER = 8
_LEAST_OOM, _MOST_OOM = -1000, 1000


def read_command(settings: Settings, fields: Fields) -> CommandRequest:
    """What `exec` asks for."""
    command, limits = settings.command, settings.limits
    program = read_program(settings, fields)
    if program["argv"] is None and program["shell"] is None:
        raise BadRequest(
            "give either `argv` or `shell`, and not both", field="argv", expected="argv or shell"
        )
    return CommandRequest(
        **program,
        stdin=fields.choice("stdin", ("none", "stream", "closed"), "none"),
        spool=fields.flag("spool"),
        tape=fields.integer("tape", command.tape, least=LEAST_CAPACITY, most=limits.tapes),
        terms=Terms(
            timeout=fields.seconds("timeout", command.timeout) or None,
            grace=fields.seconds("grace", command.grace),
            drain=fields.seconds("drain", command.drain, most=_MOST_DRAIN),
            retain=fields.seconds("retain", command.retain),
            scope=fields.choice("scope", SCOPES, None),
            kill_on_disconnect=fields.flag("kill_on_disconnect"),
            background=fields.flag("background"),
        ),
    )


def read_program(settings: Settings, fields: Fields) -> dict[str, Any]:
    """What every program can be asked for; neither `argv` nor `shell` may be fine."""
    command, limits = settings.command, settings.limits
    argv = _read_argv(fields, limits.argv)
    shell = fields.text("shell", None, most=limits.argv)
    if argv is not None and shell is not None:
        raise BadRequest(
            "give either `argv` or `shell`, and not both", field="argv", expected="argv or shell"
        )
    return {
        "argv": argv,
        "shell": shell,
        "env": _read_env(fields, limits.env),
        "cwd": fields.text("cwd", None, most=4096),
        "user": fields.name_or_number("user"),
        "group": fields.name_or_number("group"),
        "groups": _read_groups(fields),
        "umask": fields.integer("umask", command.umask, most=0o777),
        "rlimits": {**command.rlimits, **read_rlimits(fields.mapping("rlimits"))},
        "nice": fields.integer("nice", command.nice, least=-20, most=19),
        "oom_score_adj": fields.integer(
            "oom_score_adj", command.oom_score_adj, least=_LEAST_OOM, most=_MOST_OOM
        ),
        "trace": {
            name: fields.text(key, most=8192) for key, name in _TRACE_FIELDS.items() if fields.has(key)
        },
    }


def read_start(fields: Fields, streams: Iterable[str], *words: str) -> dict[str, Start] | str | None:
    """From where output is wanted: offsets by stream, or one of the words. None when nothing is said."""
    given = fields.raw("from")
    if given is None:
        return None
    if isinstance(given, str):
        return fields.choice("from", words)
    known = tuple(streams)
    offsets = fields.mapping("from")
    for name in offsets:
        if name not in known:
            raise fields.bad(
                "from", f"offsets for {' and '.join(known)}, or {', or '.join(f'`{w}`' for w in words)}"
            )
    return {name: _offset(fields, offset) for name, offset in offsets.items()}


def read_size(fields: Fields, usual: Size) -> Size:
    """A size; `usual` where a half of it is missing or 0, which is how it is said that it is not known."""
    columns, rows, width, height = (
        fields.integer(name, 0, most=SIZE_MAX) for name in ("columns", "rows", "width", "height")
    )
    return Size(columns, rows, width, height) if columns and rows else usual


def _read_argv(fields: Fields, most: int) -> list[str] | None:
    words = fields.raw("argv")
    if isinstance(words, list) and len(cast("list[object]", words)) > most // _POINTER:
        raise LimitReached(
            f"argv has {len(cast('list[object]', words))} words; the kernel counts a pointer for each beside them,"
            f" and the limit is {most} bytes; pass the data by stdin, or raise limits.argv",
            limit=most, setting="limits.argv",
        )  # fmt: skip
    argv = fields.texts("argv", None)
    if argv is None:
        return None
    if not argv:
        raise BadRequest(
            "`argv` is empty; its first word is the program", field="argv", expected="at least one word"
        )
    size = sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in argv)
    if size > most:
        raise LimitReached(
            f"argv has {size} bytes; the limit is {most}; pass the data by stdin, or raise limits.argv",
            limit=most, setting="limits.argv",
        )  # fmt: skip
    return argv


def _read_env(fields: Fields, most: int) -> dict[str, str]:
    env = fields.text_map("env")
    size = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise BadRequest(
                f"{name[:80]!r} is no name of an environment variable", field="env",
                expected="names that are not empty, without = and NUL",
            )  # fmt: skip
        size += len(name) + len(value.encode("utf-8", "surrogateescape")) + 2
    if size > most:
        raise LimitReached(
            f"env has {size} bytes; the limit is {most}; pass the data by stdin or a file, or raise limits.env",
            limit=most, setting="limits.env",
        )  # fmt: skip
    return env


def _read_groups(fields: Fields) -> list[str | int] | None:
    given = fields.raw("groups")
    if given is None:
        return None
    groups: list[str | int] = []
    for each in cast("list[object]", given if isinstance(given, list) else [given]):
        group = Fields({"groups": each}).name_or_number("groups")
        if group is None:
            raise fields.bad("groups", "a list of names or numbers")
        groups.append(group)
    return groups


def _offset(fields: Fields, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise fields.bad("from", "offsets that are whole numbers from 0 on")


def read_rlimits(asked: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """`{"nofile": 1024, "core": [0, "unlimited"]}` as numbers; BadRequest names what is wrong."""
    found: dict[str, tuple[int, int]] = {}
    for name, value in asked.items():
        plain = name.lower().removeprefix("rlimit_")
        if plain not in RLIMITS:
            raise BadRequest(
                f"there is no resource limit {name!r}; known are: {', '.join(sorted(RLIMITS))}",
                field="rlimits", expected="names of resource limits",
            )  # fmt: skip
        pair = cast("list[object]", value if isinstance(value, (list, tuple)) else [value, value])
        numbers = [_limit(name, each) for each in pair]
        if len(numbers) != 2 or _is_above(numbers[0], numbers[1]):
            raise BadRequest(
                f"rlimits.{name}: {value!r} is not a soft limit and a hard limit not below it",
                field=f"rlimits.{name}", expected="a number, or [soft, hard]",
            )  # fmt: skip
        found[plain] = (numbers[0], numbers[1])
    return found


def _limit(name: str, value: object) -> int:
    if value == "unlimited":
        return resource.RLIM_INFINITY
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise BadRequest(
        f"rlimits.{name}: {value!r} is neither a number nor `unlimited`",
        field=f"rlimits.{name}", expected="a number, `unlimited`, or [soft, hard] of those",
    )  # fmt: skip


def _is_above(soft: int, hard: int) -> bool:
    if hard == resource.RLIM_INFINITY:
        return False
    return soft == resource.RLIM_INFINITY or soft > hard
