"""The character sets G0 to G3: which is shifted in, and what it makes of ASCII.

Only two sets change anything here: DEC's line drawing and the British pound. The letters of others are kept, so
that a terminal that knows them is told.
"""

from __future__ import annotations

_DRAWING = str.maketrans(
    "`abcdefghijklmnopqrstuvwxyz{|}~",
    "◆▒␉␌␍␊°±␤␋┘┐┌└┼⎺⎻─⎼⎽├┤┴┬│≤≥π≠£·",
)
_BRITISH = str.maketrans("#", "£")
TABLES: dict[str, dict[int, int]] = {"0": _DRAWING, "A": _BRITISH}
#: The sets that ESC ( and its like may name, by their final letter; others are no designation.
KNOWN = frozenset("0ABC45RQKYE6ZH7=")
ASCII = "B"
_NONE: dict[int, int] = {}


class Charsets:
    """Four designated sets, one of them in use; and a single shift, for one character."""

    __slots__ = ("active", "sets", "single", "table")

    def __init__(self, sets: str = ASCII * 4, active: int = 0) -> None:
        self.sets = sets
        self.active = active
        self.single = 0
        #: None as long as text goes through unchanged.
        self.table: dict[int, int] | None = None
        self._choose()

    def _choose(self) -> None:
        table = TABLES.get(self.sets[self.active])
        self.table = _NONE if table is None and self.single else table

    def designate(self, which: int, letter: str) -> None:
        self.sets = self.sets[:which] + letter + self.sets[which + 1 :]
        self._choose()

    def shift(self, which: int) -> None:
        self.active = which
        self._choose()

    def shift_once(self, which: int) -> None:
        self.single = which
        self._choose()

    def reset(self) -> None:
        self.sets, self.active, self.single, self.table = ASCII * 4, 0, 0, None

    def saved(self) -> tuple[str, int]:
        return self.sets, self.active

    def recall(self, saved: tuple[str, int]) -> None:
        self.sets, self.active = saved
        self._choose()

    def translate(self, text: str) -> str:
        """Text as the sets in use show it. Ends a single shift."""
        if self.single:
            first = text[0].translate(TABLES.get(self.sets[self.single], _NONE))
            self.single = 0
            self._choose()
            rest = text[1:]
            return first + (rest.translate(self.table) if self.table else rest)
        return text.translate(self.table) if self.table else text
