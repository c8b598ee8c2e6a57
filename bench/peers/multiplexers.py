"""dtach, GNU screen and tmux: what people use today so that a shell outlives its connection.

Each is used through its own client, because it has no other door: the client runs on a terminal of the bench, and what
counts is what that terminal is sent. Each server runs in the foreground, under a private name and without anybody's
config, so that it can be ended by its pid.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from bench.programs import Program, accepts
from bench.terminals import TERM, Terminal

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from bench.lab import Lab

_PATH = "/usr/local/bin:/usr/bin:/bin"


class Multiplexer(ABC):
    """One of them. It has no state: each `show` is a server and a client of its own."""

    name: str

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        found = shutil.which(self.name, path=_PATH)
        return None if found else "not installed (--install-peers does it, with apt-get, as root)"

    @contextmanager
    def show(self, argv: Sequence[str]) -> Generator[Terminal]:
        """The terminal of a client that shows a session with that program. Both are ended with the context."""
        with ExitStack() as stack:
            home = self._lab.fresh_directory(self.name)
            environment = {
                **{
                    name: value
                    for name, value in self._lab.environment.items()
                    if name not in {"TMUX", "STY"}
                },
                "TERM": TERM,
                # Where screen keeps its sockets; it insists on a directory that nobody else can enter.
                "SCREENDIR": home,
            }
            client = self._serve(stack, home, environment, list(argv))
            yield stack.enter_context(Terminal(client, env=environment))

    @abstractmethod
    def _serve(self, stack: ExitStack, home: str, environment: dict[str, str], argv: list[str]) -> list[str]:
        """Start the server, to be ended by `stack`; what the client is called with."""

    def _start(
        self, stack: ExitStack, home: str, environment: dict[str, str], *arguments: str
    ) -> tuple[str, Program]:
        binary = shutil.which(self.name, path=_PATH) or self.name
        program = Program([binary, *arguments], log=os.path.join(home, "log"), env=environment)
        stack.callback(program.stop)
        return binary, program


class Dtach(Multiplexer):
    """Passes bytes on and looks at none of them."""

    name = "dtach"

    def _serve(self, stack: ExitStack, home: str, environment: dict[str, str], argv: list[str]) -> list[str]:
        path = os.path.join(home, "s")
        # No detach key, no suspend key, nothing drawn again: every byte goes straight through.
        plain = ("-E", "-z", "-r", "none")
        binary, program = self._start(stack, home, environment, "-N", path, *plain, *argv)
        program.wait_until(accepts(path))
        return [binary, "-a", path, *plain]


class Screen(Multiplexer):
    """Keeps a model of the screen, and draws what has changed."""

    name = "screen"

    def _serve(self, stack: ExitStack, home: str, environment: dict[str, str], argv: list[str]) -> list[str]:
        config = os.path.join(home, "config")
        with open(config, "w", encoding="ascii") as settings:
            # What it would otherwise say on the screen itself, and keep there for seconds.
            settings.write("startup_message off\ndeflogin off\n")
        # Its sockets are the only thing in their directory that it does not stumble over.
        sockets = os.path.join(home, "sockets")
        os.mkdir(sockets, 0o700)
        environment["SCREENDIR"] = sockets
        binary, program = self._start(
            stack, home, environment, "-D", "-m", "-S", "bench", "-c", config, *argv
        )
        program.wait_until(lambda: bool(os.listdir(sockets)))
        return [binary, "-c", config, "-x", "bench"]


class Tmux(Multiplexer):
    """The same idea, with a status line, which is off here."""

    name = "tmux"

    def _serve(self, stack: ExitStack, home: str, environment: dict[str, str], argv: list[str]) -> list[str]:
        path, config = os.path.join(home, "s"), os.path.join(home, "config")
        with open(config, "w", encoding="ascii") as settings:
            settings.write("set -g status off\nset -s escape-time 0\n")
        binary, program = self._start(stack, home, environment, "-D", "-S", path, "-f", config)
        program.wait_until(accepts(path))
        return [binary, "-S", path, "new-session", *argv]


def every_multiplexer(lab: Lab) -> list[Multiplexer]:
    """All that are known, installed or not."""
    return [Dtach(lab), Screen(lab), Tmux(lab)]
