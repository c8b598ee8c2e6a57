"""record: a shell as an asciicast. What is kept of it stands at time 0; what comes stands at the time it came."""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.client import Began, Gap, Output, Resized, ShellRequest, new_client, stay
from guestd.client.tasks import background
from guestd.ctl.cast import Cast
from guestd.ctl.dialing import dialer
from guestd.ctl.failures import say
from guestd.ctl.output import OutputFailed
from guestd.ctl.streams import Outlet
from guestd.errors import BadRequest

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from guestd.client import Item, Notice, Stayed

_TERM = "xterm-256color"


def record(options: argparse.Namespace) -> int:
    """Record until the shell ends, or until Ctrl+C."""
    fd = 1 if options.file == "-" else _create(options.file)
    try:
        return trio.run(_Recording(options, fd).run)
    finally:
        if fd != 1:
            os.close(fd)


def _create(path: str) -> int:
    try:
        with suppress(FileNotFoundError):
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode) and found.st_size:
                raise BadRequest(
                    f"{path!r} is there already, and not empty; choose another name, or remove it",
                    field="file",
                )
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BadRequest(f"cannot write to {path!r}: {error.strerror}", field="file") from error


class _Recording:
    """Each event is written when it comes, a line each: a recording that is cut off can be played to there."""

    def __init__(self, options: argparse.Namespace, fd: int) -> None:
        self._options = options
        self._outlet = Outlet(fd)
        self._cast = Cast(options.idle_limit)
        self._began = 0.0
        # Before this offset everything was printed before we came.
        self._old_end: int | None = None
        self._left = trio.CancelScope()

    async def run(self) -> int:
        request = ShellRequest(self._options.id, new_client(), role="watcher", start="start")
        try:
            with self._left, trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with background() as tasks:
                    tasks.start_soon(self._heed, signals)
                    async with stay(
                        dialer(self._options), request, give_up=self._options.reconnect, notice=_notice
                    ) as shell:
                        await self._record(shell)
            with trio.CancelScope(shield=True):
                await self._write(self._cast.rest(self._now()))
        except BrokenPipeError:
            return 128 + signal.SIGPIPE
        finally:
            self._outlet.close()
        return 0

    async def _record(self, shell: Stayed) -> None:
        async for item in shell:
            if self._old_end is None and isinstance(item, Began):
                await self._begin(shell, item)
            else:
                await self._note(item)

    async def _begin(self, shell: Stayed, began: Began) -> None:
        self._began, self._old_end = trio.current_time(), began.end
        env = {"TERM": os.environ.get("TERM") or _TERM}
        await self._write(self._cast.header(began.columns, began.rows, time.time(), env))
        missing = 0 if shell.job is None else shell.job.began.get("terminal", 0)
        if missing:
            await self._write(self._cast.marker(0.0, f"the first {missing} bytes are no longer kept"))
            say(
                f"the first {missing} bytes of {self._options.id} are no longer kept: the recording begins behind them"
            )

    async def _note(self, item: Item) -> None:
        match item:
            case Output(offset=offset, data=data):
                old = item.stream == "terminal" and offset < (self._old_end or 0)
                await self._write(self._cast.output(0.0 if old else self._now(), data))
            case Resized(columns=columns, rows=rows):
                await self._write(self._cast.size(self._now(), columns, rows))
            case Gap():
                text = f"{item.size} bytes are lost"
                await self._write(self._cast.marker(self._now(), text))
                say(f"{text} (offset {item.start} to {item.end}): the guest keeps only the newest")
            case _:
                pass

    def _now(self) -> float:
        return trio.current_time() - self._began if self._old_end is not None else 0.0

    async def _write(self, text: str) -> None:
        if not text:
            return
        try:
            await self._outlet.write(text.encode("utf-8", "replace"))
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"cannot write to {self._options.file!r}: {error.strerror}") from error

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            self._left.cancel()


def _notice(notice: Notice) -> None:
    if notice.what == "lost" and notice.error is not None:
        say(f"{notice.error.message}; connecting again")
    elif notice.what == "again":
        say("connected again")
