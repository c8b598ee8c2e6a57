"""A terminal's state as the bytes that make it: from any state that a terminal of that size may be in.

In this order: the other terminal is brought to rest and what it shows is scrolled out, into its scrollback, where it
stays; history and main screen are printed as the lines they were, so that they wrap where they wrapped; the alternate
screen is entered and painted, if it is shown; then tab stops, margins, character sets, colours, titles, modes; and the
cursor last. Nothing in it makes a terminal answer.

Two things are told only once a program has touched them, because they are the person's own before: titles and colours.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from guestd.terminal.cells import BLANK, CLUSTERS, TAIL, Row
from guestd.terminal.modes import OFF, ON
from guestd.terminal.pens import PROTECTED, Look
from guestd.terminal.screen import TAB
from guestd.terminal.screens import NEVER, Screen

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from guestd.terminal.screen import Terminal

#: Out of any sequence; drawing held back; modes as painting needs them; kitty's keyboard and the keys' options as they
#: begin; no link, no colours. DECSTR alone does too little on some terminals.
_REST = (
    "\x1b[!p\x1b[r\x1b[?6;5;45;69l\x1b[?7h\x1b[4l\x1b[20l\x1b(B\x1b)B\x1b*B\x1b+B\x0f"
    "\x1b[<99u\x1b[>4m\x1b]8;;\x1b\\\x1b[0m"
)
#: Where terminals may disagree how wide a character is: beyond the ideographs and the Hangul.
_DISPUTED = re.compile(f"[\u2190-\u2bff\U0001f000-\U0001faff\U00040000-\U000dffff][{TAIL}]?")
_MOST_STOPS = 4096


class _Painter:
    """Prints rows from the cursor on, and knows the pen that the terminal has by then."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._spell = terminal.clusters.spell
        self._out: list[str] = []
        self._pen = 0

    def say(self, text: str) -> None:
        self._out.append(text)

    def said(self) -> str:
        return "".join(self._out)

    def use(self, pen: int) -> None:
        """Take a pen."""
        if pen == self._pen:
            return
        pens = self._terminal.pens
        old, new = pens.look(self._pen), pens.look(pen)
        self._pen = pen
        if old[:-1] != new[:-1]:
            self.say(pens.code(pen))
        if (old.flags ^ new.flags) & PROTECTED or new.flags & PROTECTED:
            # Some terminals end the protection with SGR 0, some do not.
            self.say('\x1b[1"q' if new.flags & PROTECTED else '\x1b[0"q')
        if old.link != new.link:
            self.say(f"\x1b]8;{new.link or ';'}\x1b\\")

    def rows(self, rows: Iterable[Row]) -> None:
        """Rows as lines; each row but the first begins with the end of the one before, or with a wrap."""
        rows = list(rows)
        for at, row in enumerate(rows):
            following = rows[at + 1] if at + 1 < len(rows) else None
            if at and not row.wrapped:
                # What is scrolled in is painted with the background of the pen.
                if self._terminal.pens.look(self._pen).background:
                    self.use(0)
                self.say("\r\n")
            self._row(
                row, following if following and following.wrapped else None, wraps=at > 0 and row.wrapped
            )

    def _row(self, row: Row, goes_on: Row | None, *, wraps: bool) -> None:
        """One row, from its first column on. When it goes on, the cursor is left so that the next character wraps."""
        text, pens = row.text, row.pens
        columns = self._terminal.columns
        if text and goes_on is None and not pens and text.isascii() and BLANK not in text:
            self.use(0)
            self.say(text)
            return
        full = columns
        if goes_on is not None:
            fits = goes_on.text[1:2] != TAIL or text[columns - 1 : columns] not in ("", BLANK)
            if not fits and (pens[columns - 1 : columns] or BLANK) == (goes_on.pens[:1] or BLANK):
                full -= 1  # the wide character does not fit, wraps by itself and leaves this blank
            text = text.ljust(full, BLANK)[:full].replace(BLANK, " ")
        if wraps and text[:1] in ("", BLANK):
            text = " " + text[1:]  # only something printed wraps
        size = max(len(text), len(pens.rstrip(BLANK)))
        if goes_on is not None:
            size = min(size, full)
        text = text.ljust(size, BLANK)
        pens = pens.ljust(size, BLANK)
        # A row that a wrap scrolls in has the background of the character that wraps.
        filled = wraps and self._terminal.pens.look(ord(pens[0])).background != 0
        at = 0
        while at < size:
            pen = pens[at]
            end = at + 1
            while end < size and (pens[end] == pen or text[end] == TAIL):
                end += 1
            self._run(text[at:end], ord(pen), at, last=end >= columns, filled=filled)
            at = end
        if filled and size < columns:
            self.use(0)
            self.say("\x1b[K")

    def _run(self, cells: str, pen: int, x: int, *, last: bool, filled: bool) -> None:
        """Cells of one pen, at column `x`."""
        for blank, piece in _blanks(cells):
            look = self._terminal.pens.look(pen)
            if not blank:
                self.use(pen)
                self._text(piece, x, last=last)
            elif look == Look(background=look.background):
                if pen or filled:
                    self.use(pen)
                    self.say(f"\x1b[{len(piece)}X")
                if x + len(piece) < self._terminal.columns:
                    self.say(f"\x1b[{len(piece)}C")
            else:
                self.use(pen)
                self.say(" " * len(piece))
            x += len(piece)

    def _text(self, cells: str, x: int, *, last: bool) -> None:
        if cells.isascii() or not _DISPUTED.search(cells):
            self.say(self._spell(cells))
            return
        at = 0
        for found in _DISPUTED.finditer(cells):
            self.say(self._spell(cells[at : found.end()]))
            at = found.end()
            # Not at the edge, where the wrap that is about to be made would be called off.
            if found[0] >= "\u2600" and not (last and at == len(cells)):
                self.say(f"\x1b[{x + at + 1}G")
        self.say(self._spell(cells[at:]))


