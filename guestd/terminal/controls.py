"""Which control sequence does what: one small function for each, and the table by which they are found.

A control sequence is known by its private prefix, its intermediates and its final character, written together: `?h`,
` q`, `m`. Functions take the terminal and the parameters, at least one of them; a parameter that was left out is 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from guestd.terminal import editing
from guestd.terminal.pens import PROTECTED
from guestd.terminal.screens import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.terminal.screen import Terminal

    Parameters = tuple[int, ...]
    Control = Callable[[Terminal, Parameters], None]

_MOST_PARAMETERS = 32
_LARGEST = 0x7FFFFFFF
_SEQUENCE = re.compile(r"([<=>?]?)([0-9;:]*)([ -/]*[@-~])\Z")
_MOST_CACHED = 4096
_LONGEST_CACHED = 32


def _count(parameters: Parameters) -> int:
    return parameters[0] or 1


# ------------------------------------------------------------------------------------------------ the cursor


def _up(t: Terminal, p: Parameters) -> None:
    t.settle()
    stop = t.top if t.y >= t.top else 0
    t.go(t.x, max(t.y - _count(p), stop))


def _down(t: Terminal, p: Parameters) -> None:
    t.settle()
    stop = t.bottom if t.y <= t.bottom else t.rows - 1
    t.go(t.x, min(t.y + _count(p), stop))


def _right(t: Terminal, p: Parameters) -> None:
    t.settle()
    t.go(t.x + _count(p), t.y)


def _left(t: Terminal, p: Parameters) -> None:
    t.settle()
    t.go(t.x - _count(p), t.y)


def _next_line(t: Terminal, p: Parameters) -> None:
    _down(t, p)
    t.x = 0


def _previous_line(t: Terminal, p: Parameters) -> None:
    _up(t, p)
    t.x = 0


def _column(t: Terminal, p: Parameters) -> None:
    t.go(_count(p) - 1, t.y)


def _row(t: Terminal, p: Parameters) -> None:
    t.settle()
    t.go(t.x, _count(p) - 1 + (t.top if t.modes.origin else 0))


def _row_relative(t: Terminal, p: Parameters) -> None:
    t.settle()
    t.go(t.x, t.y + _count(p))


def _place(t: Terminal, p: Parameters) -> None:
    y = (p[0] or 1) - 1
    x = (p[1] or 1) - 1 if len(p) > 1 else 0
    if t.modes.origin:
        t.go(x, y + t.top)
    else:
        columns, rows = t.columns, t.rows
        t.x = x if x < columns else columns - 1
        t.y = y if y < rows else rows - 1


def _tab_forward(t: Terminal, p: Parameters) -> None:
    for _ in range(min(_count(p), t.columns)):
        if t.x < t.columns:
            t.x = t.next_stop(t.x)


def _tab_back(t: Terminal, p: Parameters) -> None:
    for _ in range(min(_count(p), t.columns)):
        if t.x < t.columns:
            t.x = t.previous_stop(t.x)


def _tab_clear(t: Terminal, p: Parameters) -> None:
    if p[0] == 0:
        t.own_stops().discard(t.x)
    elif p[0] == 3:
        t.own_stops().clear()


def _save(t: Terminal, _p: Parameters) -> None:
    t.save()


def _recall(t: Terminal, _p: Parameters) -> None:
    t.recall()


def _repeat(t: Terminal, p: Parameters) -> None:
    t.repeat(_count(p))


def _set_region(t: Terminal, p: Parameters) -> None:
    top = p[0] or 1
    bottom = p[1] if len(p) > 1 else 0
    if bottom == 0 or bottom > t.rows:
        bottom = t.rows
    if bottom > top:
        t.top, t.bottom = top - 1, bottom - 1
        _place(t, (1, 1))


# ----------------------------------------------------------------------------------------------------- modes


def _set_ansi(t: Terminal, p: Parameters, *, on: bool) -> None:
    for mode in p:
        if mode == 4:
            t.modes.insert = on
        elif mode == 20:
            t.modes.newline = on


def _set_private(t: Terminal, p: Parameters, *, on: bool) -> None:
    for mode in p:
        if mode in (47, 1047, 1049):
            _show(t, on=on, cursor=mode == 1049)
        elif mode == 1048:
            (t.save if on else t.recall)()
        elif mode == 2 and on:
            t.charsets.recall(("BBBB", t.charsets.active))
        else:
            t.modes.set(mode, on)
            if mode == 6:
                _place(t, (1, 1))


def _show(t: Terminal, *, on: bool, cursor: bool) -> None:
    if on:
        if cursor:
            t.save()
        t.show_alternate()
    else:
        t.show_main()
        if cursor:
            t.recall()


def _switch_on(t: Terminal, p: Parameters) -> None:
    _set_ansi(t, p, on=True)


def _switch_off(t: Terminal, p: Parameters) -> None:
    _set_ansi(t, p, on=False)


def _private_on(t: Terminal, p: Parameters) -> None:
    _set_private(t, p, on=True)


def _private_off(t: Terminal, p: Parameters) -> None:
    _set_private(t, p, on=False)


def _soft_reset(t: Terminal, _p: Parameters) -> None:
    t.modes.soft_reset()
    t.charsets.reset()
    t.top, t.bottom = 0, t.rows - 1
    t.pen = 0
    t.screen.saved = NEVER


def _cursor_style(t: Terminal, p: Parameters) -> None:
    if p[0] <= 6:
        t.modes.cursor_style = p[0]


def _protect(t: Terminal, p: Parameters) -> None:
    look = t.pens.look(t.pen)
    if p[0] <= 2:
        flags = look.flags | PROTECTED if p[0] == 1 else look.flags & ~PROTECTED
        t.pen = t.pens.number(look._replace(flags=flags))


def _key_option(t: Terminal, p: Parameters) -> None:
    t.modes.set_key_option(p[0], p[1] if p[1:] else 0)


def _titles(t: Terminal, p: Parameters) -> None:
    which = p[1] if p[1:] else 0
    if p[0] == 22:
        t.strings.push(which)
    elif p[0] == 23:
        t.strings.pop(which)


# --------------------------------------------------------------------------------- kitty's keyboard protocol

_MOST_PUSHED = 16
_KEYBOARD_FLAGS = 31


def _keyboard_set(t: Terminal, p: Parameters) -> None:
    stack, flags = t.screen.keyboard, p[0] & _KEYBOARD_FLAGS
    how = p[1] if len(p) > 1 else 1
    if how <= 1:
        stack[-1] = flags
    elif how == 2:
        stack[-1] |= flags
    elif how == 3:
        stack[-1] &= ~flags


def _keyboard_push(t: Terminal, p: Parameters) -> None:
    stack = t.screen.keyboard
    stack.append(p[0] & _KEYBOARD_FLAGS)
    del stack[:-_MOST_PUSHED]


def _keyboard_pop(t: Terminal, p: Parameters) -> None:
    stack = t.screen.keyboard
    del stack[max(len(stack) - _count(p), 0) :]
    if not stack:
        stack.append(0)


CSI: Final[dict[str, Control]] = {
    "@": editing.insert_characters,
    " @": editing.scroll_left,
    "A": _up,
    " A": editing.scroll_right,
    "B": _down,
    "C": _right,
    "D": _left,
    "E": _next_line,
    "F": _previous_line,
    "G": _column,
    "H": _place,
    "I": _tab_forward,
    "J": editing.erase_screen,
    "?J": editing.erase_screen_selectively,
    "K": editing.erase_line,
    "?K": editing.erase_line_selectively,
    "L": editing.insert_lines,
    "M": editing.delete_lines,
    "P": editing.delete_characters,
    "S": editing.scroll_up,
    "T": editing.scroll_down,
    "X": editing.erase_characters,
    "Z": _tab_back,
    "`": _column,
    "a": _right,
    "b": _repeat,
    "d": _row,
    "e": _row_relative,
    "f": _place,
    "g": _tab_clear,
    "h": _switch_on,
    "?h": _private_on,
    "l": _switch_off,
    "?l": _private_off,
    "!p": _soft_reset,
    " q": _cursor_style,
    '"q': _protect,
    "r": _set_region,
    "s": _save,
    "t": _titles,
    "u": _recall,
    "=u": _keyboard_set,
    ">u": _keyboard_push,
    "<u": _keyboard_pop,
    ">m": _key_option,
    "'}": editing.insert_columns,
    "'~": editing.delete_columns,
}


def _nothing(_t: Terminal, _p: Parameters) -> None:
    """A sequence that is not known, or asks for an answer: the terminal in front of the person gives it."""


_known: dict[str, tuple[Control, Parameters]] = {}


def sequence(csi: str) -> tuple[Control, Parameters]:
    """The function for what follows a CSI, and its parameters. SGR, the commonest, is not found here."""
    known = _known.get(csi)
    if known is None:
        if len(_known) >= _MOST_CACHED:
            _known.clear()
        found = _SEQUENCE.match(csi)
        if found is None:
            return _nothing, (0,)
        prefix, parameters, final = found.groups()
        values = [part.partition(":")[0] for part in parameters.split(";")[:_MOST_PARAMETERS]]
        numbers = tuple(min(int(value), _LARGEST) if value else 0 for value in values)
        known = CSI.get(prefix + final, _nothing), numbers
        if len(csi) <= _LONGEST_CACHED:
            _known[csi] = known
    return known


#: Those that change what outlasts the screen.
_LASTING = frozenset(
    CSI[name]
    for name in ("h", "?h", "l", "?l", "!p", " q", '"q', "r", "s", "t", "u", "g", "=u", ">u", "<u", ">m")
)


def lasts(control: Control) -> bool:
    """Whether a control changes more than what is on the screen."""
    return control in _LASTING
