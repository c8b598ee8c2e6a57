"""watch: what happens to files in the guest, one event a line."""

from __future__ import annotations

import json as json_text
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from guestd.client.copying import Terms
from guestd.client.watching import watch as watch_files
from guestd.ctl.dialing import dialer
from guestd.ctl.failures import printable, say
from guestd.ctl.persisting import tell_notice, until_interrupted

if TYPE_CHECKING:
    import argparse

    from guestd.client.files import Where


def watch(options: argparse.Namespace) -> int:
    """0 at Ctrl+C, and when what is watched is gone."""
    return trio.run(_watch, options)


async def _watch(options: argparse.Namespace) -> int:
    path = options.path.removeprefix(":") or "."
    ignore: list[str] | None = [] if options.no_ignore else options.ignore
    where: Where = {} if options.user is None else {"user": options.user}
    terms = Terms(dialer(options), where, give_up=options.give_up, notice=tell_notice)
    show = partial(_show, json=options.json)
    recursive = not options.no_recursive
    await until_interrupted(partial(watch_files, terms, path, show, recursive=recursive, ignore=ignore))
    return 0


def _show(event: dict[str, Any], *, json: bool) -> None:
    if json:
        print(json_text.dumps(event))
    else:
        text = line(event)
        if text:
            print(text)
    sys.stdout.flush()


def line(event: dict[str, Any]) -> str:
    """What a person reads; empty for what only programs need. What has to be heard goes to stderr."""
    kind = event["event"]
    path = printable(str(event.get("path", ""))) + ("/" if event.get("dir") else "")
    match kind:
        case "watching":
            say(f"watching {event.get('watches', 0)} folders; Ctrl+C ends it")
        case "rescan":
            asked = event.get("reason") == "asked"
            say(("" if asked else "more happened than could be told; ") + "this is all there is now:")
        case "limit" | "unreadable":
            say(f"{event.get('path')!r}: {event.get('message')}")
        case "gone":
            say("what was watched is gone")
        case "moved":
            return f"{kind:<10}  {path} -> {printable(str(event.get('to', '')))}"
        case "listed":
            pass
        case _:
            return f"{kind:<10}  {path}"
    return ""
