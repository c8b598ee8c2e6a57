"""What single control characters do, and what an ESC with one letter behind it does: see `controls.py` for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from guestd.terminal.cells import BLANK, Row
from guestd.terminal.charsets import KNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.terminal.screen import Terminal

# ----------------------------------------------------------------------------------------- single characters


def _backspace(t: Terminal) -> None:
    if 45 not in t.modes.private or t.x < t.columns:
        t.settle()
    if t.x > 0:
        t.x -= 1
    elif 45 in t.modes.private and t.top < t.y <= t.bottom and t.lines[t.y].wrapped:
        t.lines[t.y].wrapped = False
        t.y -= 1
        t.x = t.columns - 1
        if t.lines[t.y].text[t.x : t.x + 1] in ("", BLANK):
            t.x -= 1
        t.settle()


def _tab(t: Terminal) -> None:
    if t.x < t.columns:
        t.x = t.next_stop(t.x)


def _return(t: Terminal) -> None:
    t.x = 0


def _new_line(t: Terminal) -> None:
    t.x = 0
    t.line_feed()


def _line_feed(t: Terminal) -> None:
    t.line_feed()


def _shift_out(t: Terminal) -> None:
    t.charsets.shift(1)


def _shift_in(t: Terminal) -> None:
    t.charsets.shift(0)


#: And the pair that ends most lines.
C0: Final[dict[str, Callable[[Terminal], None]]] = {
    "\b": _backspace,
    "\t": _tab,
    "\n": _line_feed,
    "\v": _line_feed,
    "\f": _line_feed,
    "\r": _return,
    "\r\n": _new_line,
    "\x0e": _shift_out,
    "\x0f": _shift_in,
}


# ---------------------------------------------------------------------------------------- ESC and one letter


def _index(t: Terminal) -> None:
    t.index()


def _next(t: Terminal) -> None:
    t.x = 0
    t.index()


def _tab_set(t: Terminal) -> None:
    t.own_stops().add(min(t.x, t.columns - 1))


def _reverse_index(t: Terminal) -> None:
    t.reverse_index()


def _alignment(t: Terminal) -> None:
    t.go(0, t.top if t.modes.origin else 0)
    pen = chr(t.pen)
    for y in range(t.rows):
        t.lines[y] = Row("E" * t.columns, pen * t.columns if t.pen else "")


def _shift_to(which: int) -> Callable[[Terminal], None]:
    return lambda t: t.charsets.shift(which)


def _shift_once_to(which: int) -> Callable[[Terminal], None]:
    return lambda t: t.charsets.shift_once(which)


def _keypad(*, on: bool) -> Callable[[Terminal], None]:
    return lambda t: t.modes.set(66, on)


def _ascii(t: Terminal) -> None:
    t.charsets.shift(0)
    t.charsets.designate(0, "B")


ESC: Final[dict[str, Callable[[Terminal], None]]] = {
    "7": lambda t: t.save(),
    "8": lambda t: t.recall(),
    "D": _index,
    "E": _next,
    "H": _tab_set,
    "M": _reverse_index,
    "N": _shift_once_to(2),
    "O": _shift_once_to(3),
    "=": _keypad(on=True),
    ">": _keypad(on=False),
    "c": lambda t: t.begin(),
    "n": _shift_to(2),
    "o": _shift_to(3),
    "|": _shift_to(3),
    "}": _shift_to(2),
    "~": _shift_to(1),
    "%@": _ascii,
    "%G": _ascii,
    "#8": _alignment,
}
_DESIGNATORS = {"(": 0, ")": 1, "*": 2, "+": 3, "-": 1, ".": 2}


def escape(t: Terminal, text: str) -> None:
    """What follows an ESC: intermediates and one character."""
    known = ESC.get(text)
    if known is not None:
        known(t)
    elif len(text) == 2 and text[0] in _DESIGNATORS and text[1] in KNOWN:
        t.charsets.designate(_DESIGNATORS[text[0]], text[1])