def _blanks(cells: str) -> Iterable[tuple[bool, str]]:
    """Cells in stretches that are blank or not."""
    if BLANK not in cells:
        return [(False, cells)]
    return [(found[0][0] == BLANK, found[0]) for found in re.finditer(f"{BLANK}+|[^{BLANK}]+", cells)]


def painted(terminal: Terminal) -> bytes:
    """The bytes that put a terminal of the same size into this one's state."""
    t = terminal
    painter = _Painter(t)
    say = painter.say
    # The alternate screen first: what it keeps while it is not shown, and nothing that somebody else left there.
    say("\x18\x1b[?2026h\x1b[?1049h" + _REST)
    if t.left is not None:
        _settings(t, painter, t.left)
    say("\x1b[?1049l" + _REST)
    say(f"\x1b[{t.rows};1H" + "\n" * t.rows + "\x1b[H")
    painter.rows([*t.history, *t.main.lines])
    painter.use(0)
    if t.other is not None:
        # Entering it saves the cursor: so it is where, and as, it was saved before.
        _settings(t, painter, t.main, then="\x1b[?1049h")
        say("\x1b[r\x1b[H\x1b[2J")
        painter.rows(t.other.lines)
        painter.use(0)
    _settings(t, painter, t.screen)
    _window(t, painter)
    _modes(t, painter)
    _cursor(t, painter)
    return painter.said().encode("utf-8", "replace")


def _settings(t: Terminal, painter: _Painter, screen: Screen, then: str = "") -> None:
    """What each screen has of its own: tab stops (on some terminals), keyboard flags, margins, the saved cursor."""
    stops = range(0, t.columns, TAB) if t.stops is None else sorted(t.stops)
    painter.say("\x1b[3g" + "".join(f"\x1b[{x + 1}G\x1bH" for x in stops[:_MOST_STOPS]))
    painter.say("\x1b[<99u" + f"\x1b[={screen.keyboard[0]}u" * bool(screen.keyboard[0]))
    painter.say("".join(f"\x1b[>{flags}u" for flags in screen.keyboard[1:]))
    top, bottom = (t.top, t.bottom) if screen is t.screen else (screen.top, screen.bottom)
    if (top, bottom) != (0, t.rows - 1):
        painter.say(f"\x1b[{top + 1};{bottom + 1}r")
    saved = screen.saved
    if saved is not NEVER or then:
        _place(t, painter, screen, saved.x, saved.y)
        _charsets(painter, saved.charsets)
        painter.use(saved.pen)
        painter.say(then or "\x1b7")
    painter.use(0)
    _charsets(painter, NEVER.charsets)


def _charsets(painter: _Painter, saved: tuple[str, int]) -> None:
    sets, active = saved
    painter.say("".join(f"\x1b{which}{letter}" for which, letter in zip("()*+", sets, strict=True)))
    painter.say(("\x0f", "\x0e", "\x1bn", "\x1bo")[active])


def _window(t: Terminal, painter: _Painter) -> None:
    strings, say = t.strings, painter.say
    for which, title, icon in strings.stack:
        if which != 1 and title is not None:
            say(f"\x1b]2;{title}\x1b\\")
        if which != 2 and icon is not None:
            say(f"\x1b]1;{icon}\x1b\\")
        say(f"\x1b[22;{which}t")
    if strings.icon is not None:
        say(f"\x1b]1;{strings.icon}\x1b\\")
    if strings.title is not None:
        say(f"\x1b]2;{strings.title}\x1b\\")
    if strings.coloured:
        say("\x1b]104\x1b\\\x1b]110\x1b\\\x1b]111\x1b\\\x1b]112\x1b\\")
        say("".join(f"\x1b]4;{index};{colour}\x1b\\" for index, colour in strings.palette.items()))
        say("".join(f"\x1b]{which};{colour}\x1b\\" for which, colour in strings.colours.items()))


