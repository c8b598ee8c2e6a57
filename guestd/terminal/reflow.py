"""Another size for the rows of a screen: lines wrapped anew, rows taken from the history and given to it.

Done as xterm.js does it, step by step, because the terminal in front of a person does the same to its own copy: the
line that the cursor is in is left as it is (its program will draw it again), rows below the cursor are given up before
rows above it move into the history, and a character that is two cells wide stays whole.
"""

from __future__ import annotations

from typing import NamedTuple

from guestd.terminal.cells import BLANK, TAIL, Row


class Size(NamedTuple):
    columns: int
    rows: int


class Plan(NamedTuple):
    """The rows after a change of size; those before `base` are history. Places are on the screen, not in the rows."""

    lines: list[Row]
    base: int
    x: int
    y: int
    saved_y: int


def resize(
    lines: list[Row],
    base: int,
    x: int,
    y: int,
    saved_y: int,
    old: Size,
    new: Size,
    *,
    history: int,
    wrap: bool,
) -> Plan:
    """The rows [history | screen] of a screen of size `old`, at size `new`. The rows are changed in place."""
    lines = list(lines)
    saved = base + saved_y
    pulled = 0
    for _ in range(old.rows, new.rows):
        if base > 0 and len(lines) <= base + y + pulled + 1:
            base -= 1
            pulled += 1
        elif len(lines) < new.rows + base:
            lines.append(Row())
    for _ in range(new.rows, old.rows):
        if len(lines) > new.rows + base:
            if len(lines) > base + y + 1:
                lines.pop()
            else:
                base += 1
    spare = len(lines) - new.rows - history
    if spare > 0:
        del lines[:spare]
        base = max(base - spare, 0)
        saved -= spare
    x = min(x, new.columns - 1)
    y = min(y, new.rows - 1) + pulled
    work = _Reflow(lines, base, y, saved, old.columns, new, history)
    if wrap and new.columns > old.columns:
        work.widen()
    elif wrap and new.columns < old.columns:
        work.narrow()
    lines, base = work.lines, work.base
    if new.columns < old.columns:
        for row in lines:
            row.clip(new.columns)
    lines.extend(Row() for _ in range(base + new.rows - len(lines)))
    del lines[base + new.rows :]
    saved_y = min(max(work.saved - base, 0), new.rows - 1)
    return Plan(lines, base, x, min(max(work.y, 0), new.rows - 1), saved_y)


