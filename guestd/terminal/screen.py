"""The state of a terminal and what can be done to it: two screens, scrollback, a cursor, margins, modes.

Bytes and sequences are other files' matter (`model.py` reads them, `controls.py` and `characters.py` say which one does
what), and another size is `resizing.py`'s. Columns and rows count from 0 here. The column of the cursor may be
`columns`: the row is full and the next character wraps.
Where terminals differ, this one does as xterm.js; where xterm.js differs from all the others, it does as they do.
"""

from __future__ import annotations

import re
from collections import deque

from guestd.terminal.cells import BLANK, CLUSTERS, LONGEST_CLUSTER, TAIL, Clusters, Row
from guestd.terminal.charsets import Charsets
from guestd.terminal.modes import Modes
from guestd.terminal.pens import Pens
from guestd.terminal.screens import Saved, Screen
from guestd.terminal.strings import Strings
from guestd.terminal.widths import WIDTHS

TAB = 8
#: Programs repeat a character along a row. A few bytes may not fill the history a hundred times.
_MOST_REPEATED = 4096
_WIDE = re.compile("[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]+")
_RARE = re.compile("[\U00040000-\U000dffff]")


class Terminal:
    """See the module."""

    __slots__ = (
        "bottom",
        "charsets",
        "clusters",
        "columns",
        "history",
        "last",
        "left",
        "lines",
        "main",
        "modes",
        "other",
        "pen",
        "pens",
        "rows",
        "screen",
        "stops",
        "strings",
        "top",
        "x",
        "y",
    )

    def __init__(self, columns: int, rows: int, history: int) -> None:
        self.columns = max(columns, 1)
        self.rows = max(rows, 1)
        self.history: deque[Row] = deque(maxlen=history)
        self.pens = Pens()
        self.clusters = Clusters()
        self.charsets = Charsets()
        self.modes = Modes()
        self.strings = Strings()
        self.begin()

    def begin(self) -> None:
        """As after switching on. The title stays: it is the window's."""
        self.history.clear()
        self.main = self.screen = Screen(self.rows)
        self.other: Screen | None = None  # the alternate one, while it is shown
        self.left: Screen | None = None  # and what is left of it when it is not: saved cursor, keyboard flags
        self.lines = self.main.lines
        self.top, self.bottom = 0, self.rows - 1
        self.x = self.y = 0
        self.pen = 0
        #: What was printed last, if nothing but printing happened since: REP repeats its last character.
        self.last = ""
        #: None: every eighth column.
        self.stops: set[int] | None = None
        self.charsets.reset()
        self.modes.reset()

    # ---------------------------------------------------------------------------------------------- printing

    def write(self, text: str) -> None:
        """Print characters that each take one cell. (The loop in `model.py` does the plainest case itself.)"""
        columns, pen = self.columns, chr(self.pen)
        wrap, insert = self.modes.wrap, self.modes.insert
        at, size = 0, len(text)
        while at < size:
            room = columns - self.x
            if room <= 0:
                if wrap:
                    self.wrap()
                    room = columns
                    if size - at > columns * self.rows and not insert:
                        at += self._unseen(size - at)
                else:
                    self.x, room = columns - 1, 1
            if not wrap and size - at > room:
                # All that would be beyond the edge falls on the last cell, one upon the other.
                text = text[at : at + room - 1] + text[-1]
                at, size = 0, len(text)
            piece = text[at : at + room]
            at += len(piece)
            row = self.lines[self.y]
            if insert:
                row.insert(self.x, len(piece), columns, pen)
            row.put(self.x, piece, pen)
            self.x += len(piece)

    def _unseen(self, size: int) -> int:
        """How much of the beginning of a text, from the left edge, scrolls out of all that is kept.

        Rows in between are full, wrapped and of one pen: those that are left are the same without them.
        """
        if self.top or self.bottom != self.rows - 1:
            return 0
        spare = size // self.columns - 2 * self.rows - (self.history.maxlen or 0) - 2
        return max(spare, 0) * self.columns

    def write_any(self, text: str) -> bool:
        """Print text in which characters may be wide, or marks on the one before. False: it was only marks."""
        if _RARE.search(text):
            text = _RARE.sub(lambda found: self.clusters.cell(found[0]), text)
        at, printed = 0, False
        while at < len(text):
            wide = _WIDE.match(text, at)
            if wide:
                self._write_wide(wide[0])
                at, printed = wide.end(), True
                continue
            char = text[at]
            at += 1
            width = WIDTHS[char]
            printed = printed or width > 0
            if width == 1:
                self.write(char)
            elif width == 2:
                self._write_wide(char)
            else:
                self._mark(char)
        return printed

    def _write_wide(self, text: str) -> None:
        columns, pen = self.columns, chr(self.pen)
        if columns < 2:
            return
        at = 0
        while at < len(text):
            if self.x + 2 > columns:
                if not self.modes.wrap:
                    self.x = columns - 1
                    return
                if self.x < columns:
                    self.lines[self.y].put(self.x, BLANK * (columns - self.x), pen)
                self.wrap()
            piece = text[at : at + (columns - self.x) // 2]
            at += len(piece)
            cells = TAIL.join(piece) + TAIL
            row = self.lines[self.y]
            if self.modes.insert:
                row.insert(self.x, len(cells), columns, pen)
            row.put(self.x, cells, pen)
            self.x += len(cells)

    def _mark(self, mark: str) -> None:
        """A mark joins the character before the cursor. Without one it has nothing to be drawn on."""
        at = self.x - 1
        row = self.lines[self.y]
        if at > 0 and at < len(row.text) and row.text[at] == TAIL:
            at -= 1
        if at < 0 or at >= len(row.text) or row.text[at] == BLANK or mark == "\ufeff":
            return
        whole = self.clusters.text(row.text[at]) + mark
        if len(whole) <= LONGEST_CLUSTER:
            row.text = row.text[:at] + self.clusters.cell(whole) + row.text[at + 1 :]

    @property
    def repeatable(self) -> bool:
        """Whether a character was printed last, and stands before the cursor: a wide one that had no room does not."""
        if not self.last or self.x == 0:
            return False
        row, at = self.lines[self.y], self.x - 1
        if row.text[at : at + 1] in {"", BLANK} or row.text[at + 1 : at + 2] == TAIL:
            return False
        return ord(row.pens[at : at + 1] or BLANK) == self.pen

    def repeat(self, count: int) -> None:
        """REP: the character that was printed last, again."""
        if not self.repeatable:
            return
        row, at = self.lines[self.y], self.x - 1
        wide = at > 0 and row.text[at : at + 1] == TAIL
        cell = row.text[at - 1 : at] if wide else row.text[max(at, 0) : at + 1]
        if not cell or cell == BLANK:
            return
        again = cell * min(count, max(self.columns, _MOST_REPEATED))
        if wide:
            self._write_wide(again)
        else:
            self.write(again)

    def wrap(self) -> None:
        """The row is full: on to the next, which continues it."""
        self.x = 0
        if self.y == self.bottom:
            self.scroll()
        elif self.y < self.rows - 1:
            self.y += 1
        self.lines[self.y].wrapped = True

    # ----------------------------------------------------------------------------------- lines and scrolling

    @property
    def blank(self) -> str:
        """The pen of what is erased now."""
        pen = self.pen
        return chr(self.pens.blank(pen)) if pen else BLANK

    def blank_row(self) -> Row:
        pen = self.pen
        if pen:
            blank = self.pens.blank(pen)
            if blank:
                return Row(BLANK * self.columns, chr(blank) * self.columns)
        return Row()

    def scroll(self) -> None:
        """The scroll region goes up one row. What leaves the top of the main screen is history."""
        lines, top = self.lines, self.top
        if top == 0 and self.other is None:
            self.history.append(lines[0])
        del lines[top]
        lines.insert(self.bottom, self.blank_row())

    def line_feed(self) -> None:
        if self.modes.newline:
            self.x = 0
        elif self.x >= self.columns:
            self.x = self.columns - 1
        if self.y == self.bottom:
            self.scroll()
        elif self.y < self.rows - 1:
            self.y += 1
            self.lines[self.y].wrapped = False

    def index(self) -> None:
        self.settle()
        if self.y == self.bottom:
            self.scroll()
        elif self.y < self.rows - 1:
            self.y += 1

    def reverse_index(self) -> None:
        self.settle()
        if self.y == self.top:
            del self.lines[self.bottom]
            self.lines.insert(self.top, self.blank_row())
        elif self.y > 0:
            self.y -= 1

    def move_rows(self, at: int, count: int, *, down: bool, blank: bool = True) -> None:
        """Within [at, bottom]: new rows come in at `at` (`down`), or rows leave there and new ones come in below."""
        lines = self.lines
        count = min(count, self.bottom - at + 1)
        for _ in range(count):
            row = self.blank_row() if blank else Row()
            if down:
                del lines[self.bottom]
                lines.insert(at, row)
            else:
                del lines[at]
                lines.insert(self.bottom, row)

    @property
    def within(self) -> bool:
        """Whether the cursor is in the scroll region."""
        return self.top <= self.y <= self.bottom

    # -------------------------------------------------------------------------------------------- the cursor

    def settle(self) -> None:
        """The cursor gives up a wrap that it was about to make, and stays inside."""
        if self.x >= self.columns:
            self.x = self.columns - 1
        if self.modes.origin:
            self.y = min(max(self.y, self.top), self.bottom)

    def go(self, x: int, y: int) -> None:
        """To a column, and to a row of the screen."""
        self.x = min(max(x, 0), self.columns - 1)
        if self.modes.origin:
            self.y = min(max(y, self.top), self.bottom)
        else:
            self.y = min(max(y, 0), self.rows - 1)

    def save(self) -> None:
        self.screen.saved = Saved(self.x, self.y, self.pen, self.charsets.saved())

    def recall(self) -> None:
        saved = self.screen.saved
        self.go(saved.x, saved.y)
        link = self.pens.look(self.pen).link
        look = self.pens.look(saved.pen)
        self.pen = saved.pen if look.link == link else self.pens.number(look._replace(link=link))
        self.charsets.recall(saved.charsets)

    # --------------------------------------------------------------------------------------------- tab stops

    def next_stop(self, x: int) -> int:
        if self.stops is None:
            return min((x // TAB + 1) * TAB, self.columns - 1)
        return min(min((stop for stop in self.stops if stop > x), default=self.columns), self.columns - 1)

    def previous_stop(self, x: int) -> int:
        if self.stops is None:
            return max((x - 1) // TAB * TAB, 0)
        return max((stop for stop in self.stops if stop < x), default=0)

    def own_stops(self) -> set[int]:
        """The tab stops, now as a set that can be changed."""
        if self.stops is None:
            self.stops = set(range(0, self.columns, TAB))
        return self.stops

    # --------------------------------------------------------------------------------------- the two screens

    @property
    def alternate(self) -> bool:
        return self.other is not None

    def show_alternate(self) -> None:
        if self.other is None:
            self.leave()
            self.other = screen = self.left or Screen(0)
            screen.lines = [self.blank_row() for _ in range(self.rows)]
            screen.top, screen.bottom = 0, self.rows - 1
            self.left = None
            self.enter(screen)

    def show_main(self) -> None:
        if self.other is not None:
            self.leave()
            self.left, self.other = self.other, None
            self.left.lines = []
            self.left.top, self.left.bottom = 0, self.rows - 1
            self.enter(self.main)

    def leave(self) -> None:
        """Note in the screen that is shown what is the screen's."""
        screen = self.screen
        screen.top, screen.bottom, screen.x, screen.y = self.top, self.bottom, self.x, self.y

    def enter(self, screen: Screen) -> None:
        """Show that screen. The cursor is the caller's affair."""
        self.screen, self.lines = screen, screen.lines
        self.top, self.bottom = screen.top, screen.bottom

    # -------------------------------------------------------------------------------------- keeping it small

    def _all_rows(self) -> list[Row]:
        rows = [*self.history, *self.main.lines]
        return rows if self.other is None else rows + self.other.lines

    def sweep(self) -> None:
        """When many looks or clusters have been seen, forget those that are on no cell any more."""
        if self.pens.crowded:
            used = {self.pen, self.main.saved.pen, self.screen.saved.pen}
            if self.left is not None:
                used.add(self.left.saved.pen)
            for row in self._all_rows():
                if row.pens:
                    used.update(map(ord, set(row.pens)))
            self.pens.keep(used)
        if self.clusters.crowded:
            shown: set[str] = set()
            for row in self._all_rows():
                if not row.text.isascii():
                    shown.update(_RARE.findall(row.text))
            self.clusters.keep(shown)


assert ord("\U00040000") == CLUSTERS
