"""The modes that a program switches on and off, in three groups by what a restore does about them.

- Firm ones have a known beginning, and are always told.
- Loose ones begin as the person's own terminal was set up: they are told only once a program has touched them.
- The mouse has one protocol and one encoding at a time.
"""

from __future__ import annotations

#: DEC private modes that begin switched off: cursor keys, reverse video, origin, reverse wrap-around, keypad, focus
#: events, bracketed paste, synchronised output.
OFF: tuple[int, ...] = (1, 5, 6, 45, 66, 1004, 2004, 2026)
#: And those that begin switched on: wrapping, the cursor.
ON: tuple[int, ...] = (7, 25)
#: Auto-repeat, blinking cursor, wheel as arrows, the modifiers of keys (four), news of the colour scheme. Not 2048
#: (sizes told in band): a terminal answers to its being switched on, and the kernel tells sizes anyway.
LOOSE = frozenset((8, 12, 1007, 1034, 1035, 1036, 1039, 2031))
MOUSE = frozenset((9, 1000, 1001, 1002, 1003))
ENCODINGS = frozenset((1005, 1006, 1015, 1016))
_FIRM = frozenset((*OFF, *ON))
#: The level of modifyOtherKeys, and what else `CSI > … m` sets.
_MOST_KEY_OPTIONS = 8


class Modes:
    """See the module. Some are attributes too, for those who ask often."""

    __slots__ = (
        "cursor_style",
        "encoding",
        "insert",
        "key_options",
        "loose",
        "mouse",
        "newline",
        "origin",
        "private",
        "wrap",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.soft_reset()
        self.newline = False
        self.mouse = 0
        self.encoding = 0
        self.loose: dict[int, bool] = {}
        self.key_options: dict[int, int] = {}

    def soft_reset(self) -> None:
        self.private = set(ON)
        self.insert = False
        self.origin = False
        self.wrap = True
        self.cursor_style = 0

    def set(self, mode: int, on: bool) -> None:  # noqa: FBT001  a mode is on or off
        """A DEC private mode; unknown ones are nothing to us."""
        if mode in _FIRM:
            (self.private.add if on else self.private.discard)(mode)
            if mode == 6:
                self.origin = on
            elif mode == 7:
                self.wrap = on
        elif mode in MOUSE:
            self.mouse = mode if on else 0
        elif mode in ENCODINGS:
            if on:
                self.encoding = mode
            elif mode == self.encoding or mode in (1006, 1016):
                self.encoding = 0
        elif mode in LOOSE:
            self.loose[mode] = on

    def set_key_option(self, option: int, value: int) -> None:
        """`CSI > option ; value m`; 0 is how all of them begin."""
        if value and (option in self.key_options or len(self.key_options) < _MOST_KEY_OPTIONS):
            self.key_options[option] = value
        else:
            self.key_options.pop(option, None)