class _Reflow:
    """One change of the width; `saved` counts from the first row of the history."""

    def __init__(
        self, lines: list[Row], base: int, y: int, saved: int, columns: int, new: Size, history: int
    ) -> None:
        self.lines = lines
        self.base = base
        self.y = y
        self.saved = saved
        self.columns = columns
        self.new = new
        self.most = new.rows + history
        #: How many of the rows are still there, while lines are made narrower.
        self.length = len(lines)

    def _line_from(self, start: int) -> int:
        """Where the line that begins at row `start` ends."""
        end = start + 1
        while end < len(self.lines) and self.lines[end].wrapped:
            end += 1
        return end

    def _length(self, rows: list[Row], at: int) -> int:
        """How many cells of a row belong to its line: all of them, but in the last row what was written."""
        row = rows[at]
        if at == len(rows) - 1:
            return row.used()
        ends_blank = row.text[self.columns - 1 : self.columns] in ("", BLANK)
        if ends_blank and rows[at + 1].text[1:2] == TAIL:
            return self.columns - 1
        return self.columns

    def _joined(self, rows: list[Row]) -> tuple[str, str]:
        texts: list[str] = []
        pens: list[str] = []
        for at, row in enumerate(rows):
            length = self._length(rows, at)
            texts.append(row.text[:length].ljust(length, BLANK))
            pens.append(row.pens[:length].ljust(length, BLANK))
        return self._fitting("".join(texts), "".join(pens))

    def _fitting(self, text: str, pens: str) -> tuple[str, str]:
        """One column has no room for a wide character: nobody could be shown it again, so its cell is blank."""
        if self.new.columns > 1 or TAIL not in text:
            return text, pens
        whole = [at for at, cell in enumerate(text) if cell != TAIL]
        return (
            "".join(BLANK if text[at + 1 : at + 2] == TAIL else text[at] for at in whole),
            "".join(pens[at] for at in whole),
        )

    def _pieces(self, text: str) -> list[int]:
        """Where to cut a line's cells: every so many columns, but not through a wide character."""
        cuts = [0]
        at = 0
        while len(text) - at > self.new.columns:
            at += self.new.columns
            if text[at] == TAIL:
                at -= 1
            cuts.append(at)
        cuts.append(len(text))
        return cuts

    def _lay(self, rows: list[Row], text: str, pens: str) -> list[Row]:
        """The cells of a line as rows of the new width: `rows`, as far as they last, and new ones."""
        cuts = self._pieces(text)
        laid = rows[: len(cuts) - 1]
        laid += [Row(wrapped=True) for _ in range(len(cuts) - 1 - len(laid))]
        for row, start, end in zip(laid, cuts, cuts[1:], strict=False):
            size = end - start
            # Behind the text a narrower row keeps the background it had, but for one cell.
            behind = row.pens[size + 1 : self.new.columns] if self.new.columns < self.columns else ""
            row.text = text[start:end]
            row.pens = (pens[start:end] + BLANK + behind).rstrip(BLANK)
        return laid

    def widen(self) -> None:
        lines = self.lines
        kept: list[Row] = []
        removed = 0
        cursor = self.base + self.y
        start = 0
        while start < len(lines):
            end = self._line_from(start)
            rows = lines[start:end]
            if end - start > 1 and not start <= cursor < end:
                laid = self._lay(rows, *self._joined(rows))
                removed += len(rows) - len(laid)
                kept += laid
            else:
                kept += rows
            start = end
        self.lines = kept
        for _ in range(removed):
            if self.base:
                self.base -= 1
            else:
                self.y = max(self.y - 1, 0)
                if len(kept) < self.new.rows:
                    kept.append(Row())
        self.saved = max(self.saved - removed, 0)

    def narrow(self) -> None:
        lines, new = self.lines, self.new
        added: list[tuple[int, list[Row]]] = []
        total = 0
        end = len(lines)
        while end > 0:
            start = end - 1
            while start > 0 and lines[start].wrapped:
                start -= 1
            rows = lines[start:end]
            stop, end = end, start
            untouched = len(rows) == 1 and rows[0].used() <= new.columns
            if untouched or start <= self.base + self.y < stop:
                continue
            laid = self._lay(rows, *self._joined(rows))
            for row in rows[len(laid) :]:
                row.text = row.pens = ""
            more = len(laid) - len(rows)
            if more <= 0:
                continue
            added.append((stop, laid[len(rows) :]))
            total += more
            if self.base == 0 and self.y != self.length - 1:
                trimmed = max(0, self.y - self.most + more)
            else:
                trimmed = max(0, self.length - self.most + more)
            for _ in range(more - trimmed):
                self._make_room(total)
            self.saved = min(self.saved + more, self.base + new.rows - 1)
        # Lines that were given up have been wrapped all the same: xterm.js keeps what that added.
        del lines[self.length :]
        for at, rows in added:  # the last line first, so that the places of the others stay right
            at = min(at, self.length)  # noqa: PLW2901
            lines[at:at] = rows
        spare = len(lines) - self.most
        if spare > 0:
            del lines[:spare]

    def _make_room(self, total: int) -> None:
        """For one more row: a row below the cursor is given up, or one above moves into the history."""
        if self.base:
            if self.base < min(self.most, self.length + total) - self.new.rows:
                self.base += 1
        elif self.y < self.new.rows - 1:
            self.y += 1
            self.length -= 1
        else:
            self.base += 1
