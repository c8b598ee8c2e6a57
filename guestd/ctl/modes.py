"""What the guest's programs have switched on in this terminal, and what switches it off again. Pure.

A shell that is left in the middle of an editor leaves the alternate screen, mouse reports, pasting in brackets and
more behind, and each of them makes the prompt that follows unusable. What is known to be harmless where nothing was
switched on is always sent; the rest only where it was, because some terminals move the cursor for it.
"""

from __future__ import annotations

import re

#: Private modes that are off in a terminal at rest, and hurt when they stay on.
_HARMFUL = frozenset({
    1, 5, 6, 9, 45, 66, 69, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004, 2026, 2031, 2048,
})  # fmt: skip
#: Those that make the terminal send something by itself.
_REPORTING = frozenset({9, 1000, 1001, 1002, 1003, 1004, 2031, 2048})
_ALTERNATE = (1049, 1047, 47)
_SEQUENCE = re.compile(
    rb"\x1b(?:\[\?(?P<modes>[\d;]{1,64})(?P<on>[hl])"
    rb"|\[(?P<kitty>[<>=])(?P<flags>[\d;]{0,32})u"
    rb"|\[>4(?:;(?P<keys>\d{0,9}))?m"
    rb"|\[(?P<margins>[\d;]{0,32})r"
    rb"|\[(?P<cursor>\d{0,9}) q"
    rb"|\](?P<colour>4(?=;\d{1,3};[^?])|1[0-9](?=;[^?]));"  # with a ? it only asks
    rb"|(?P<keypad>[=>])"
    rb"|(?P<reset>c))"
)
#: The beginning of any of them.
_BEGUN = re.compile(rb"\x1b(?:\[[<-?]?[\d;]*(?:(?<=\d) )?|\](?:1[0-9];|4;\d{0,3};?|\d{0,2}))?")
_BEGUN_MAX = 64
#: Colours and attributes, the usual letters, inserting, wrapping, the cursor.
_ALWAYS = b"\x1b[0m\x1b(B\x0f\x1b[4l\x1b[?7h\x1b[?25h"
#: Ends whatever sequence was cut in the middle.
CANCEL = b"\x18"


class Modes:
    """See the module."""

    def __init__(self) -> None:
        self._on: set[int] = set()
        self._pushed = 0
        self._margins = self._keypad = self._cursor = self._keys = False
        self._colours: set[bytes] = set()
        self._begun = b""

    @property
    def reporting(self) -> bool:
        """The terminal sends reports of its own: of the mouse, of the focus."""
        return not _REPORTING.isdisjoint(self._on)

    def feed(self, data: bytes) -> bool:
        """Output passes. True when what undoes it is another now."""
        if not self._begun and b"\x1b" not in data:
            return False
        before = self.undo()
        data = self._begun + data
        self._begun = b""
        last = data.rfind(b"\x1b", -_BEGUN_MAX)
        if last >= 0 and _BEGUN.fullmatch(data, last):
            data, self._begun = data[:last], data[last:]
        for found in _SEQUENCE.finditer(data):
            self._note(found)
        return self.undo() != before

    def _note(self, found: re.Match[bytes]) -> None:
        match found.lastgroup:
            case "on":
                self._switch(found["modes"], on=found["on"] == b"h")
            case "flags" if found["kitty"] == b">":
                self._pushed += 1
            case "flags" if found["kitty"] == b"<":
                self._pushed = max(0, self._pushed - int(found["flags"].split(b";")[0] or 1))
            case "keys":
                self._keys = found["keys"] not in {b"", b"0"}
            case "margins":
                self._margins = found["margins"].strip(b";") != b""
            case "cursor":
                self._cursor = found["cursor"] not in {b"", b"0"}
            case "colour":
                self._colours.add(found["colour"])
            case "keypad":
                self._keypad = found["keypad"] == b"="
            case "reset":
                self.__init__()
            case _:
                pass

    def _switch(self, modes: bytes, *, on: bool) -> None:
        for mode in (int(each) for each in modes.split(b";") if each):
            if mode in _ALTERNATE:
                self._on.difference_update(_ALTERNATE)
            if on and (mode in _HARMFUL or mode in _ALTERNATE):
                self._on.add(mode)
            else:
                self._on.discard(mode)

    def undo(self) -> bytes:
        """What puts the terminal at rest."""
        parts: list[bytes] = []
        if self._pushed:
            parts.append(b"\x1b[<%du" % self._pushed)
        # First what belongs to the alternate screen alone, then that screen.
        parts += [b"\x1b[?%dl" % mode for mode in sorted(self._on - set(_ALTERNATE))]
        if self._margins:
            # It moves the cursor.
            parts.append(b"\x1b7\x1b[r\x1b8")
        parts += [b"\x1b[?%dl" % mode for mode in _ALTERNATE if mode in self._on]
        if self._keys:
            parts.append(b"\x1b[>4m")
        if self._keypad:
            parts.append(b"\x1b>")
        if self._cursor:
            parts.append(b"\x1b[0 q")
        parts += [
            b"\x1b]1%s%s\x1b\\" % (b"0" if each == b"4" else b"", each) for each in sorted(self._colours)
        ]
        return b"".join((*parts, _ALWAYS))
