"""Terminals that watch, in one process of Node: `Oracle` is the process, `Screen` one terminal in it.

A screen takes bytes and sizes, and says what a person would see, what state the terminal is in, and in what it differs
from another one. Every call returns when xterm.js has parsed all that was written.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.support.screen.install import node, packages

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import TracebackType
    from typing import Self

PROGRAM = Path(__file__).resolve().parent / "oracle.mjs"

#: As many lines as guestd's own model keeps.
SCROLLBACK = 1000


class Oracle:
    """The process. One serves any number of screens, so that its start (50 ms) is paid once."""

    def __init__(self) -> None:
        self._names = itertools.count(1)
        self._process = subprocess.Popen(
            [node(), str(PROGRAM), str(packages())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, and whoever asked it last was told
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    @contextlib.contextmanager
    def screen(self, columns: int, rows: int, scrollback: int = SCROLLBACK) -> Generator[Screen]:
        screen = Screen(self, f"t{next(self._names)}", columns, rows, scrollback)
        try:
            yield screen
        finally:
            screen.dispose()

    def ask(self, op: str, **fields: object) -> Any:  # noqa: ANN401  JSON, of each operation its own
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the oracle ended with {self._process.wait()}: its last words are on stderr"
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]


class Screen:
    """One terminal of xterm.js."""

    def __init__(
        self, oracle: Oracle, name: str, columns: int, rows: int, scrollback: int = SCROLLBACK
    ) -> None:
        self.columns, self.rows = columns, rows
        self._oracle, self._name = oracle, name
        self._ask("create", columns=columns, rows=rows, scrollback=scrollback)

    def dispose(self) -> None:
        self._ask("dispose")

    def feed(self, data: bytes) -> None:
        self._ask("write", data=base64.b64encode(data).decode())

    def resize(self, columns: int, rows: int) -> None:
        self._ask("resize", columns=columns, rows=rows)
        self.columns, self.rows = columns, rows

    def replies(self) -> bytes:
        """What the terminal has answered since this was last asked (a position, what it is): typed, as it were."""
        return cast("str", self._ask("replies")).encode()

    def text(self) -> list[str]:
        """The rows of the screen, without colours."""
        return self._ask("text")

    def scrollback(self) -> list[tuple[str, bool]]:
        """What scrolled out of the main screen: each row, and whether it goes on with the row before it."""
        return [(text, wrapped) for text, wrapped in self._ask("scrollback")]

    def logical(self) -> tuple[list[str], tuple[int, int]]:
        """The main screen with its scrollback as lines that no width has broken, and where in them the cursor is."""
        found = self._ask("logical")
        return found["lines"], (found["cursor"]["line"], found["cursor"]["column"])

    def state(self) -> dict[str, Any]:
        """Cursor, modes, margins, tabs, character sets, saved cursors, title, colours: all that is no cell."""
        return self._ask("state")

    def cells(self, buffer: str = "active") -> list[list[list[Any]]]:
        """Each cell of the screen (or of `buffer` "normal", "alternate"): [characters, columns, looks]."""
        return self._ask("cells", buffer=buffer)

    def differences(
        self, other: Screen, *, scrollback: int = SCROLLBACK, ignore: Sequence[str] = ()
    ) -> list[str]:
        """In what `other` is not what this one is: cells of both screens, `scrollback` lines, and the state.

        `ignore` names parts of the state ("saved.normal"). Empty when nobody could tell the two apart.
        """
        return self._ask("differences", other=other._name, scrollback=scrollback, ignore=list(ignore))

    def _ask(self, op: str, **fields: object) -> Any:  # noqa: ANN401
        return self._oracle.ask(op, terminal=self._name, **fields)
