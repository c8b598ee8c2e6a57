"""What controls erase, insert, delete and scroll. Each takes the terminal and its parameters; see `controls.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.terminal.cells import BLANK, Row
from guestd.terminal.pens import PROTECTED

if TYPE_CHECKING:
    from guestd.terminal.screen import Terminal

    Parameters = tuple[int, ...]


def erase_line(t: Terminal, p: Parameters) -> None:
    row, columns = t.lines[t.y], t.columns
    if p[0] == 0:
        row.erase(t.x, columns, columns, t.blank)
        if t.x == 0:
            row.wrapped = False
    elif p[0] == 1:
        row.erase(0, t.x + 1, columns, t.blank)
    elif p[0] == 2:
        row.erase(0, columns, columns, t.blank)
        row.wrapped = False


def erase_screen(t: Terminal, p: Parameters) -> None:
    lines, columns = t.lines, t.columns
    if p[0] == 0:
        erase_line(t, p)
        for y in range(t.y + 1, t.rows):
            lines[y] = t.blank_row()
    elif p[0] == 1:
        erase_line(t, p)
        lines[t.y].wrapped = False
        if t.x + 1 >= columns and t.y + 1 < t.rows:
            lines[t.y + 1].wrapped = False
        for y in range(t.y):
            lines[y] = t.blank_row()
    elif p[0] == 2:
        for y in range(t.rows):
            lines[y] = t.blank_row()
    elif p[0] == 3 and not t.alternate:
        t.history.clear()


def _erase_unprotected(t: Terminal, row: Row, start: int, end: int) -> None:
    blank, kept = t.blank, t.pens
    for x in range(start, min(end, max(len(row.text), start))):
        pen = row.pens[x : x + 1]
        if not (pen and kept.look(ord(pen)).flags & PROTECTED):
            row.erase(x, x + 1, t.columns + 1, blank)
    if blank != BLANK and end > len(row.text):
        row.erase(max(len(row.text), start), end, t.columns, blank)


def erase_line_selectively(t: Terminal, p: Parameters) -> None:
    start = t.x if p[0] == 0 else 0
    end = t.x + 1 if p[0] == 1 else t.columns
    if p[0] <= 2:
        row = t.lines[t.y]
        _erase_unprotected(t, row, start, min(end, t.columns))
        if p[0] == 2 or (p[0] == 0 and t.x == 0):
            row.wrapped = False


def erase_screen_selectively(t: Terminal, p: Parameters) -> None:
    if p[0] <= 2:
        erase_line_selectively(t, p)
        if p[0] == 1:
            t.lines[t.y].wrapped = False
            if t.x + 1 >= t.columns and t.y + 1 < t.rows:
                t.lines[t.y + 1].wrapped = False
        first = t.y + 1 if p[0] == 0 else 0
        last = t.y if p[0] == 1 else t.rows
        for row in t.lines[first:last]:
            _erase_unprotected(t, row, 0, t.columns)
            row.wrapped = False


def erase_characters(t: Terminal, p: Parameters) -> None:
    t.settle()
    t.lines[t.y].erase(t.x, t.x + (p[0] or 1), t.columns, t.blank)


def insert_characters(t: Terminal, p: Parameters) -> None:
    t.settle()
    t.lines[t.y].insert(t.x, (p[0] or 1), t.columns, t.blank)


def delete_characters(t: Terminal, p: Parameters) -> None:
    t.settle()
    t.lines[t.y].delete(t.x, (p[0] or 1), t.columns, t.blank)


def insert_lines(t: Terminal, p: Parameters) -> None:
    t.settle()
    if t.within:
        t.move_rows(t.y, (p[0] or 1), down=True)
        t.x = 0


def delete_lines(t: Terminal, p: Parameters) -> None:
    t.settle()
    if t.within:
        t.move_rows(t.y, (p[0] or 1), down=False)
        t.x = 0


def scroll_up(t: Terminal, p: Parameters) -> None:
    t.move_rows(t.top, (p[0] or 1), down=False)


def scroll_down(t: Terminal, p: Parameters) -> None:
    t.move_rows(t.top, (p[0] or 1), down=True, blank=False)


def _in_region(t: Terminal, x: int, count: int, *, insert: bool) -> None:
    if t.within:
        blank = t.blank
        for row in t.lines[t.top : t.bottom + 1]:
            (row.insert if insert else row.delete)(x, count, t.columns, blank)
            row.wrapped = False


def scroll_left(t: Terminal, p: Parameters) -> None:
    _in_region(t, 0, (p[0] or 1), insert=False)


def scroll_right(t: Terminal, p: Parameters) -> None:
    _in_region(t, 0, (p[0] or 1), insert=True)


def insert_columns(t: Terminal, p: Parameters) -> None:
    # Beyond the edge is the left edge again: xterm.js has it so, and nobody else has a say.
    _in_region(t, t.x % t.columns, (p[0] or 1), insert=True)


def delete_columns(t: Terminal, p: Parameters) -> None:
    _in_region(t, t.x % t.columns, (p[0] or 1), insert=False)
