"""A restore on trial: a terminal that watched all along against terminals that came later.

`Trial` feeds the same bytes and sizes to three kinds of terminals: the watcher, guestd's model, and each screen that
the model has restored so far. `late` brings in another one, and `verdict` says in what any of them can be told from the
watcher. Those that came earlier stay: what their restore left out (margins, a saved cursor, a character half read) may
show only much later.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from guestd.terminal.model import TerminalModel
from tests.support.screen.oracle import SCROLLBACK
from tests.support.screen.recording import Size

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from tests.support.screen.oracle import Oracle, Screen
    from tests.support.screen.recording import Step

#: What a viewer's terminal may be full of before it is attached: text in colours, a program's modes and margins. No
#: title and no palette: a restore leaves those to the person as long as no program has set them.
DIRT = (
    "\x1b[44;93;1;3;4mold\r\n\x1b[7mtext 日本\r\n\x1b(0qqq\x0e\x1b)0\x1b7\x1b[2;4r\x1b[?6h\x1b[?1h\x1b=\x1b[4h\x1b[?7l"
    "\x1b[?2004h\x1b[?1003h\x1b[?1006h\x1b[?1004h\x1b[?25l\x1b[4 q\x1b[3g\x1b[20h\x1b[?45h\x1b[>5u\x1b[>4;2m"
    "\x1b]8;;http://a/\x07link"
).encode()
#: The same, and in the middle of a full-screen program that was left with a sequence half read.
DEEP_DIRT = DIRT + b"\x1b[?1049h\x1b[5;5Hfull screen\x1b7\x1b[>1u\x1b[3;3r\x1b[38;5;1"
#: Lines that a viewer's terminal keeps beyond those of the model: a restore scrolls away what it finds.
MORE = 200


class Trial:
    def __init__(self, oracle: Oracle, watcher: Screen, history: int) -> None:
        self.watcher = watcher
        self.model = TerminalModel(watcher.columns, watcher.rows, history=history)
        self.restored: dict[str, Screen] = {}
        self._oracle = oracle
        self._history = history
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        self._stack.close()

    def play(self, steps: Iterable[Step]) -> None:
        # The model takes each piece for itself. To the screens it makes no difference, and each would be a round trip.
        unseen = b""
        for step in [*steps, b""]:
            if isinstance(step, bytes):
                self.model.feed(step)
                unseen += step
                if step:
                    continue
            for screen in (self.watcher, *self.restored.values()):
                screen.feed(unseen)
            unseen = b""
            if isinstance(step, Size):
                self._resize(step)

    def _resize(self, size: Size) -> None:
        # A terminal that becomes higher takes lines back from its scrollback. One that was restored may have some where
        # the watcher has none, those that its person had before; then the two show the same text at different heights.
        if self.watcher.state()["scrollback"] < 3 * max(size.rows, self.watcher.rows):
            self.restored.clear()
        self.model.resize(size.columns, size.rows)
        for screen in (self.watcher, *self.restored.values()):
            screen.resize(size.columns, size.rows)

    def late(self, name: str, dirt: bytes = b"") -> None:
        """A terminal that comes now, with whatever was on it, and is restored."""
        screen = self._stack.enter_context(
            self._oracle.screen(self.watcher.columns, self.watcher.rows, self._history + MORE)
        )
        screen.feed(dirt)
        screen.replies()
        screen.feed(self.model.restore())
        replies = screen.replies()
        assert not replies, f"{name}: the restore made the terminal answer {replies!r}"
        self.restored[name] = screen

    def verdict(self, *, scrollback: int | None = None, ignore: Iterable[str] = ()) -> list[str]:
        return [
            f"{name}: {difference}"
            for name, screen in self.restored.items()
            for difference in self.watcher.differences(
                screen,
                scrollback=self._history if scrollback is None else scrollback,
                ignore=list(ignore),
            )
        ]


@contextlib.contextmanager
def trial(oracle: Oracle, columns: int, rows: int, history: int = SCROLLBACK) -> Generator[Trial]:
    with oracle.screen(columns, rows, history) as watcher:
        found = Trial(oracle, watcher, history)
        try:
            yield found
        finally:
            found.close()


def pieces(steps: Iterable[Step], cuts: Iterable[int]) -> Generator[list[Step]]:
    """The steps, cut before the bytes of these numbers: one list more than there are cuts."""
    remaining = sorted(set(cuts))
    piece: list[Step] = []
    at = 0
    for step in steps:
        rest = step
        while isinstance(rest, bytes) and remaining and remaining[0] <= at + len(rest):
            split = remaining.pop(0) - at
            piece.append(rest[:split])
            yield piece
            piece, rest, at = [], rest[split:], at + split
        piece.append(rest)
        at += len(rest) if isinstance(rest, bytes) else 0
    yield piece
