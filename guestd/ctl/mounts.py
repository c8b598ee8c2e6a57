"""mount, unmount, mounts."""

from __future__ import annotations

import json as json_text
import shlex
from typing import TYPE_CHECKING, Any

import trio

from guestd.ctl.dialing import dialer
from guestd.ctl.show_mounts import show_mount, show_mounts
from guestd.errors import BadRequest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from guestd.client import Client

#: Options of the command line that are fields of the request, by the same name.
_FIELDS = (
    "type", "name", "owner", "mode", "timeout", "format", "fsck", "upper", "work", "env_file",
)  # fmt: skip


def mount(options: argparse.Namespace) -> int:
    """Mount, and say what came of it."""
    fields = _read(options)
    found = _ask(options, lambda client: client.mount(**fields))
    _print(options, found, lambda: show_mount(found))
    return 0


def unmount(options: argparse.Namespace) -> int:
    found = _ask(options, lambda client: client.unmount(options.path, force=options.force))
    _print(options, found, lambda: "")
    return 0


def mounts(options: argparse.Namespace) -> int:
    found = _ask(options, lambda client: client.mounts())
    _print(options, found, lambda: show_mounts(found))
    return 0


def _read(options: argparse.Namespace) -> dict[str, Any]:
    """The request: SOURCE and PATH as mount(8) has them, or a path alone."""
    *source, path = options.words
    if len(source) > 1:
        raise BadRequest(
            f"{len(options.words)} words are too many: write `guestctl mount SOURCE PATH`", field="path"
        )
    fields = {name: value for name in _FIELDS if (value := getattr(options, name)) is not None}
    if source:
        fields["source"] = source[0]
        if options.type is None:
            fields["type"] = _type_of(source[0])
    if path.startswith("/"):
        fields["path"] = path
    elif source or options.type:
        fields.setdefault("name", path)
    else:
        fields["path"] = path
    if options.options:
        fields["options"] = [each for given in options.options for each in given.split(",") if each]
    for name, given in (("read_only", options.read_only), ("cover", options.cover)):
        if given:
            fields[name] = True
    if options.no_grow:
        fields["grow"] = False
    if options.program:
        words = shlex.split(options.program)
        fields["program"] = words if len(words) > 1 else words[0]
    if options.env:
        fields["env"] = dict(options.env)
    return fields


def _type_of(source: str) -> str:
    """What it must be, by the look of its source."""
    if source.startswith("/dev/") or source.partition("=")[0].lower() in {"serial", "label", "uuid"}:
        return "block"
    host, colon, path = source.rpartition(":")
    if colon and host and path.startswith("/") and not source.startswith("/"):
        return "nfs"
    raise BadRequest(
        f"what is {source!r}? say its type: -t virtiofs, 9p, overlay, bind, tmpfs or fuse", field="type"
    )


def _ask(
    options: argparse.Namespace, question: Callable[[Client], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        async with dialer(options)() as client:
            return await question(client)

    return trio.run(ask)


def _print(options: argparse.Namespace, fields: dict[str, Any], text: Callable[[], str]) -> None:
    shown = json_text.dumps(fields, default=str) if options.json else text()
    if shown:
        print(shown)
