"""Sitting at a shell, in this terminal: its output out, our keys and our window's size in, across lost connections.

Who sits here can always leave. What a person has to be told is told on one line, which goes again without a trace.
"""

from __future__ import annotations

import math
import os
import signal
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.client import Began, Gap, InputState, Output, Resized, Restore, Role, stay
from guestd.client.tasks import background
from guestd.ctl import keys, statusline
from guestd.ctl.dialing import dialer
from guestd.ctl.failures import explain, printable
from guestd.ctl.keys import INTERRUPT, Keys
from guestd.ctl.questions import Questions
from guestd.ctl.show import show_outcome
from guestd.ctl.streams import read_some
from guestd.errors import GuestdError
from guestd.wire.result import FAILED_STATUS, Outcome

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from guestd.client import Item, Notice, ShellRequest, Stayed
    from guestd.ctl.terminal import LocalTerminal
    from guestd.wire.result import Result

#: Typed without a connection. A line or two are worth keeping; more would be typed blindly.
KEPT_MAX = 4096
#: A person who types at a connection that is dead without a word is not to wonder for long.
_HEARTBEAT = 10.0
#: Pasted, and not taken yet. It is read all the same, because the key that leaves may be behind it; up to this much.
_WAITING_MAX = 16 * 1024 * 1024
_PIECE = 16 * 1024
#: A window that is dragged says its size many times a second; programs that draw need not hear of each.
_RESIZE_PAUSE = 0.05
#: A size that others give the screen is drawn anew when it has come to rest.
_REST_PAUSE = 0.3
#: How soon to look whether what had arrived is shown: only then the line can be drawn.
_LOOK_AGAIN = 0.05
#: How long the last keys may take to leave, when somebody leaves.
_LAST_KEYS = 1.0
#: What ends guestctl, and leaves the shell.
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_SIGNALS = (*ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
_HUNG_UP = 128 + signal.SIGHUP


class Sitting:
    """One run of `shell`, or of `exec -it`. `again` is the command that resumes it."""

    def __init__(
        self,
        options: argparse.Namespace,
        request: ShellRequest,
        terminal: LocalTerminal,
        again: str,
        *,
        quiet: bool = False,
    ) -> None:
        self._options = options
        self._request = request
        self._terminal = terminal
        self._again = again
        # Only an end that its status does not explain is said.
        self._quiet = quiet
        self._watching = request.role == "watcher"
        # No picture of the screen comes: because only what is from now on is wanted, or because none can.
        self._plain = request.start == "end" or request.ends_with_us
        self._leave_name = None if options.detach_key is None else options.detach_key.name
        leaving = (options.detach_key, INTERRUPT if self._watching else None)
        self._keys = Keys(*(key for key in leaving if key is not None))
        self._left = trio.CancelScope()
        self._left_status = FAILED_STATUS
        self._farewell: str | None = None
        self._fresh_line = True
        self._shell: Stayed | None = None
        # By Trio's clock, when the next attempt to connect comes. None while there is a connection.
        self._next_try: float | None = None
        self._kept = b""
        # What the line at the bottom says while there is a connection; None: there is none.
        self._said: str | None = None
        self._line_shown = False
        self._line_changed = trio.Event()
        self._waiting = bytearray()
        self._waiting_changed = trio.lowlevel.ParkingLot()
        self._window_changed = trio.Event()
        self._screen_changed = trio.Event()
        self._drawn_for = (0, 0)
        self._old_end = 0
        self._questions = Questions()
        self._owned = False
        self._lost = 0

    async def run(self) -> int:
        """Sit there until the shell ends, or somebody leaves. Returns the exit status."""
        status, dial = FAILED_STATUS, dialer(self._options, heartbeat=_HEARTBEAT)
        try:
            with self._left, trio.open_signal_receiver(*_SIGNALS) as signals:
                async with background() as tasks:
                    tasks.start_soon(self._heed, signals)
                    async with stay(dial, self._request, notice=self._notice) as shell:
                        status = await self._sit(shell)
        except (OSError, termios.error):
            # Our own terminal is gone; nothing else here raises one.
            status = _HUNG_UP
        finally:
            await self._terminal.rest(fresh_line=self._fresh_line)
            self._terminal.close()
        return self._left_status if self._left.cancelled_caught else status

    @property
    def farewell(self) -> str | None:
        """What to say when the terminal is at rest."""
        if not self._lost:
            return self._farewell
        text = f"[{self._lost} bytes were not shown here: the guest keeps only the newest]"
        return text if self._farewell is None else f"{text}\n{self._farewell}"

    async def _sit(self, shell: Stayed) -> int:
        self._shell = shell
        self._terminal.take(f"[guestctl is gone; {self._again} resumes]\r\n".encode())
        await self._terminal.keep_title()
        async with background() as tasks:
            for task in (
                self._read_keys, self._pass_waiting, self._follow_window, self._follow_screen, self._keep_line,
            ):  # fmt: skip
                tasks.start_soon(task, shell)
            async for item in shell:
                await self._show(shell, item)
            return self._end(await shell.result())

    def _end(self, result: Result) -> int:
        self._fresh_line = False
        text = explain(result)
        if result.outcome is Outcome.NOT_STARTED:
            self._farewell = f"guestctl: {text}"
        elif result.status != 0 and not self._quiet:
            more = f"; {text}" if text else ""
            self._farewell = f"[shell {self._request.id} ended: {show_outcome(result)}{more}]"
        elif text is not None:
            self._farewell = f"guestctl: {text}"
        return result.status

    def _leave(self, status: int, farewell: str | None = None) -> None:
        self._left_status = status
        self._farewell = farewell or f"[detached; {self._again} resumes]"
        unsent = keys.count(self._kept)
        if unsent:
            number = f"{unsent} key{'s' if unsent > 1 else ''}"
            self._farewell += f"\n[{number} typed without a connection were not sent]"
        elif self._waiting:
            self._farewell += (
                f"\n[the last {len(self._waiting)} bytes that were typed were not taken, and not sent]"
            )
        self._left.cancel()

    # ------------------------------------------------------------------------------------ what comes

    async def _show(self, shell: Stayed, item: Item) -> None:
        match item:
            case Output(stream="terminal"):
                await self._terminal.show(self._questions.of(item.offset, item.data, self._old_end))
            case Output():
                await self._terminal.show(item.data)
            case Began():
                await self._began(item)
            case Restore():
                self._drawn_for = (item.columns, item.rows)
            case Resized():
                self._screen_changed.set()
            case Role(role=role, by=by):
                if self._owned and role != "owner":
                    back = f"{self._again} takes it back, with --join you type beside them"
                    self._leave(0, f"[detached: {by or 'somebody'} has taken shell {shell.id} over; {back}]")
                self._owned = role == "owner"
            case InputState(state=state, waiting=waiting):
                self._say(statusline.blocked(waiting) if state == "blocked" else None)
            case Gap():
                self._lost += item.size

    async def _began(self, began: Began) -> None:
        """An attachment: the first, or another after a loss."""
        self._old_end = began.end
        self._drawn_for = (began.columns, began.rows)
        self._next_try, self._kept = None, b""
        if self._line_shown and (self._plain or began.end == 0):
            # No picture comes that would draw what was there.
            await self._terminal.draw(statusline.erase(self._terminal.size.rows))
        self._line_shown = False
        if self._owned and began.role != "owner":
            self._said = statusline.TAKEN
        self._owned = began.role == "owner"
        self._line_changed.set()

    # ------------------------------------------------------------------------------------ what is typed

    async def _read_keys(self, shell: Stayed) -> None:
        while True:
            while len(self._waiting) >= _WAITING_MAX and shell.connected:
                await self._waiting_changed.park()
            try:
                data = await read_some(0)
            except OSError:
                data = b""
            if not data:
                self._leave(_HUNG_UP)
                return
            data, key = self._keys.feed(data)
            if data and not self._watching:
                await self._type(shell, data)
            if key is not None:
                with trio.move_on_after(_LAST_KEYS):
                    await self._flush(shell)
                self._leave(128 + signal.SIGINT if key is INTERRUPT else 0)
                return

    async def _type(self, shell: Stayed, data: bytes) -> None:
        if not shell.connected:
            data = keys.without_reports(data)
            if not data:
                return
            if len(self._kept) + len(data) > KEPT_MAX:
                await self._terminal.draw(b"\a")
                return
            self._kept += data
            self._line_changed.set()
        elif self._said == statusline.TAKEN:
            self._say(None)
        if self._waiting or not shell.offer(data):
            self._waiting += data
            self._waiting_changed.unpark_all()

    async def _pass_waiting(self, shell: Stayed) -> None:
        try:
            while True:
                while not self._waiting:
                    await self._waiting_changed.park()
                piece = bytes(self._waiting[:_PIECE])
                await shell.send(piece)
                del self._waiting[: len(piece)]
                self._waiting_changed.unpark_all()
        except (GuestdError, trio.BrokenResourceError):
            return  # it has ended, which whoever takes its output says

    async def _flush(self, shell: Stayed) -> None:
        while self._waiting:
            await self._waiting_changed.park()
        await shell.flush()

    # ------------------------------------------------------------------------------------ sizes and signals

    async def _follow_window(self, shell: Stayed) -> None:
        told = self._request.size
        while True:
            size = self._terminal.size
            if size != told:
                shell.resize(size)
                told = size
                self._line_changed.set()
            await trio.sleep(_RESIZE_PAUSE)
            await self._window_changed.wait()
            self._window_changed = trio.Event()

    async def _follow_screen(self, shell: Stayed) -> None:
        """The owner's own programs draw a new size. Others see what was there before beside it."""
        while True:
            await self._screen_changed.wait()
            while self._screen_changed.is_set():
                self._screen_changed = trio.Event()
                await trio.sleep(_REST_PAUSE)
            # A picture that was already drawn for it is enough: a program may be made to draw by a passing size.
            if (
                shell.job is not None
                and shell.job.size[:2] != self._drawn_for
                and not self._owned
                and not self._plain
            ):
                shell.redraw()

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGWINCH:
                self._window_changed.set()
            elif number == signal.SIGTSTP:
                await self._terminal.rest()
                # Everything stops here; what goes on is the SIGCONT's.
                os.kill(os.getpid(), signal.SIGSTOP)
            elif number == signal.SIGCONT:
                await self._resume()
            else:
                self._leave(128 + number)

    async def _resume(self) -> None:
        """Whoever let us go on may have set the terminal up for itself meanwhile."""
        if self._shell is None:
            return
        with suppress(termios.error):
            self._terminal.take()
        await self._terminal.keep_title()
        self._shell.redraw()
        self._window_changed.set()

    # ------------------------------------------------------------------------------------ the line

    def _notice(self, notice: Notice) -> None:
        if notice.what == "again" or self._shell is None:
            return
        self._next_try = trio.current_time() + notice.delay
        self._said = None
        if not self._plain:
            self._shell.redraw()
        self._waiting_changed.unpark_all()
        self._line_changed.set()

    def _say(self, text: str | None) -> None:
        """Something for a person while there is a connection; None: no longer."""
        self._said = text
        if text is None and self._line_shown and self._shell is not None:
            self._shell.redraw()
        self._line_changed.set()

    async def _keep_line(self, shell: Stayed) -> None:
        while True:
            self._line_changed = trio.Event()
            text = self._line(shell)
            if text is not None:
                size = self._terminal.size
                self._line_shown = True
                await self._terminal.draw(statusline.draw(text, size.columns, size.rows))
            pause = math.inf
            if self._next_try is not None:
                pause = _LOOK_AGAIN if text is None else 1.0
            with trio.move_on_after(pause):
                await self._line_changed.wait()

    def _line(self, shell: Stayed) -> str | None:
        if self._next_try is None:
            return self._said
        if shell.behind:
            # What had arrived is still being shown, and would carry the line away with it.
            return None
        left = max(0.0, self._next_try - trio.current_time())
        return statusline.lost(left, self._leave_name, keys.count(self._kept), watching=self._watching)


def tell(text: str) -> None:
    """What is left to say, on a terminal at rest."""
    lines = "".join(f"{printable(line)}\n" for line in text.split("\n"))
    # Where the terminal is gone there is nobody to tell.
    with suppress(OSError):
        os.write(2, lines.encode("utf-8", "backslashreplace"))
