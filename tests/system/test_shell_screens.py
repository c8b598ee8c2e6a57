"""Whoever comes back to a shell sees what they would see had they never left: real programs, cell by cell.

Somebody watches a shell all along, with xterm.js. Somebody else sits at it, plays a program, and loses the connection
again and again: between two keys, in the middle of a drawing, and comes back with a window of the same or of another
size and nothing on it, or another program's screen. From the restore on, the two terminals must not be told apart.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import Kind
from tests.support.commands import public_folder, serving_commands
from tests.support.peer import STREAMS, Call, Peer
from tests.support.screen import programs
from tests.support.screen.oracle import SCROLLBACK, Oracle, Screen
from tests.support.screen.person import ENVIRONMENT, SHELL, Person
from tests.support.screen.trial import DEEP_DIRT, DIRT, MORE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import Server

TERMINAL, PICTURE = STREAMS["terminal"], STREAMS["screen"]
SIZES = [(80, 24), (100, 30), (64, 20), (132, 43)]
#: How often somebody leaves where a program waits for a key, and with how many of a hundred frames otherwise.
AT_REST, IN_BETWEEN = 0.5, 0.04


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as process:
        yield process


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running


class View:
    """One attachment: the terminal's bytes from an offset on, taken as far as is wanted."""

    def __init__(self, server: Server, **fields: Any) -> None:  # noqa: ANN401  whatever is asked of the shell
        self._peer = Peer(server.address)
        self.call: Call = self._peer.open("shell", **fields)
        self.call.accepted()
        #: The next byte to be taken.
        self.at = 0
        self._begin = 0

    def close(self) -> None:
        self._peer.close()

    def picture(self) -> tuple[dict[str, Any], bytes] | None:
        """The restore with which it begins, and what was said about it. None: the shell had shown nothing yet."""
        while not self.call.events or self.call.events[-1]["event"] != "restore":
            if self.call.output[TERMINAL]:
                return None
            self.call.step()
        said = self.call.events[-1]
        while self.call.picture_left:
            self.call.step()
        self.at = self._begin = said["offset"]
        return said, bytes(self.call.output[PICTURE])

    @property
    def end(self) -> int:
        """Up to where bytes are here."""
        return self._begin + len(self.call.output[TERMINAL])

    def more(self) -> None:
        """Wait for bytes that were not there yet."""
        end = self.end
        while self.end == end:
            try:
                got = self.call.step()
            except TimeoutError as error:
                raise AssertionError("nothing more came") from error
            assert got.kind is not Kind.END, f"the shell ended: {got.fields}"

    def take(self, upto: int | None = None) -> bytes:
        """All that is here and was not taken yet, or all up to an offset."""
        while upto is not None and self.end < upto:
            self.more()
        begun, self.at = self.at, self.end if upto is None else upto
        return bytes(self.call.output[TERMINAL][begun - self._begin : self.at - self._begin])


class Visitor(Person):
    """Somebody at a shell who is not there all the time, beside a terminal that is."""

    def __init__(self, oracle: Oracle, server: Server, folder: Path, chance: random.Random) -> None:
        self._oracle, self._server, self._chance = oracle, server, chance
        self._fields: dict[str, Any] = {
            "argv": SHELL,
            "env": {**ENVIRONMENT, "HOME": str(folder)},
            "cwd": str(folder),
            "client": "the visitor",
        }
        self.size = SIZES[0]
        self.restores = 0
        self._screens = 0
        self._view = View(server, from_="start", size=_size(self.size), **self._fields)
        self._fields["id"] = self._view.call.accepted()["id"]
        #: All that was typed: what had not arrived when a connection was lost is sent again.
        self._typed = bytearray()
        self.watcher = self._new_screen(SCROLLBACK)
        self._watching = View(server, role="watcher", from_="start", **self._fields)
        super().__init__(self._new_screen(SCROLLBACK), folder)

    def _new_screen(self, scrollback: int) -> Screen:
        self._screens += 1
        return Screen(self._oracle, f"{self._fields['id']}-{self._screens}", *self.size, scrollback)

    def close(self) -> None:
        self._view.close()
        self._watching.close()
        self.screen.dispose()
        self.watcher.dispose()

    def send(self, data: bytes) -> None:
        self._view.call.data(len(self._typed), data)
        self._typed += data

    def receive(self) -> bytes:
        if self._chance.random() < IN_BETWEEN:
            self.come_back(self.size)
            return b""
        if self._view.at == self._view.end:
            self._view.more()
        return self._view.take()

    def resize(self, columns: int, rows: int) -> None:
        self.come_back((columns, rows))

    def come_back(self, size: tuple[int, int]) -> None:
        """Lose the connection, and attach again with a terminal that has seen something else."""
        self._view.close()
        self.screen.dispose()
        self.size = size
        self.screen = self._new_screen(SCROLLBACK + MORE)
        self.screen.feed(self._chance.choice([b"", DIRT, DEEP_DIRT]))
        self.screen.replies()
        self._view = View(self._server, size=_size(size), **self._fields)
        arrived = self._view.call.accepted()["input"]["offset"]
        self._view.call.data(arrived, bytes(self._typed[arrived:]))
        found = self._view.picture()
        if found is None:
            self.screen.dispose()
            self.screen = self._new_screen(SCROLLBACK)
            return
        said, picture = found
        assert (said["columns"], said["rows"], said["exact"]) == (*size, True)
        self.screen.feed(picture)
        assert self.screen.replies() == b"", "a restore made the terminal answer"
        self.watcher.feed(self._watching.take(said["offset"]))
        self.watcher.resize(*size)
        self.restores += 1
        self.compare(f"restored at {said['offset']}")

    def compare(self, when: str) -> None:
        """Both terminals, at the same byte."""
        if self._view.at > self._watching.at:
            self.watcher.feed(self._watching.take(self._view.at))
        self.watcher.replies()
        found = self.watcher.differences(self.screen)
        assert found == [], f"{when}, {self.size}:\n" + "\n".join([*found, *self.watcher.text()])

    def hang_up(self) -> None:
        """The end of the shell, by its own `exit`."""
        self.type("exit\r")
        assert self._view.call.end()["outcome"] == "exited"
        with Peer(self._server.address) as peer:
            # What a program has left, it was told to end, and may be about to.
            peer.ask("kill", id=self._fields["id"])


def _size(size: tuple[int, int]) -> dict[str, int]:
    return {"columns": size[0], "rows": size[1]}


@pytest.mark.parametrize("name", programs.PLAYS)
def test_a_program_is_as_it_was_left(oracle: Oracle, server: Server, name: str) -> None:
    chance = random.Random(name)
    with public_folder() as folder:
        programs.prepare(folder)
        visitor = Visitor(oracle, server, folder, chance)
        try:
            for _ in programs.PLAYS[name](visitor):
                visitor.compare("where the program waits")
                if visitor.restores == 0 or chance.random() < AT_REST:
                    visitor.come_back(chance.choice([visitor.size, chance.choice(SIZES)]))
            visitor.come_back(visitor.size)
            visitor.hang_up()
        finally:
            visitor.close()
    assert visitor.restores >= 2
