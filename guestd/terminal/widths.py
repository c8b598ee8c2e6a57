"""How many cells a character takes: 0, 1 or 2, as programs in the guest reckon it too (wcwidth).

Emoji are wide, each for itself: what a joiner would make one of takes the cells of its parts, in programs' reckoning
and in most terminals. Marks, joiners and variation selectors take none and belong to the character before them.
"""

from __future__ import annotations

import re
import unicodedata

_ZERO = frozenset(("Mn", "Me", "Cf", "Cc", "Cs"))
_SOFT_HYPHEN = "\xad"  # a format character by category, a hyphen on every terminal
_MOST_KEPT = 8192
_UNASSIGNED_WIDE = re.compile(
    "[\u4dbf-\u9fff\uf900-\ufaff\U0001f300-\U0001f6ff\U0001f900-\U0001faff\U00020000-\U0003fffd]"
)

#: Runs of these are put down as they are. A part of what is one cell wide, chosen for what programs draw with: Latin,
#: Greek, Cyrillic, punctuation, arrows, mathematics, boxes and blocks, Braille, and the private use of icon fonts.
PLAIN = (
    " -~\xa1-\xac\xae-\u02ff\u0370-\u0377\u037a-\u037f\u0384-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e"
    "\u2190-\u2319\u2500-\u25fc\u2800-\u28ff\ue000-\uf8ff"
)


class _Widths(dict[str, int]):
    """By character, reckoned at the first use."""

    def __missing__(self, char: str) -> int:
        category = unicodedata.category(char)
        if char == _SOFT_HYPHEN:
            width = 1
        elif category in _ZERO or "\u1160" <= char <= "\u11ff":
            # The second and third letters of a Hangul syllable are drawn into the first one's cells.
            width = 0
        elif category == "Cn":
            # Not assigned in this Python's tables: but where new emoji and ideographs come, they will be wide.
            width = 2 if _UNASSIGNED_WIDE.match(char) else 1
        else:
            width = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if len(self) >= _MOST_KEPT:
            self.clear()
        self[char] = width
        return width


WIDTHS = _Widths()
