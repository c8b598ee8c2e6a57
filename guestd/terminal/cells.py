"""Rows of cells: one string for what they show, one for how they show it. Nothing here knows a cursor or a mode.

A string is the cheapest row that Python has: it is compared, sliced and joined at the speed of C, a run of text is put
down with one slice, and a row that nobody wrote to is an empty string that all rows share. So a cell is one code point
of `text`, and its pen is the code point at the same place of `pens` (see `pens.py`). Both may be shorter than the
terminal is wide: what is missing is blank, with the pen 0.

Three kinds of code point in `text` are not characters of the program's:

- `BLANK`: nothing was written here, or it was erased.
- `TAIL`: the second half of a wide character. A half of a surrogate pair: no decoder ever makes one.
- `CLUSTERS` and up: a character with its marks, by its number in `Clusters`. Those planes of Unicode are
  not assigned; a program's character from there becomes a cluster of one, so that nothing is mistaken.
"""

from __future__ import annotations

import re

BLANK = "\0"
TAIL = "\udfff"
CLUSTERS = 0x40000
_CLUSTERS_END = 0xE0000
#: What one cell may hold: a base and its marks. Zalgo text, and families of emoji, fit; an endless pile does not.
LONGEST_CLUSTER = 32
_CLUSTER = re.compile("[\U00040000-\U000dffff]")
#: Numbers are collected when so many are in use, and then again when twice as many as lived are.
_FIRST_SWEEP = 4096


class Row:
    """One row. `wrapped`: it continues the row above, which was full."""

    __slots__ = ("pens", "text", "wrapped")

    def __init__(self, text: str = "", pens: str = "", *, wrapped: bool = False) -> None:
        self.text = text
        self.pens = pens
        self.wrapped = wrapped

    def split(self, at: int, pen: str) -> None:
        """Make `at` a boundary between characters: a wide one that lies across it becomes two blank cells."""
        text = self.text
        if 0 < at < len(text) and text[at] == TAIL:
            self.text = text[: at - 1] + BLANK * 2 + text[at + 1 :]
            self._paint(at - 1, 2, pen)

    def _paint(self, x: int, count: int, pen: str) -> None:
        pens = self.pens
        if pen != BLANK or len(pens) > x:
            self.pens = pens[:x].ljust(x, BLANK) + pen * count + pens[x + count :]

    def put(self, x: int, cells: str, pen: str) -> None:
        """Overwrite from `x` on."""
        count = len(cells)
        text = self.text
        if not text.isascii() and TAIL in text:
            self.split(x, pen)
            self.split(x + count, pen)
            text = self.text
        self.text = text[:x].ljust(x, BLANK) + cells + text[x + count :]
        self._paint(x, count, pen)

    def erase(self, start: int, end: int, columns: int, pen: str) -> None:
        """Blank [start, end) in the colour of `pen`."""
        end = min(end, columns)
        if start >= end:
            # Even so, the edge may not go through a character.
            self.split(start, pen)
            return
        if end == columns and pen == BLANK:
            self.split(start, pen)
            self.text = self.text[:start]
            self.pens = self.pens[:start]
        else:
            self.put(start, BLANK * (end - start), pen)

    def insert(self, x: int, count: int, columns: int, pen: str) -> None:
        """Push what is from `x` on to the right; what is pushed over the edge is gone."""
        count = min(count, columns - x)
        self.split(x, pen)
        if len(self.text) > x or len(self.pens) > x or pen != BLANK:
            text, pens = self.text, self.pens
            self.text = text[:x].ljust(x, BLANK) + BLANK * count + text[x:]
            self.pens = pens[:x].ljust(x, BLANK) + pen * count + pens[x:]
            self.clip(columns, pen)

    def delete(self, x: int, count: int, columns: int, pen: str) -> None:
        """Take `count` cells out at `x`; the row is filled up from the right edge."""
        count = min(count, columns - x)
        self.split(x, pen)
        self.split(x + count, pen)
        self.text = self.text[:x] + self.text[x + count :]
        self.pens = self.pens[:x] + self.pens[x + count :]
        if pen != BLANK:
            start = columns - count
            self.text = self.text.ljust(start, BLANK) + BLANK * count
            self.pens = self.pens.ljust(start, BLANK) + pen * count

    def clip(self, columns: int, pen: str = BLANK) -> None:
        """Cut to a width. A wide character that loses its second half is gone."""
        if len(self.text) > columns:
            halved = self.text[columns] == TAIL
            self.text = self.text[:columns]
            if halved:
                self.text = self.text[:-1] + BLANK
                self._paint(columns - 1, 1, pen)
        if len(self.pens) > columns:
            self.pens = self.pens[:columns]

    def used(self) -> int:
        """Up to where something was written."""
        return len(self.text.rstrip(BLANK))


class Clusters:
    """Characters with their marks, numbered, so that each fits into one cell of a row."""

    __slots__ = ("_free", "_numbers", "_sweep_at", "_texts")

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._numbers: dict[str, str] = {}
        self._free: list[str] = []
        self._sweep_at = _FIRST_SWEEP

    def cell(self, text: str) -> str:
        """The cell that stands for `text`."""
        cell = self._numbers.get(text)
        if cell is None:
            if self._free:
                cell = self._free.pop()
            elif len(self._texts) < _CLUSTERS_END - CLUSTERS:
                cell = chr(CLUSTERS + len(self._texts))
            else:  # more different ones on one screen than there are numbers: the marks are dropped
                return text[0] if text[0] < chr(CLUSTERS) else "\ufffd"
            self._numbers[text] = cell
            self._texts[cell] = text
        return cell

    def text(self, cell: str) -> str:
        """What a cell stands for."""
        return self._texts.get(cell, cell)

    def spell(self, cells: str) -> str:
        """A run of cells as the text that a terminal would be sent for it; tails are left out, blanks are spaces."""
        if cells.isascii():
            return cells.replace(BLANK, " ")
        spelled = cells.replace(TAIL, "").replace(BLANK, " ")
        if self._texts:
            spelled = _CLUSTER.sub(lambda found: self._texts.get(found[0], "\ufffd"), spelled)
        return spelled

    @property
    def crowded(self) -> bool:
        """It is time to find out which are still shown: call `keep`."""
        return len(self._numbers) >= self._sweep_at

    def keep(self, shown: set[str]) -> None:
        """Forget all but the cells in `shown`."""
        for cell in [
            cell
            for cell, text in self._texts.items()
            if cell not in shown and self._numbers.get(text) == cell
        ]:
            del self._numbers[self._texts[cell]]
            # The number stays taken until it is given again: `cell` counts them.
            self._texts[cell] = ""
            self._free.append(cell)
        self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._numbers))
