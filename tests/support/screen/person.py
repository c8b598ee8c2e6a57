"""Somebody in front of a terminal: types, resizes the window, and looks at the screen until it shows something.

What differs is the way to the program: `Person` is told by a subclass how to send bytes and how to wait for more. Its
screen is the oracle's, and answers what programs ask a terminal, as any would.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.screen.oracle import Screen

#: bash's prompt at every person.
PROMPT = "seat$ "

#: What a shell and its programs find. Their home is a folder of the test's own: no file of the user's says otherwise.
ENVIRONMENT = {
    "TERM": "xterm-256color",
    "COLORTERM": "truecolor",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PS1": PROMPT,
    "LESS": "",
    "HISTFILE": "",
    "EDITOR": "nano",
    "SHELL": "/bin/bash",
}
SHELL = ["bash", "--norc", "--noprofile", "-i"]


class Person(ABC):
    def __init__(self, screen: Screen, folder: Path) -> None:
        self.screen = screen
        self.folder = folder

    @abstractmethod
    def send(self, data: bytes) -> None:
        """To the program."""

    @abstractmethod
    def receive(self) -> bytes:
        """What the program prints next; waits for it. AssertionError when nothing comes."""

    @abstractmethod
    def resize(self, columns: int, rows: int) -> None:
        """The window, and so the screen and the program's terminal."""

    def show(self, data: bytes) -> None:
        self.screen.feed(data)
        if replies := self.screen.replies():
            self.send(replies)

    def type(self, keys: str) -> None:
        self.send(keys.encode())

    def wait(self, *patterns: str, gone: str | None = None) -> None:
        """Until the screen shows each of the patterns (regular expressions over its rows), and `gone` no more."""
        while not self.shows(*patterns, gone=gone):
            try:
                data = self.receive()
            except AssertionError as error:
                looks = "\n".join(self.screen.text())
                raise AssertionError(
                    f"{error}: {patterns} (without {gone!r}) never came; there is\n{looks}"
                ) from error
            self.show(data)

    def shows(self, *patterns: str, gone: str | None = None) -> bool:
        text = "\n".join(self.screen.text())
        return all(re.search(one, text, re.MULTILINE) for one in patterns) and not (
            gone and re.search(gone, text)
        )

    def run(self, line: str, *patterns: str, gone: str | None = None) -> None:
        """Types a line and waits for what it makes appear."""
        self.type(line + "\r")
        self.wait(*patterns, gone=gone)

    def prompt(self) -> None:
        """Until the shell waits for a line: its prompt is the last thing on the screen."""
        self.wait(rf"{re.escape(PROMPT.strip())}\s*\Z")
