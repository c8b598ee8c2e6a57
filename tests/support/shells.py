"""A shell over a `Peer`, as whoever sits at it sees it: what came, what was typed, and what EVENTs said.

`Seat` keeps the offsets of what is typed, and reads until something is there: text of the terminal, an event, the end.
What a program says of itself comes as lines of the terminal, so no test polls or sleeps.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from tests.support.peer import Call, Peer

KIB = 1024
MIB = 1024 * KIB
DIALECTS = ("native", "websocket")
TERMINAL, SCREEN = 3, 4
#: How far a program may run ahead of whoever holds it.
LEAD = 128 * KIB
CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = b"\x03", b"\x04", b"\x1a", b"\x1c"
PROMPT = b"ready> "
#: bash, and nothing of the machine's or the user's in it.
BASH = ["bash", "--norc", "--noprofile", "--noediting"]
#: A terminal in raw mode, and everything written as it is; Ctrl+C and its like stay signals with `isig`.
RAW = "stty raw -echo; "
RAW_BUT_SIGNALS = "stty raw -echo isig; "


def python(text: str, *words: str) -> list[str]:
    """A program, as argv."""
    return [sys.executable, "-I", "-S", "-c", text, *words]


class Seat:
    """One channel on a shell."""

    def __init__(self, peer: Peer, op: str = "shell", /, **fields: Any) -> None:  # noqa: ANN401  whatever a test asks for
        self.call: Call = peer.open(op, **fields)
        self.typed = 0
        self._read_to = 0
        self._heard = 0

    # ------------------------------------------------------------------------------------------------ reading

    def accepted(self) -> dict[str, Any]:
        """ACCEPT; typing goes on from where it says."""
        known = self.call.accepted()
        if not self.typed:
            self.typed = known["input"]["offset"]
        return known

    @property
    def id(self) -> str:
        return str(self.accepted()["id"])

    @property
    def shown(self) -> bytes:
        """All that came of the terminal."""
        return bytes(self.call.output[TERMINAL])

    @property
    def picture(self) -> bytes:
        return bytes(self.call.output[SCREEN])

    def read_until(self, text: bytes, *, credit: bool = True) -> bytes:
        """What came up to and with `text`, from behind what the last call returned."""
        output = self.call.output[TERMINAL]
        searched = self._read_to
        while (at := output.find(text, max(self._read_to, searched - len(text)))) < 0:
            searched = len(output)
            got = self.call.step(credit=credit)
            assert got.kind is not Kind.END, f"it ended before {text!r}, after {self.rest!r}: {got.fields}"
        begun, self._read_to = self._read_to, at + len(text)
        return bytes(output[begun : self._read_to])

    def read_line(self) -> str:
        """The next line, without its end."""
        return self.read_until(b"\n").rstrip(b"\r\n").decode()

    def read_more(self, size: int, *, credit: bool = True) -> bytes:
        """The next so many bytes."""
        begun = self._read_to
        while len(self.call.output[TERMINAL]) < begun + size:
            got = self.call.step(credit=credit)
            assert got.kind is not Kind.END, f"it ended after {self.rest!r}: {got.fields}"
        self._read_to += size
        return bytes(self.call.output[TERMINAL][begun : self._read_to])

    @property
    def rest(self) -> bytes:
        """What came and was not asked for yet."""
        return bytes(self.call.output[TERMINAL][self._read_to :])

    def forget(self) -> None:
        """What has come until now is not asked for."""
        self._read_to = len(self.call.output[TERMINAL])

    def event(self, name: str, *, credit: bool = True) -> dict[str, Any]:
        """The next event of that name, from behind the one that the last call returned."""
        while True:
            while self._heard < len(self.call.events):
                event = self.call.events[self._heard]
                self._heard += 1
                if event["event"] == name:
                    return event
            got = self.call.step(credit=credit)
            assert got.kind is not Kind.END, f"it ended without {name!r}: {got.fields}"

    def end(self) -> dict[str, Any]:
        return self.call.end()

    # ------------------------------------------------------------------------------------------------- typing

    def type(self, data: bytes | str) -> None:
        """As bytes, at once. The caller sees to the credit; the first 256 KiB need none."""
        self.accepted()
        data = data.encode() if isinstance(data, str) else data
        self.call.data(self.typed, data)
        self.typed += len(data)

    def line(self, text: str) -> None:
        self.type(text + "\r")

    def run(self, command: str) -> str:
        """What a command prints at the prompt of `bash()`, without its echo and its last line end."""
        self.line(command)
        self.read_until(b"\n")
        said = self.read_until(PROMPT)
        return said.removesuffix(PROMPT).replace(b"\r\n", b"\n").removesuffix(b"\n").decode()

    def resize(self, columns: int, rows: int, width: int = 0, height: int = 0) -> None:
        self.call.event(event="resize", columns=columns, rows=rows, width=width, height=height)

    def ask_role(self, role: str) -> None:
        self.call.event(event="role", role=role)


def bash(peer: Peer, **fields: Any) -> Seat:  # noqa: ANN401
    """An interactive bash that stands at its prompt."""
    fields = {"argv": BASH, "env": {"PS1": PROMPT.decode(), "HISTFILE": ""}, "from_": "start", **fields}
    seat = Seat(peer, **fields)
    seat.accepted()
    seat.read_until(PROMPT)
    return seat


def row_of(peer: Peer, job_id: str) -> dict[str, Any]:
    """What `ps` says of it."""
    return next(row for row in peer.ask("ps")["jobs"] if row["id"] == job_id)


def until_row(peer: Peer, job_id: str, **wanted: object) -> dict[str, Any]:
    """Its row in `ps`, as soon as these fields are so. Each look is a round trip through guestd's loop."""
    row: dict[str, Any] = {}
    for _ in range(20_000):
        row = row_of(peer, job_id)
        if all(row[name] == value for name, value in wanted.items()):
            return row
    raise AssertionError(f"{wanted} never came: {row}")


def numbers_in(text: bytes) -> list[int]:
    return [int(word) for word in re.findall(rb"\d+", text)]
