"""Pens: how a cell looks. Each look is told once and then is a number, which rows hold as a code point.

A look is a tuple: flags, foreground, background, the style of the underline, its colour, the hyperlink. A colour
is 0 (the terminal's own), 1 to 16 (the sixteen), `INDEXED` + n (one of 256) or `DIRECT` + 0xRRGGBB.
"""

from __future__ import annotations

from typing import NamedTuple

BOLD, DIM, ITALIC, BLINK, INVERSE, HIDDEN, STRUCK, OVERLINED, PROTECTED = (1 << bit for bit in range(9))
INDEXED = 0x100
DIRECT = 0x1000000
_MOST_PARAMETERS = 32
_FIRST_SWEEP = 2048
_MOST_STEPS = 4096
_LONGEST_STEP = 64


class Look(NamedTuple):
    flags: int = 0
    foreground: int = 0
    background: int = 0
    underline: int = 0
    underline_colour: int = 0
    #: What stood in the OSC 8: its parameters, a semicolon, the address.
    link: str = ""


PLAIN_LOOK = Look()
_SET = {1: BOLD, 2: DIM, 3: ITALIC, 5: BLINK, 7: INVERSE, 8: HIDDEN, 9: STRUCK, 53: OVERLINED}
_UNSET = {22: BOLD | DIM, 23: ITALIC, 25: BLINK, 27: INVERSE, 28: HIDDEN, 29: STRUCK, 55: OVERLINED}


class Pens:
    """The looks in use, by number. Number 0 is the plain one."""

    __slots__ = ("_blanks", "_codes", "_free", "_looks", "_numbers", "_sweep_at", "steps")

    def __init__(self) -> None:
        self._looks: list[Look] = [PLAIN_LOOK]
        self._numbers: dict[Look, int] = {PLAIN_LOOK: 0}
        self._blanks: dict[int, int] = {0: 0}
        self._codes: dict[int, str] = {}
        self._free: list[int] = []
        self._sweep_at = _FIRST_SWEEP
        #: (pen, what stands between CSI and the end of an SGR) → pen. The tokeniser's loop asks this first.
        self.steps: dict[tuple[int, str], int] = {}

    def number(self, look: Look) -> int:
        number = self._numbers.get(look)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._looks[number] = look
            else:
                number = len(self._looks)
                self._looks.append(look)
            self._numbers[look] = number
        return number

    def look(self, number: int) -> Look:
        return self._looks[number]

    def blank(self, pen: int) -> int:
        """The pen of what is erased with `pen`: only its background."""
        number = self._blanks.get(pen)
        if number is None:
            number = self._blanks[pen] = self.number(Look(background=self._looks[pen].background))
        return number

    def step(self, pen: int, sgr: str) -> int:
        """The pen after an SGR, given as what stands between CSI and its end, the `m` included."""
        if len(self.steps) >= _MOST_STEPS:
            self.steps.clear()
        number = self.number(apply(self._looks[pen], sgr[:-1]))
        if len(sgr) <= _LONGEST_STEP:
            self.steps[pen, sgr] = number
        return number

    def code(self, pen: int) -> str:
        """The SGR that makes this pen from any other, hyperlink and protection apart."""
        code = self._codes.get(pen)
        if code is None:
            if len(self._codes) >= _MOST_STEPS:
                self._codes.clear()
            code = self._codes[pen] = encode(self._looks[pen])
        return code

    @property
    def crowded(self) -> bool:
        """It is time to find out which are still in use: call `keep`."""
        return len(self._numbers) >= self._sweep_at

    def keep(self, used: set[int]) -> None:
        """Forget all but the pens in `used`; 0 always stays."""
        used.add(0)
        for look, number in list(self._numbers.items()):
            if number not in used:
                del self._numbers[look]
                self._looks[number] = PLAIN_LOOK
                self._free.append(number)
        self.steps.clear()
        self._codes.clear()
        self._blanks = {0: 0}
        self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._numbers))


