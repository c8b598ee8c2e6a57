"""Makes the recordings: plays programs at a terminal of this machine and keeps what they print.

`python -m tests.support.screen.record [NAME…]`. A recording is made once and kept: a test reads it, and no newer vim
changes what the test is about. A play is interrupted by changes of size where it yields. With SHOW set, the screens are
printed as well.
"""

from __future__ import annotations

import fcntl
import os
import pty
import random
import select
import signal
import struct
import sys
import tempfile
import termios
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.screen import programs, terminal_tests
from tests.support.screen.oracle import Oracle, Screen
from tests.support.screen.person import ENVIRONMENT, SHELL, Person
from tests.support.screen.recording import Recording, Size

if TYPE_CHECKING:
    from collections.abc import Generator

PATIENCE = 5.0
#: A terminal in which nothing has moved for so long has settled. Good enough for a recording; no test does it.
QUIET = 0.3
SIZES = [Size(80, 24), Size(100, 30), Size(60, 20), Size(132, 40)]
TOOLS = programs.PLAYS | terminal_tests.PLAYS


class LocalPerson(Person):
    """A bash on a pseudo-terminal of this process."""

    def __init__(self, screen: Screen, folder: Path, recording: Recording) -> None:
        super().__init__(screen, folder)
        self._recording = recording
        environment = {**ENVIRONMENT, "HOME": str(folder), "PATH": os.environ["PATH"]}
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            fcntl.ioctl(0, termios.TIOCSWINSZ, _window(screen.columns, screen.rows))
            os.execvpe(SHELL[0], SHELL, environment)

    def close(self) -> None:
        os.close(self._fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def receive(self, patience: float = PATIENCE) -> bytes:
        readable, _, _ = select.select([self._fd], [], [], patience)
        assert readable, f"nothing came for {patience} s"
        data = os.read(self._fd, 65536)
        self._recording.output(data)
        return data

    def resize(self, columns: int, rows: int) -> None:
        self._recording.resize(columns, rows)
        self.screen.resize(columns, rows)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, _window(columns, rows))

    def settle(self) -> None:
        while select.select([self._fd], [], [], QUIET)[0]:
            self.show(self.receive())


def _window(columns: int, rows: int) -> bytes:
    return struct.pack("HHHH", rows, columns, 0, 0)


def record(oracle: Oracle, name: str) -> Recording:
    size = SIZES[0]
    recording = Recording(name, size)
    sizes = random.Random(name)
    with (
        tempfile.TemporaryDirectory(prefix="seat-") as folder,
        oracle.screen(size.columns, size.rows) as screen,
    ):
        programs.prepare(Path(folder))
        person = LocalPerson(screen, Path(folder), recording)
        try:
            play: Generator[None] = TOOLS[name](person)
            for number, _ in enumerate(play):
                if os.environ.get("SHOW"):
                    _tell("\n".join([*person.screen.text(), "=" * 80]))
                if number % 3 == 2 and name not in terminal_tests.PLAYS:
                    person.settle()
                    size = sizes.choice([one for one in SIZES if one != size])
                    person.resize(size.columns, size.rows)
                    person.settle()
        finally:
            person.close()
    return recording


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")


def main(names: list[str]) -> None:
    with Oracle() as oracle:
        for name in names or TOOLS:
            recording = record(oracle, name)
            path = recording.save()
            size = sum(len(step) for step in recording.steps if isinstance(step, bytes))
            _tell(f"{name}: {size} bytes, {len(recording.steps)} steps, {path.stat().st_size} bytes kept")


if __name__ == "__main__":
    main(sys.argv[1:])
