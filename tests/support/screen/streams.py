"""Made-up output, from a seed: what programs could print and mostly do not, in any order.

A stream is a list of steps, each a whole sequence, a piece of text or a new size: so that a stream that shows a mistake
can be made smaller step by step (`smaller`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.support.screen.recording import Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.screen.recording import Step

_TEXT = [
    "a", "word ", "longer words here ", "x" * 15, "  ", "日本", "한", "😀", "xe\u0301", "ö", "─│", "A~q`x",
    "x❤️", "\t", "\t\t", "\b", "\b\b\b", "\r", "\n", "\r\n", "\r\n\r\n\r\n", "\x0b", "\x0c", "\x07", "\x00",
]  # fmt: skip
_SGR = [
    "0", "", "1", "2", "3", "4", "5", "7", "8", "9", "21", "22", "23", "24", "25", "27", "28", "29", "31",
    "42", "39", "49", "93", "104", "53", "55", "38;5;3", "38;5;200", "48;5;17", "38;2;1;2;3", "48;2;250;0;9",
    "38:2::9:8:7", "4:3", "4:0", "58;5;9", "59", "58:2::1:2:3", "1;31;44", "0;7", "38;5", "4;58;2;7;7;7",
]  # fmt: skip
_MODES = [
    1, 3, 5, 6, 7, 12, 25, 45, 47, 66, 1000, 1002, 1003, 1004, 1006, 1016, 1047, 1048, 1049, 2004, 2026, 9,
]  # fmt: skip
_ESCAPES = [
    "7", "8", "D", "E", "M", "H", "=", ">", "(0", "(B", ")0", ")B", "*0", "+A", "n", "o", "c",
    "[?6;69l\x1b[r\x1b[0m\x1b]8;;\x07\x1b#8", "(A",
]  # fmt: skip
_STRINGS = [
    "]0;title\x07", "]2;other\x1b\\", "]2;\x07", "]4;3;#aabbcc\x07", "]104;3\x07", "]104\x07",
    "]10;#ffffff\x07", "]110\x07", "]11;rgb:11/22/33\x07", "]8;;http://x/\x07", "]8;;\x07",
    "]8;id=1;http://y/\x1b\\", "P1$r\x1b\\", "_apc\x1b\\", "]133;A\x07", "]1;icon\x07", "]12;#010203\x07",
    "]7;file:///tmp\x07", "]52;c;?\x07",
]  # fmt: skip
_ODD = [
    b"\xff", b"\xc3", b"\xe6\x97", b"\xf0\x9f\x98", b"\x9b1m", b"\xc2\x9b2J", b"\x1b", b"\x1b[", b"\x1b[3",
    b"\x1b]2;half", b"\x1b[1\x0a;31m", b"\x18", b"\x1a", b"\x1b\x1b[1m", b"\x1b[?", b"\x1b[999999999C",
    b"\x1b[0;0H", b"\xed\xa0\x80", b"\xc0\x80", b"\x0e", b"\x0f", b"\xc2\x84",
]  # fmt: skip


def _csi(chance: random.Random) -> bytes:
    small = str(chance.choice(["", 0, 1, 1, 2, 3, 5, 40]))
    final = chance.choice("ABCDEFG`abdefHHHfJJKKKLMPXST@ZIrrrsugb")
    match final:
        case "H" | "f" | "r":
            text = f"{chance.randint(0, 9)};{chance.randint(0, 14)}"
            if final == "r" and chance.random() < 0.4:
                text = ""
        case "J":
            text = chance.choice(["", "0", "1", "2", "3", "?", "?1", "?2"])
        case "K":
            text = chance.choice(["", "0", "1", "2", "?1"])
        case "g":
            text = chance.choice(["", "0", "3"])
        case "s" | "u":
            text = ""
        case _:
            text = small
    return f"\x1b[{text}{final}".encode()


def _mode(chance: random.Random) -> bytes:
    if chance.random() < 0.15:
        return f"\x1b[{chance.choice([4, 20])}{chance.choice('hl')}".encode()
    modes = [str(chance.choice(_MODES)) for _ in range(chance.choice([1, 1, 1, 2]))]
    return f"\x1b[?{';'.join(modes)}{chance.choice('hhl')}".encode()


def _rare(chance: random.Random) -> bytes:
    return chance.choice(
        [
            b"\x1b[!p", b"\x1b[2 q", b"\x1b[5 q", b"\x1b[0 q", b"\x1b[22;0t", b"\x1b[23;0t", b"\x1b[22;2t",
            b"\x1b[23;2t", b"\x1b[>1u", b"\x1b[>5u", b"\x1b[<u", b"\x1b[=3;1u", b"\x1b[>4;2m", b"\x1b[>4m",
            b'\x1b[1"q', b'\x1b[0"q', b"\x1b[c", b"\x1b[6n", b"\x1b[>c", b"\x1b[1 @",
            b"\x1b[1 A",
        ]
    )  # fmt: skip


def _odd(chance: random.Random) -> bytes:
    return chance.choice(_ODD)


_KINDS: list[tuple[float, Callable[[random.Random], bytes]]] = [
    (0.42, lambda chance: chance.choice(_TEXT).encode()),
    (0.22, _csi),
    (0.12, lambda chance: f"\x1b[{chance.choice(_SGR)}m".encode()),
    (0.07, _mode),
    (0.07, lambda chance: f"\x1b{chance.choice(_ESCAPES)}".encode()),
    (0.04, lambda chance: f"\x1b{chance.choice(_STRINGS)}".encode()),
    (0.03, _odd),
    (0.03, _rare),
]


def stream(seed: int, steps: int, *, sizes: bool = False, odd: bool = True) -> list[Step]:
    """So many steps; with changes of size, and with broken sequences, when asked for.

    With changes of size no tab stops are set: terminals do not agree where stops are in columns that are new.
    """
    chance = random.Random(seed)
    kinds = [kind for kind in _KINDS if odd or kind[1] is not _odd]
    weights, makers = zip(*kinds, strict=True)
    made: list[Step] = []
    while len(made) < steps:
        if sizes and chance.random() < 0.04:
            made.append(Size(chance.randint(2, 24), chance.randint(1, 9)))
            continue
        step = chance.choices(makers, weights)[0](chance)
        if not sizes or (step != b"\x1bH" and step[-1:] != b"g"):
            made.append(step)
    return made


def smaller(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    """The same steps without those that the failure does not need; then without the bytes that it does not need."""
    size = max(len(steps) // 2, 1)
    while True:
        at, before = 0, len(steps)
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if fails(fewer):
                steps = fewer
            else:
                at += size
        if size == 1 and len(steps) == before:
            return steps
        size = max(size // 2, 1)
