"""One of a terminal's two screens, and what it keeps of a cursor that was saved."""

from __future__ import annotations

from typing import NamedTuple

from guestd.terminal.cells import Row
from guestd.terminal.charsets import ASCII


class Saved(NamedTuple):
    """What DECSC keeps."""

    x: int = 0
    y: int = 0
    pen: int = 0
    charsets: tuple[str, int] = (ASCII * 4, 0)


#: What is there before anything was saved. Told from a cursor that was saved at home: that one goes with its text.
NEVER = Saved()


class Screen:
    """One of the two: its rows, its scroll region, and what else each has of its own.

    `x` and `y` are where the cursor was when this one was left.
    """

    __slots__ = ("bottom", "keyboard", "lines", "saved", "top", "x", "y")

    def __init__(self, rows: int) -> None:
        self.lines = [Row() for _ in range(rows)]
        self.top = 0
        self.bottom = rows - 1
        self.x = self.y = 0
        self.saved = NEVER
        #: The flags of kitty's keyboard protocol: those in force last, below them those that were pushed.
        self.keyboard = [0]
