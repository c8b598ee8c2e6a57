"""ps, kill, wait, status: one question, one answer."""

from __future__ import annotations

import json as json_text
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from guestd.ctl.dialing import dialer, inside_dialer
from guestd.ctl.failures import explain, say
from guestd.ctl.show import show_jobs, show_status
from guestd.ctl.show_life import show_glance
from guestd.ctl.show_shells import show_commands, show_job
from guestd.errors import BadRequest, NotFound
from guestd.wire.result import FAILED_STATUS, Result, signal_number

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from guestd.client import Client

Answer = TypeVar("Answer")


def ps(options: argparse.Namespace) -> int:
    """All jobs, one of them, or what was typed at a shell."""
    if options.commands:
        commands = _ask(options, lambda client: client.commands(options.id))
        _print(options, {"commands": commands}, lambda: show_commands(commands, time()))
        return 0
    jobs = _ask(options, lambda client: client.ps())
    if options.id is None:
        _print(options, {"jobs": jobs}, lambda: show_jobs(jobs, time()))
        return 0
    job = next((each for each in jobs if each.get("id") == options.id), None)
    if job is None:
        raise NotFound(f"there is no job {options.id!r}", id=options.id)
    _print(options, job, lambda: show_job(job, time()))
    return 0


def status(options: argparse.Namespace) -> int:
    found = _ask(options, lambda client: client.status(), dial=inside_dialer)
    _print(options, found, lambda: show_glance(found) if "you" in found else show_status(found))
    return 0


def wait(options: argparse.Namespace) -> int:
    result = _ask(options, lambda client: client.wait(options.id, options.timeout))
    _print(options, result.to_map(), str)
    _explain(result)
    return result.status


def kill(options: argparse.Namespace) -> int:
    """0 when it was there to be ended or signalled; how it ended is what `wait` says."""
    if options.signal is not None and signal_number(options.signal) is None:
        raise BadRequest(f"{options.signal!r} is no signal; write TERM, SIGTERM or 15", field="signal")
    found = _ask(
        options,
        lambda client: client.kill(
            options.id, signal=options.signal, grace=options.grace, scope=options.scope
        ),
    )
    _print(options, found, str)
    if found.get("state") == "unknown":
        remembered = float(found.get("remembered") or 0)
        say(
            f"there is no job {options.id!r}; for {remembered:.0f} s a start of that id is refused; "
            "`guestctl ps` shows the jobs there are"
        )
        return FAILED_STATUS
    unreached = int(found.get("unreached_left") or 0)
    if "outcome" in found and not found.get("already_ended"):
        result = Result.from_map(found)
        unreached = unreached or int(result.unreached.get("count", 0))
    if unreached:
        say(
            f"{unreached} of its processes could not be ended; `guestctl --json wait {options.id}` names them"
        )
        return FAILED_STATUS
    return 0


def _explain(result: Result) -> None:
    text = explain(result)
    if text is not None:
        say(text)


def _ask(
    options: argparse.Namespace,
    question: Callable[[Client], Awaitable[Answer]],
    dial: Callable[[argparse.Namespace], Callable[[], AbstractAsyncContextManager[Client]]] = dialer,
) -> Answer:
    async def ask() -> Answer:
        async with dial(options)() as client:
            return await question(client)

    return trio.run(ask)


def _print(options: argparse.Namespace, fields: dict[str, Any], text: Callable[[], str]) -> None:
    """The answer as JSON, or as text for a person, where there is any."""
    shown = json_text.dumps(fields, default=_plain) if options.json else text()
    if shown:
        print(shown)


def _plain(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