def is_sgr(csi: str) -> bool:
    """Whether what follows a CSI is an SGR."""
    return csi.endswith("m") and not csi[:-1].strip("0123456789;:")


def _colour(values: list[int]) -> int | None:
    """What follows a 38, 48 or 58: 5 and an index, or 2 and red, green, blue. None: no colour is named."""
    if values[:1] == [5]:
        return INDEXED + (values[1] & 255 if len(values) > 1 else 0)
    if values[:1] == [2]:
        red, green, blue = [*values[1:4], 0, 0, 0][:3]
        return DIRECT + ((red & 255) << 16) + ((green & 255) << 8) + (blue & 255)
    return None


def _extended(parts: list[str], at: int) -> tuple[int | None, int]:
    """The colour that the parameter at `at` opens, and how many further parameters belong to it."""
    _, *below = parts[at].split(":")
    if below:
        values = [_number(part) for part in below]
        # With the colour space, as the standard has it (2:space:r:g:b), and without, as most programs write it.
        if values[0] == 2 and len(values) >= 5:
            del values[1]
        return _colour(values), 0
    values = [_number(part.split(":")[0]) for part in parts[at + 1 : at + 5]]
    taken = 2 if values[:1] == [5] else 4
    return _colour(values[:taken]), taken


def _number(part: str) -> int:
    return int(part) if part else 0


def apply(look: Look, parameters: str) -> Look:  # noqa: C901, PLR0912  one parameter, one case
    """A look after the parameters of an SGR."""
    flags, foreground, background, underline, underline_colour, link = look
    parts = parameters.split(";")[:_MOST_PARAMETERS]
    at = 0
    while at < len(parts):
        part = parts[at]
        code, _, below = part.partition(":")
        value = _number(code)
        if value == 0:
            flags = foreground = background = underline = underline_colour = 0
        elif value in _SET:
            flags |= _SET[value]
        elif value in _UNSET:
            flags &= ~_UNSET[value]
        elif value == 4:
            style = _number(below.split(":")[0]) if below else 1
            underline = style if style <= 5 else 1
        elif value == 21:
            underline = 2
        elif value == 24:
            underline = 0
        elif 30 <= value <= 37:
            foreground = value - 29
        elif 90 <= value <= 97:
            foreground = value - 81
        elif 40 <= value <= 47:
            background = value - 39
        elif 100 <= value <= 107:
            background = value - 91
        elif value == 39:
            foreground = 0
        elif value == 49:
            background = 0
        elif value == 59:
            underline_colour = 0
        elif value in (38, 48, 58):
            colour, taken = _extended(parts, at)
            at += taken
            if colour is None:
                pass
            elif value == 38:
                foreground = colour
            elif value == 48:
                background = colour
            else:
                underline_colour = colour
        at += 1
    return Look(flags, foreground, background, underline, underline_colour, link)


def _spell(colour: int, base: int) -> str:
    """A colour as parameters of an SGR; `base` is 30, 40 or 50."""
    if colour >= DIRECT:
        return f";{base + 8};2;{colour >> 16 & 255};{colour >> 8 & 255};{colour & 255}"
    if colour >= INDEXED:
        return f";{base + 8};5;{colour - INDEXED}"
    if colour > 8:
        return f";{base + 60 + colour - 9}"
    return f";{base + colour - 1}" if colour else ""


def encode(look: Look) -> str:
    """The SGR that makes a look from any other. What terminals may not know comes in sequences of its own."""
    code = "\x1b[0"
    for value, flag in _SET.items():
        if look.flags & flag:
            code += f";{value}"
    if look.underline:
        code += ";4"
    code += _spell(look.foreground, 30) + _spell(look.background, 40) + "m"
    if look.underline > 1:
        code += f"\x1b[4:{look.underline}m"
    if look.underline_colour >= DIRECT:
        colour = look.underline_colour
        code += f"\x1b[58:2::{colour >> 16 & 255}:{colour >> 8 & 255}:{colour & 255}m"
    elif look.underline_colour:
        code += f"\x1b[58:5:{look.underline_colour - INDEXED}m"
    return code
