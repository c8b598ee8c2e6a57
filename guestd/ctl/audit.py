"""events --audit and --verify: the audit log of a guest, or a copy of one."""

from __future__ import annotations

import itertools
import json as json_text
import os
from typing import TYPE_CHECKING, Any, cast

import trio

from guestd.client.client import Client
from guestd.ctl.dialing import dialer
from guestd.ctl.failures import printable
from guestd.ctl.lifecycle import print_each
from guestd.ctl.show_life import show_event
from guestd.errors import NotFound
from guestd.wire.chain import Head, read_head, verify

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_BROKEN_STATUS = 1
#: What every record has, and nobody reads.
_CHAIN = {"n", "prev", "hash"}


def audit(options: argparse.Namespace) -> int:
    """Show the records, or check them."""
    if options.verify is None:
        if options.head:
            options.parser.error("--head is for --verify: it says which record must be in the log")
        return trio.run(_show, options)
    if options.follow or options.last is not None:
        options.parser.error("--verify checks the whole log: leave out -f and --last")
    known = read_head(options.head.encode()) if options.head else None
    if options.head and known is None:
        options.parser.error("--head is N:HASH, the number of a record and the 64 digits of its hash")
    if options.verify:
        found = _verify_file(options.verify, known)
    else:
        if known is not None:
            options.parser.error(
                "the guest knows its own head; --head is for a copy: --verify FILE --head N:HASH"
            )
        found = trio.run(_ask, options)
    print(json_text.dumps(found) if options.json else _show_report(found), flush=True)
    return 0 if found["whole"] else _BROKEN_STATUS


async def _show(options: argparse.Namespace) -> int:
    def show(line: str) -> None:
        print(line if options.json else _show_line(line), flush=True)

    def number(line: str) -> int | None:
        found = _read(line).get("n")
        return found if isinstance(found, int) else None

    def is_farewell(line: str) -> bool:
        return _read(line).get("event") == "stop"

    await print_each(options, dialer(options), Client.audit, number, is_farewell, show)
    return 0


def _read(line: str) -> dict[str, Any]:
    """Empty for a line that guestd has not written."""
    try:
        found: object = json_text.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


async def _ask(options: argparse.Namespace) -> dict[str, Any]:
    async with dialer(options)() as client:
        return await client.verify_audit()


def _verify_file(path: str, known: Head | None) -> dict[str, Any]:
    """A file and those that were put aside beside it; with the head beside it, where there is one."""
    names = [path]
    for number in itertools.count(1):
        if not os.path.exists(older := f"{path}.{number}"):
            break
        names.insert(0, older)
    if known is None:
        try:
            with open(f"{path}.head", "rb") as file:
                known = read_head(file.read(128))
        except OSError:
            known = None
    try:
        return {**verify(_lines(names), known).to_map(), "path": path}
    except OSError as error:
        raise NotFound(f"{error.filename}: {error.strerror}") from None


def _lines(names: list[str]) -> Iterator[bytes]:
    for name in names:
        with open(name, "rb") as file:
            yield from file


def _show_line(line: str) -> str:
    record = _read(line)
    if not record:
        return printable(line)
    shown = {name: value for name, value in record.items() if name not in _CHAIN}
    return f"{record.get('n', '?'):>6}  {show_event(shown)}"


def _show_report(found: dict[str, Any]) -> str:
    head = found.get("head")
    lines = [
        f"{found['path']}: {found['records']} records, "
        + ("the chain holds" if found["whole"] else f"the chain is BROKEN in {found['broken']} places")
    ]
    for each in found["breaks"]:
        where = " ".join(f"{name} {each[name]}" for name in ("line",) if each[name] is not None)
        lines.append(f"  broken    {where + ': ' if where else ''}{each['why']}")
    if found["dropped"]:
        lines.append(f"  dropped   {found['dropped']} records, for which there was no room")
    lines += [f"  note      {note}" for note in found["notes"]]
    if head is not None:
        lines.append(f"  head      {head['n']}:{head['hash']}")
    return "\n".join(printable(line) for line in lines)
