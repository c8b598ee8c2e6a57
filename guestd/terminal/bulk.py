"""Bulk output: lines of text that only matter by their end.

A stretch is plain when all in it acts on the cursor's row and the rows below: text, colours, the ends of lines, tabs,
and what moves or erases within a row. When as many lines of that follow one another as the screen and the history hold,
and the screen once more, then nothing of what was there before is left, and nothing of the stretch but those
lines is shown. So a stretch is kept back, as bytes, and what is before its last lines is dropped. All that the dropped
part leaves behind is the pen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guestd.terminal.pens import Pens

#: A stretch shorter than this is not worth keeping back.
LEAST = 1024
#: A stretch longer than this is cut to what matters of it.
MOST = 0x80000
#: When so much of it matters, there is no point in keeping it back.
TOO_MUCH = 0x60000
# What is not plain: the shifts to another character set, sequences beyond the row, control characters of C1. Other
# control characters do nothing, or end a line.
_SEQUENCE = re.compile(rb"\x1b(?!\[[0-9;:]*+[mKGCDPX@])")
_C1 = re.compile(rb"\xc2(?:[\x80-\x9f]|\Z)")
_SGR = re.compile(rb"\x1b\[([0-9;:]{0,4093}m)")
_SHIFTS = (b"\x0e", b"\x0f")
_WINDOW = 0x10000


def plain(data: bytes, start: int) -> tuple[int, bool]:
    """How far `data` is plain from `start` on, and whether it is not plain there; else only so much was looked at."""
    end = stop = min(start + _WINDOW, len(data))
    if found := _SEQUENCE.search(data, start, end):
        end = found.start()
    if found := _C1.search(data, start, end):
        end = found.start()
    for shift in _SHIFTS:
        at = data.find(shift, start, end)
        if at >= 0:
            end = at
    return end, end < stop


class Backlog:
    """A stretch that is kept back."""

    __slots__ = ("data", "size")

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.size = 0

    def add(self, data: bytes) -> None:
        self.data.append(data)
        self.size += len(data)

    def take(self) -> bytes:
        data = b"".join(self.data)
        self.data = []
        self.size = 0
        return data

    def trim(self, lines: int) -> bytes:
        """Drop all but so many lines. Returns what was dropped: nothing, when there are not so many."""
        data = self.take()
        at = len(data)
        for _ in range(lines + 1):
            at = data.rfind(b"\r\n", 0, at)
            if at < 0:
                self.add(data)
                return b""
        at += 2
        self.add(data[at:])
        return data[:at]


def pen_after(pens: Pens, pen: int, data: bytes) -> int:
    """The pen after all the colours that are set in `data`."""
    start = max(data.rfind(b"\x1b[m"), data.rfind(b"\x1b[0m"), 0)
    for sgr in _SGR.findall(data, start):
        step = pens.steps.get((pen, code := sgr.decode()))
        pen = pens.step(pen, code) if step is None else step
    return pen
