"""How a terminal's bytes fall into text, control characters and sequences: one expression for all of it.

The states of a terminal's parser (DEC's, as the VT500 had it) are told as what each sequence may consist of, so that a
chunk is taken apart at the speed of the regular expression and not of a loop over its characters. What is true of every
state is part of every alternative: control characters are obeyed inside of sequences, CAN and SUB break one off, ESC
begins another, and what is not ASCII ends one without effect.
"""

from __future__ import annotations

import re
from typing import Final

from guestd.terminal.widths import PLAIN

#: A sequence longer than this has no effect, and is not collected.
LONGEST: Final = 4096
# Control characters that may stand inside of a sequence; not CAN, SUB, ESC.
_INSIDE = r"\x00-\x17\x19\x1c-\x1f"
_CSI = rf"\x1b\[[{_INSIDE} -?\x7f]*(?:[@-~\x18\x1a]|(?=\x1b)|[^\x00-\x7f])"
_OSC = r"\x1b\][^\x07\x18\x1a\x1b]*(?:[\x07\x18\x1a]|(?=\x1b))"
_OTHER_STRING = r"\x1b[PX^_][^\x18\x1a\x1b]*(?:[\x18\x1a]|(?=\x1b))"
_ESC = (
    rf"\x1b(?:[ -/][{_INSIDE} -/\x7f]*(?:[0-~\x18\x1a]|(?=\x1b)|[^\x00-\x7f])"
    r"|[0-OQ-WYZ\\`-~\x18\x1a]|(?=\x1b)|[^\x00-\x7f])"
)
#: Text; then a control sequence as programs write them (what follows CSI), or anything else, or the end. The last
#: alternative is a sequence that the chunk does not hold all of.
TOKENS: Final = re.compile(
    rf"([{PLAIN}]*)(?:\x1b\[([<=>?]?[0-9;:]*[ -/]*[@-~])"
    rf"|(\r\n|[\x00-\x1a\x1c-\x1f\x7f]|[^\x00-\x7f]+|{_CSI}|{_OSC}|{_OTHER_STRING}|{_ESC})"
    r"|(\x1b[\x00-\U0010ffff]*)|\Z)"
)
#: The same with all text passed over.
CONTROLS: Final = re.compile(
    rf"\x1b\[([<=>?]?[0-9;:]*[ -/]*[@-~])|([\x0e\x0f]|{_CSI}|{_OSC}|{_OTHER_STRING}|{_ESC})"
    r"|(\x1b[\x00-\U0010ffff]*)"
)
#: Control characters between ESC and the next are obeyed first; so they may as well stand before it.
LATE: Final = re.compile(rf"\x1b([{_INSIDE}\x7f]+)")
INSIDE: Final = re.compile(f"[{_INSIDE}]")
DELETED: Final = dict.fromkeys([*range(0x18), 0x19, *range(0x1C, 0x20), 0x7F])
#: Where a sequence that is too long to keep ends, by its second character.
ENDS: Final = {
    "[": re.compile(r"[@-~\x18\x1a]|(?=\x1b)|[^\x00-\x7f]"),
    "]": re.compile(r"[\x07\x18\x1a]|(?=\x1b)"),
    "P": re.compile(r"[\x18\x1a]|(?=\x1b)"),
    " ": re.compile(r"[0-~\x18\x1a]|(?=\x1b)|[^\x00-\x7f]"),
}
#: Control characters of eight bits, as UTF-8 has them, are their forms with ESC.
C1: Final = re.compile("[\x80-\x9f]")
ESCAPED: Final = {code: f"\x1b{chr(code - 0x40)}" for code in range(0x80, 0xA0)}


def kind(sequence: str) -> str:
    """Which of ENDS a sequence that is not whole has."""
    second = sequence[1:2]
    if second in ("X", "^", "_"):
        return "P"
    return second if second in ENDS else " "
