"""What programs say in strings (OSC): titles, colours, hyperlinks. Everything else said that way is for others.

What is kept is bounded: an address or a title longer than any terminal takes is not taken here either.
"""

from __future__ import annotations

import re

LONGEST_TITLE = 1024
_LONGEST_LINK = 2083 + 250  # the longest address, and the longest id, that terminals take
_MOST_TITLES = 20
_COLOUR = re.compile(r"[#0-9A-Za-z:/. ]{1,64}\Z")
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f]")
#: OSC 10, 11, 12: foreground, background, cursor. One sequence may go on from one to the next.
SPECIAL = (10, 11, 12)


class Strings:
    """The title and the colours of a terminal's window. None: a program never said."""

    __slots__ = ("coloured", "colours", "icon", "palette", "stack", "title")

    def __init__(self) -> None:
        self.title: str | None = None
        self.icon: str | None = None
        #: What CSI 22 t has kept: which (0 both, 1 the icon's, 2 the window's), the window's, the icon's.
        self.stack: list[tuple[int, str | None, str | None]] = []
        self.palette: dict[int, str] = {}
        self.colours: dict[int, str] = {}
        #: A program has changed colours, so a terminal that it was shown on may have to be told of their end.
        self.coloured = False

    def heard(self, text: str) -> str | None:
        """An OSC. Returns the hyperlink that it begins (`""`: that it ends); None when it is none of that."""
        code, semicolon, rest = text.partition(";")
        if not code.isascii() or not code.isdigit() or len(code) > 4:
            return None
        number = int(code)
        if number == 8:
            return self._link(rest) if semicolon else None
        if number in (0, 1, 2):
            self._name(number, rest)
        elif number == 4:
            self._set_palette(rest)
        elif number in SPECIAL:
            self._set_special(number, rest)
        elif number == 104:
            self.coloured = True
            self._unset_palette(rest)
        elif number - 100 in SPECIAL:
            self.coloured = True
            self.colours.pop(number - 100, None)
        return None

    def _name(self, number: int, text: str) -> None:
        title = _CONTROLS.sub("", text)[:LONGEST_TITLE]
        if number != 1:
            self.title = title
        if number != 2:
            self.icon = title

    @staticmethod
    def _link(rest: str) -> str | None:
        parameters, semicolon, address = rest.partition(";")
        if not semicolon:
            return None
        if not address:
            return None if parameters.strip() else ""
        return _CONTROLS.sub("", rest) if len(rest) <= _LONGEST_LINK else ""

    def _set_palette(self, rest: str) -> None:
        slots = rest.split(";")
        for index, colour in zip(slots[::2], slots[1::2], strict=False):
            if (
                index.isascii()
                and index.isdigit()
                and len(index) <= 3
                and int(index) < 256
                and _COLOUR.match(colour)
            ):
                self.palette[int(index)] = colour
                self.coloured = True

    def _unset_palette(self, rest: str) -> None:
        if not rest:
            self.palette.clear()
        for index in rest.split(";"):
            if index.isascii() and index.isdigit() and len(index) <= 3:
                self.palette.pop(int(index), None)

    def _set_special(self, number: int, rest: str) -> None:
        for which, colour in zip(range(number, SPECIAL[-1] + 1), rest.split(";"), strict=False):
            if _COLOUR.match(colour):
                self.colours[which] = colour
                self.coloured = True

    def push(self, which: int) -> None:
        """CSI 22 ; which t: 0 both titles, 1 the icon's, 2 the window's."""
        if which in (0, 1, 2):
            self.stack.append((which, self.title if which != 1 else None, self.icon if which != 2 else None))
            del self.stack[:-_MOST_TITLES]

    def pop(self, which: int) -> None:
        """CSI 23 ; which t. What was pushed together may be taken back one by one."""
        if which in (0, 2):
            at = self._pushed(2)
            if at is not None:
                self.title = self.stack[at][1]
                self._popped(at, 1)
        if which in (0, 1):
            at = self._pushed(1)
            if at is not None:
                self.icon = self.stack[at][2]
                self._popped(at, 2)

    def _pushed(self, which: int) -> int | None:
        """The newest entry that has that title."""
        places = (at for at in reversed(range(len(self.stack))) if self.stack[at][0] in (0, which))
        return next(places, None)

    def _popped(self, at: int, left: int) -> None:
        """One of its titles is taken from an entry; `left` is which it may have left."""
        which, title, icon = self.stack[at]
        if which == 0:
            self.stack[at] = left, title if left != 1 else None, icon if left != 2 else None
        else:
            del self.stack[at]
