"""The terminal that guestctl runs in: its size, its raw mode, and what puts it at rest again, whatever happens."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from contextlib import suppress
from typing import Any

import trio

from guestd.client import TerminalSize
from guestd.ctl.guardian import Guardian
from guestd.ctl.modes import CANCEL, Modes
from guestd.ctl.streams import Outlet

#: As `termios.tcgetattr` gives them.
Attributes = list[Any]
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _LETTERS = 0, 1, 2, 3, 6
_IN, _OUT = 0, 1
#: The title that was there is kept, and given back.
_KEEP_TITLE, _GIVE_TITLE = b"\x1b[22;0t", b"\x1b[23;0t"
_FRESH_LINE = b"\r\n\x1b[J"
#: A terminal that takes nothing any more is not waited for longer, when it is to be put at rest.
_PATIENCE = 1.0


def is_terminal() -> bool:
    """Both our stdin and our stdout are a terminal."""
    return os.isatty(_IN) and os.isatty(_OUT)


def window_size(fd: int = _OUT) -> TerminalSize:
    """The size of the window; 0 where it is not known."""
    try:
        rows, columns, width, height = struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return TerminalSize(0, 0)
    return TerminalSize(columns, rows, width, height)


class LocalTerminal:
    """See the module. `take` and `rest` may be called any number of times."""

    def __init__(self) -> None:
        self._rest: Attributes = termios.tcgetattr(_IN)
        self._outlet = Outlet(_OUT)
        self._modes = Modes()
        self._guardian: Guardian | None = None
        self._farewell = b""
        self._taken = False
        self._title_kept = False

    @property
    def size(self) -> TerminalSize:
        return window_size()

    def take(self, farewell: bytes = b"") -> None:
        """Every key comes as it is typed, every byte goes as it is written. `farewell`: what the guardian says last."""
        raw = _raw(self._rest)
        termios.tcsetattr(_IN, termios.TCSANOW, raw)
        self._taken = True
        if self._guardian is None:
            self._farewell = farewell
            self._guardian = Guardian(_IN, self._rest, termios.tcgetattr(_IN))
            self._guardian.tell(self._undo() + self._farewell)

    async def keep_title(self) -> None:
        """The title of the window is the guest's from now on."""
        if not self._title_kept:
            self._title_kept = True
            await self.draw(_KEEP_TITLE)

    async def show(self, data: bytes) -> None:
        """Output of the guest's. Returns when the terminal has taken it."""
        if self._modes.feed(data) and self._guardian is not None:
            self._guardian.tell(self._undo() + self._farewell)
        await self._outlet.write(data)

    async def draw(self, data: bytes) -> None:
        """Output of our own. A terminal that is gone is found out by who shows the guest's."""
        with suppress(OSError):
            await self._outlet.write(data)

    async def rest(self, *, fresh_line: bool = True) -> None:
        """As it was, whatever else is being cancelled. `fresh_line`: with nothing in the cursor's line and below."""
        if not self._taken:
            return
        self._taken = self._title_kept = False
        try:
            with trio.move_on_after(_PATIENCE, shield=True):
                await self._outlet.write(
                    self._undo() if fresh_line else CANCEL + self._modes.undo() + _GIVE_TITLE
                )
        except OSError:
            pass  # it has hung up
        finally:
            with suppress(termios.error):
                if self._modes.reporting:
                    # What the mouse has said meanwhile is for nobody.
                    termios.tcflush(_IN, termios.TCIFLUSH)
                termios.tcsetattr(_IN, termios.TCSANOW, self._rest)

    def close(self) -> None:
        """After the last `rest`."""
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None
        self._outlet.close()

    def _undo(self) -> bytes:
        return CANCEL + self._modes.undo() + _GIVE_TITLE + _FRESH_LINE


def _raw(attributes: Attributes) -> Attributes:
    """As cfmakeraw has it, but for the kernel's knowledge of UTF-8, which belongs to the terminal."""
    made = list(attributes)
    made[_IFLAG] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    made[_OFLAG] &= ~termios.OPOST
    made[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    made[_CFLAG] = made[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    made[_LETTERS] = list(attributes[_LETTERS])
    made[_LETTERS][termios.VMIN], made[_LETTERS][termios.VTIME] = 1, 0
    return made
