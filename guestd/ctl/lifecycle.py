"""busy, events, timers, stop, resume: what concerns the session as a whole."""

from __future__ import annotations

import json as json_text
import os
import signal
import time
from contextlib import aclosing
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from guestd.client.client import Client
from guestd.client.copying import Terms
from guestd.client.following import follow
from guestd.client.tasks import background
from guestd.ctl.dialing import dialer, inside_dialer
from guestd.ctl.failures import say
from guestd.ctl.persisting import tell_notice, until_interrupted
from guestd.ctl.show_life import show_event, show_receipt, show_resumed, show_timers
from guestd.errors import GuestdError, ShuttingDown, Unavailable
from guestd.wire.result import FAILED_STATUS, NOT_EXECUTABLE_STATUS, NOT_FOUND_STATUS

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from guestd.client.following import Ask

Item = TypeVar("Item")
#: Before the hold is taken again over a new connection; and for how long that is tried.
_AGAIN, _RETURN_IN = 0.25, 30.0
#: What a guest takes as a name.
_NAME_MAX = 64
_ENTROPY = 64


def busy(options: argparse.Namespace) -> int:
    """Hold; with a command, as long as it runs, and end as it ends."""
    if options.argv and options.seconds is not None:
        options.parser.error("--for is a time and the command behind -- another: leave out one of them")
    if options.argv:
        return trio.run(_while_it_runs, options)
    return trio.run(_hold, options)


async def _hold(options: argparse.Namespace) -> int:
    if options.seconds is not None:
        async with inside_dialer(options)() as client:
            found = await client.busy_for(options.seconds, options.by)
            _print(options, found, lambda: f"busy for {options.seconds:g} s")
            return 0
    over = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with background() as tasks:
            hold = _Hold(options, options.by)
            tasks.start_soon(hold.keep, over)
            tasks.start_soon(_first, signals, over)
            await hold.settled.wait()
            if hold.failure is None:
                _print(options, {"event": "busy"}, lambda: "busy until Ctrl+C")
            await over.wait()
    if hold.failure is not None:
        raise hold.failure
    return 0


async def _first(signals: AsyncIterator[int], then: trio.Event) -> None:
    async for _ in signals:
        then.set()
        return


async def _while_it_runs(options: argparse.Namespace) -> int:
    """The command is a child of guestctl's own, here; what happens to the connection does not concern it."""
    async with background() as tasks:
        hold = _Hold(options, options.by or f"guestctl busy -- {options.argv[0]}"[:_NAME_MAX])
        tasks.start_soon(hold.keep, trio.Event())
        await hold.settled.wait()
        if hold.failure is not None:
            raise hold.failure
        return await _run_here(options.argv)


class _Hold:
    """Somebody who holds the session, over as many connections as it takes."""

    def __init__(self, options: argparse.Namespace, by: str | None) -> None:
        self._dial = inside_dialer(options)
        self._by = by
        #: It is held, or cannot be.
        self.settled = trio.Event()
        self.failure: GuestdError | None = None

    async def keep(self, over: trio.Event) -> None:
        """Hold until cancelled, or until there is nobody any more to hold it with."""
        give_up_at, stopped = inf, False
        while True:
            failure: GuestdError | None
            try:
                async with self._dial() as client, client.busy(self._by):
                    self.settled.set()
                    give_up_at = inf
                    await client.wait_lost()
                failure = client.failure
            except GuestdError as error:
                failure = error
            give_up_at = min(give_up_at, trio.current_time() + _RETURN_IN)
            # A session that stops says so, and so does a guestd that is replaced; the latter is there again.
            stopped = stopped or (failure is not None and failure.details.get("reason") == ShuttingDown.code)
            gone = stopped and isinstance(failure, Unavailable)
            if not self.settled.is_set() or gone or trio.current_time() >= give_up_at:
                self.failure = failure
                self.settled.set()
                over.set()
                return
            await trio.sleep(_AGAIN)


async def _run_here(argv: list[str]) -> int:
    # From before there is a command: a signal that comes in the moment of its start is passed on a moment later.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            # guestctl's own child: there is no reaper in this process.
            process = await trio.lowlevel.open_process(argv)  # noqa: TID251  see above
        except OSError as error:
            say(f"{argv[0]!r}: {error.strerror}")
            return NOT_FOUND_STATUS if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE_STATUS
        async with background() as tasks:
            tasks.start_soon(_pass_signals, signals, process.pid)
            status = await process.wait()
    return 128 - status if status < 0 else status


async def _pass_signals(signals: AsyncIterator[int], pid: int) -> None:
    """Ctrl+C has reached the command already, being of the same terminal; who asks guestctl means the command."""
    async for number in signals:
        if number != signal.SIGINT:
            os.kill(pid, number)


def events(options: argparse.Namespace) -> int:
    """Print them, one a line; or the audit log's."""
    if options.audit or options.verify is not None or options.head:
        from guestd.ctl.audit import audit

        return audit(options)
    return trio.run(_events, options)


async def _events(options: argparse.Namespace) -> int:
    def show(event: dict[str, Any]) -> None:
        print(json_text.dumps(event, default=str) if options.json else show_event(event), flush=True)

    def is_farewell(event: dict[str, Any]) -> bool:
        return event["event"] in {"stopping", "stopped"}

    dial = inside_dialer(options)
    await print_each(options, dial, Client.events, lambda event: event.get("n"), is_farewell, show)
    return 0


async def print_each(
    options: argparse.Namespace,
    dial: Callable[[], AbstractAsyncContextManager[Client]],
    ask: Ask[Item],
    number: Callable[[Item], int | None],
    is_farewell: Callable[[Item], bool],
    show: Callable[[Item], None],
) -> None:
    """As they come, until there are no more, or Ctrl+C."""

    async def once() -> None:
        async with dial() as client, aclosing(ask(client, last=options.last)) as items:
            async for item in items:
                show(item)

    terms = Terms(dial, give_up=options.give_up, notice=tell_notice)
    following = partial(follow, terms, ask, number, is_farewell, show, last=options.last)
    await until_interrupted(following if options.follow else once)


def timers(options: argparse.Namespace) -> int:
    async def ask() -> dict[str, Any]:
        async with dialer(options)() as client:
            return await client.timers(idle_timeout=options.idle, lifetime=options.lifetime)

    found = trio.run(ask)
    _print(options, found, lambda: show_timers(found))
    return 0


def stop(options: argparse.Namespace) -> int:
    """0 when all is ended and on its disk."""

    async def ask() -> dict[str, Any]:
        async with dialer(options)() as client:
            return await client.stop(grace=options.grace, action="reboot" if options.reboot else None)

    receipt = trio.run(ask)
    _print(options, receipt, lambda: show_receipt(receipt))
    unsafe = [
        each for each in receipt.get("filesystems", ()) if not each["synced"] and each["type"] != "tmpfs"
    ]
    return FAILED_STATUS if unsafe or receipt.get("unreached", {}).get("count") else 0


def resume(options: argparse.Namespace) -> int:
    async def ask() -> dict[str, Any]:
        async with dialer(options)() as client:
            now = None if options.no_clock else time.time()
            return await client.resume(now=now, entropy=os.urandom(_ENTROPY))

    found = trio.run(ask)
    _print(options, found, lambda: show_resumed(found))
    return 0


def _print(options: argparse.Namespace, fields: dict[str, Any], text: Callable[[], str]) -> None:
    print(json_text.dumps(fields, default=str) if options.json else text(), flush=True)