def _modes(t: Terminal, painter: _Painter) -> None:
    modes, say = t.modes, painter.say
    private = modes.private
    say("\x1b[?1000;1002;1003;9;1001l\x1b[?1005;1006;1015;1016l")
    if modes.mouse:
        say(f"\x1b[?{modes.mouse}h")
    if modes.encoding:
        say(f"\x1b[?{modes.encoding}h")
    for mode in (*OFF, *ON):
        say(f"\x1b[?{mode}{'h' if mode in private else 'l'}")
    for mode, on in modes.loose.items():
        say(f"\x1b[?{mode}{'h' if on else 'l'}")
    say("".join(f"\x1b[>{option};{value}m" for option, value in modes.key_options.items()))
    say(f"\x1b[{modes.cursor_style} q")
    if modes.newline:
        say("\x1b[20h")


def _place(t: Terminal, painter: _Painter, screen: Screen, x: int, y: int) -> None:
    """Put the cursor somewhere; about to wrap, when it is beyond the edge: then the last character is printed again."""
    if x < t.columns:
        painter.say(f"\x1b[{y + 1};{x + 1}H")
    else:
        before, pen, shown = _before(t, screen, x, y)
        painter.say(f"\x1b[{y + 1};{before + 1}H")
        painter.use(pen)
        painter.say(shown)


def _before(t: Terminal, screen: Screen, x: int, y: int) -> tuple[int, int, str]:
    """The character that ends before column `x`: where it begins, its pen, and what it is."""
    row = screen.lines[y] if y < len(screen.lines) else Row()
    at = x - 1
    cells = row.text[at : at + 1] or BLANK
    if cells == TAIL:
        at -= 1
        cells = row.text[at : at + 2]
    return at, ord(row.pens[at : at + 1] or BLANK), t.clusters.spell(cells)


def _cursor(t: Terminal, painter: _Painter) -> None:
    """The cursor, with the wrap it is about to make and the character that REP would repeat; and what moves neither."""
    x = t.x
    y = t.y - t.top if t.modes.origin else t.y
    if x < t.columns and (not t.repeatable or t.modes.insert):
        painter.say(f"\x1b[{y + 1};{x + 1}H")
        painter.use(t.pen)
        _charsets(painter, t.charsets.saved())
    else:
        at, pen, shown = _before(t, t.screen, x, t.y)
        painter.say(f"\x1b[{y + 1};{at + 1}H")
        painter.use(pen)
        if t.repeatable and shown == shown.translate(t.charsets.table or {}):
            _charsets(painter, t.charsets.saved())
            painter.say(shown)
        else:
            painter.say(shown)
            _charsets(painter, t.charsets.saved())
        painter.use(t.pen)
    if t.charsets.single:
        painter.say("\x1bN" if t.charsets.single == 2 else "\x1bO")
    if t.modes.insert:
        painter.say("\x1b[4h")


def state(terminal: Terminal) -> dict[str, Any]:
    """All that can be seen of a terminal. Titles and colours are None as long as no program has set them."""
    t = terminal
    modes, strings = t.modes, t.strings
    lines = _lines(t, [*t.history, *t.main.lines])
    return {
        "size": (t.columns, t.rows),
        "history": lines[: len(t.history)],
        "main": lines[len(t.history) :],
        "other": None if t.other is None else _lines(t, t.other.lines),
        "cursor": (t.x, t.y),
        "pen": t.pens.look(t.pen),
        "last": t.repeatable and not modes.insert,
        "screens": [_own(t, screen) for screen in (t.main, t.other or t.left or Screen(t.rows))],
        "stops": sorted(t.stops) if t.stops is not None else list(range(0, t.columns, TAB)),
        "charsets": t.charsets.saved(),
        "private": sorted(modes.private),
        "insert": modes.insert,
        "newline": modes.newline,
        "mouse": (modes.mouse, modes.encoding),
        "loose": dict(modes.loose),
        "keys": dict(modes.key_options),
        "style": modes.cursor_style,
        "title": strings.title,
        "icon": strings.icon,
        "titles": list(strings.stack),
        "colours": (dict(strings.palette), dict(strings.colours)) if strings.coloured else None,
    }


def _own(t: Terminal, screen: Screen) -> tuple[Any, ...]:
    top, bottom = (t.top, t.bottom) if screen is t.screen else (screen.top, screen.bottom)
    saved = screen.saved
    return top, bottom, saved.x, saved.y, t.pens.look(saved.pen), saved.charsets, tuple(screen.keyboard)


def _lines(t: Terminal, rows: list[Row]) -> list[tuple[list[str], list[Look], bool]]:
    """What can be seen of rows. The first has nothing above it to continue."""
    return [_seen(t, row, at) for at, row in enumerate(rows)]


def _seen(t: Terminal, row: Row, at: int) -> tuple[list[str], list[Look], bool]:
    """A row's cells, their looks, whether it continues the one above. Blanks are spaces, and at the end not there."""
    size = max(len(row.text), len(row.pens))
    cells = [t.clusters.text(cell) if cell >= chr(CLUSTERS) else cell for cell in row.text.ljust(size, BLANK)]
    looks = [t.pens.look(ord(pen)) for pen in row.pens.ljust(size, BLANK)]
    cells = [" " if cell == BLANK else cell for cell in cells]
    while cells and cells[-1] == " " and looks[-1] == Look():
        del cells[-1], looks[-1]
    return cells, looks, row.wrapped and at > 0
