"""A terminal with a program in it, for tests: what a person sees, types, and finds when the program is gone.

The program's session has the terminal as its controlling one, as in a window of one's own. What it prints is read
whenever the test waits for something, and kept.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Far above what anything takes: a hang is to become a failure that shows what was seen.
PATIENCE = 30.0
_ECHO_LINE_SIGNALS = termios.ECHO | termios.ICANON | termios.ISIG


class Tty:
    """See the module. Used as a context: at its end the program and the terminal are gone."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        columns: int = 80,
        rows: int = 24,
        patience: float = PATIENCE,
    ) -> None:
        self.patience = patience
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        self.at_rest = termios.tcgetattr(self.slave)
        #: All that came out, and how much of it the test has looked at.
        self.seen = b""
        self._looked = 0
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv], env=env, stdin=self.slave, stdout=self.slave, stderr=self.slave
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            children = [os.pidfd_open(pid) for pid in self.children]
            self.process.kill()
            self.process.wait()
            for each in children:
                # Who helps up a terminal whose program was killed is gone when it has.
                assert select.select([each], [], [], self.patience)[0], "a child of it stays"
                os.close(each)
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)

    @property
    def children(self) -> list[int]:
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]

    # -- the person --

    def type(self, keys: bytes | str) -> None:
        """As fast as they are taken; what is shown meanwhile is read."""
        rest = keys.encode() if isinstance(keys, str) else keys
        while rest:
            readable, writable, _ = select.select([self.master], [self.master], [], self.patience)
            if readable:
                self._read()
            elif writable:
                rest = rest[os.write(self.master, rest[:1024]) :]
            else:
                raise AssertionError(f"{len(rest)} keys are not taken; last: {self.rest_of_it[-2000:]!r}")

    def resize(self, columns: int, rows: int, width: int = 0, height: int = 0) -> None:
        """The kernel says so to the program, by SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, width, height))

    def hang_up(self) -> None:
        """The window is closed."""
        os.close(self.slave)
        os.close(self.master)
        self.master = self.slave = -1

    # -- what is to be seen --

    def wait_for(self, wanted: str | bytes) -> re.Match[bytes]:
        """Wait until a pattern has come out, behind what was waited for before."""
        pattern = re.compile(wanted.encode() if isinstance(wanted, str) else wanted, re.DOTALL)
        while (found := pattern.search(self.seen, self._looked)) is None:
            if not self._read():
                raise AssertionError(
                    f"it ended before {pattern.pattern!r} came; last: {self.rest_of_it[-2000:]!r}"
                )
        self._looked = found.end()
        return found

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """For what has no sound: the state of the terminal. Looks whenever something came, and now and then."""
        deadline = time.monotonic() + self.patience
        while not condition():
            assert time.monotonic() < deadline, f"it never came to be; last: {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], 0.01)[0]:
                self._read()

    def end(self) -> int:
        """Read until the program has ended, and return its exit status."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready = select.select([self.master, pidfd], [], [], self.patience)[0]
                assert ready, f"it goes on; last: {self.seen[-2000:]!r}"
                if self.master in ready:
                    self._read()
                else:
                    return self.process.wait(self.patience)
        finally:
            os.close(pidfd)

    @property
    def rest_of_it(self) -> bytes:
        """What came behind that which was waited for last."""
        return self.seen[self._looked :]

    @property
    def raw(self) -> bool:
        """Each key goes to the program as it is typed."""
        return not termios.tcgetattr(self.slave)[3] & _ECHO_LINE_SIGNALS

    @property
    def is_as_it_was(self) -> bool:
        return termios.tcgetattr(self.slave) == self.at_rest

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], self.patience)
        assert ready, f"nothing more came; last: {self.rest_of_it[-2000:]!r}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has it open any more
            return False
        self.seen += data
        return bool(data)

    def read_what_came(self) -> None:
        """Read all that is there already."""
        while select.select([self.master], [], [], 0)[0] and self._read():
            pass
