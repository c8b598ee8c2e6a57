"""Output as programs might print it, and what a model of a terminal shows of it, in words that a test can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from guestd.terminal.model import TerminalModel

if TYPE_CHECKING:
    from guestd.terminal.pens import Look

_TEXTS = [
    "word", "x" * 30, "é日本👍", "e\u0301", "👩\u200d🚀", "\r\n", "\n", "\r", "\b", "\t", "line of text\r\n" * 3,
    "\x0e", "\x0f", "\x7f",
    "".join(map(chr, range(32, 127))), "\u0085", "\U00040000", "─│",
]  # fmt: skip
_CSI = [
    "31m", "0m", "44;1m", "38;2;1;2;3m", "48:5:200m", "4:3m", "58;5;9m", "7m", "H", "2;3H", "J", "1J", "2J",
    "3J", "K", "1K", "2K",
    "3L", "2M", "4P", "4@", "3X", "5b", "2;4r", "r", "?6h", "?6l", "?7l", "?7h", "4h", "4l", "s", "u",
    "?1049h", "?1049l", "?47h",
    "?47l", "?1048h", "?1048l", "g", "3g", "22t", "23t", "22;2t", "23;1t", "?1000h", "?1003l", "?1006h",
    "?2004h", "?25l", "?2026h",
    "3 q", ">1u", "<u", "=5;1u", ">4;2m", "!p", "S", "2T", "3C", "3D", "A", "B", "5G", "d", "I", "Z", "E",
    "F", "3e", "`", '1"q',
    "?K", "?J", " @", "2 A", "'}", "'~", "?45h", "20h", "?66h", "?1007h", "?5h", "c", "6n", "1\n;3\x08C",
    "9999999999C",
]  # fmt: skip
_ESC = ["7", "8", "M", "D", "E", "H", "c", "(0", "(B", ")0", "n", "N", "O", "=", ">", "#8", "\\", "e", "%G"]
_STRINGS = [
    "]0;title\x07", "]2;other\x1b\\", "]1;icon\x07", "]8;;http://x/\x07", "]8;;\x07",
    "]8;id=a;http://y/;z\x1b\\", "]4;3;rgb:00/11/22\x07",
    "]11;#123456\x07", "]104\x07", "]111\x07", "]52;c;aGk=\x07", "]133;A\x07", "P1$r0m\x1b\\", "_apc\x1b\\",
    "^pm\x1b\\", "Xsos\x1b\\",
]  # fmt: skip
_BROKEN = [
    b"\x1b", b"\x1b[", b"\x1b[3", b"\x1b[?", b"\x1b]2;half", b"\x1bPhalf", b"\x1b(", b"\xe6\x97",
    b"\xf0\x9f\x91", b"\xff", b"\xc0\x80",
    b"\x18", b"\x1a", b"\x9b1m", b"\xc2\x9b31m", b"\x00",
]  # fmt: skip

#: One thing that a program might print.
FRAGMENTS = [
    *(text.encode() for text in _TEXTS),
    *(f"\x1b[{csi}".encode() for csi in _CSI),
    *(f"\x1b{rest}".encode() for rest in _ESC + _STRINGS),
    *_BROKEN,
]


def outputs(most: int = 60) -> st.SearchStrategy[bytes]:
    """Things that programs print, in any order."""
    return st.lists(st.sampled_from(FRAGMENTS), max_size=most).map(b"".join)


def fed(data: str | bytes, columns: int = 20, rows: int = 4, history: int = 20) -> TerminalModel:
    model = TerminalModel(columns, rows, history=history)
    model.feed(data.encode() if isinstance(data, str) else data)
    return model


def text(rows: list[tuple[list[str], list[Look], bool]]) -> list[str]:
    """Rows as text: a wide character once, nothing after the last that is not blank."""
    return ["".join(cell for cell in cells if cell != "\udfff").rstrip(" ") for cells, _, _ in rows]


def screen(model: TerminalModel) -> list[str]:
    """The rows that are shown."""
    state = model.state()
    return text(state["other"] if state["other"] is not None else state["main"])


def history(model: TerminalModel) -> list[str]:
    return text(model.state()["history"])


def cursor(model: TerminalModel) -> tuple[int, int]:
    return model.state()["cursor"]


def _unattached(rows: list[Any]) -> list[Any]:
    return [(*row[:2], at > 0 and row[2]) for at, row in enumerate(rows)]


def differences(wanted: dict[str, Any], found: dict[str, Any], *, dirty: bool = False) -> dict[str, Any]:
    """In what a restored terminal is not as it should be.

    It may have more history: what it showed before. A `dirty` one keeps its own titles and colours where no program has
    set any, and modes that are the person's own.
    """
    skipped = {"titles", "loose"} if dirty else set[str]()
    skipped |= {name for name in ("title", "icon", "colours") if wanted[name] is None}
    other: dict[str, Any] = {}
    for name in wanted.keys() - skipped:
        want, got = wanted[name], found[name]
        if name == "history":
            got = got[len(got) - len(want) :]
        if name == "history" or (name == "main" and not wanted["history"]):
            # Whether the oldest row that is kept continues another cannot be told.
            want, got = _unattached(want), _unattached(got)
        if want != got:
            other[name] = want, got
    return other
