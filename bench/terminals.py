"""Terminals of the bench's own: a program on a PTY, and nobody in between. The floor of every terminal row, and where
the multiplexers' own clients are watched.
"""

from __future__ import annotations

import os
import random
import select
import signal
import termios
import time
from typing import TYPE_CHECKING, Self

from bench.measure import SubjectFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

COLUMNS, ROWS = 80, 24
TERM = "xterm-256color"
#: What is typed. None of these ends an escape sequence that a multiplexer draws with: who sees one sees the echo.
KEYS = (b"x", b"y", b"z")
_READ = 64 * 1024
_STOP_LIMIT = 2.0


class Terminal:
    """One program, leader of a session of its own, whose controlling terminal this is."""

    def __init__(self, argv: list[str], *, env: Mapping[str, str] | None = None) -> None:
        self._master, slave = os.openpty()
        try:
            termios.tcsetwinsize(slave, (ROWS, COLUMNS))
            # Opened by the leader of a session that has no terminal yet, it becomes that session's.
            opened = (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0)
            copies = [(os.POSIX_SPAWN_DUP2, 0, fd) for fd in (1, 2)]
            environment = {**(os.environ if env is None else env), "TERM": TERM}
            self.pid: int | None = os.posix_spawn(
                argv[0], argv, environment, setsid=True, file_actions=[opened, *copies]
            )
        except BaseException:
            os.close(self._master)
            raise
        finally:
            os.close(slave)
        self._buffer = bytearray(_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def echo(self, key: bytes) -> float:
        """Type one key; how many milliseconds until it is back."""
        begin = time.perf_counter()
        os.write(self._master, key)
        while key not in self._shown():
            continue
        return (time.perf_counter() - begin) * 1e3

    def read_until(self, marker: bytes) -> int:
        """Read on until that text was shown. Returns how many bytes were."""
        size, kept = 0, b""
        while marker not in kept:
            shown = self._shown()
            size += len(shown)
            # As much of the last piece as may be the beginning of it.
            kept = kept[-len(marker) :] + shown
        return size

    def read_all(self) -> int:
        """Read until the program has closed the terminal. Returns how many bytes came."""
        size = 0
        while True:
            try:
                got = os.readv(self._master, [self._buffer])
            except OSError:  # EIO is how a terminal ends
                return size
            size += got

    def wait(self) -> int:
        """The program's exit status, once it has ended."""
        assert self.pid is not None
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return os.waitstatus_to_exitcode(status)

    def stop(self) -> None:
        """Hang up, and see the program gone."""
        os.close(self._master)
        if self.pid is None:
            return
        os.kill(self.pid, signal.SIGHUP)
        pidfd = os.pidfd_open(self.pid)
        try:
            if not select.select([pidfd], [], [], _STOP_LIMIT)[0]:
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(pidfd)
        self.wait()

    def _shown(self) -> bytes:
        try:
            return os.read(self._master, _READ)
        except OSError as error:
            raise SubjectFailed(f"the program on the terminal has ended ({error.strerror})") from None


class Typist:
    """Types as people do: one key, and the next some milliseconds after the echo of the last was seen.

    The pause is no decoration. Whoever types without one finds every process still awake and its memory in the
    caches, and measures a speed that no person ever meets.
    """

    _SHORTEST, _LONGEST = 0.005, 0.015

    def __init__(self) -> None:
        # The same pauses in every run.
        self._random = random.Random(20)
        self._typed = 0

    @property
    def pause(self) -> float:
        """How long until the next key, in seconds."""
        return self._random.uniform(self._SHORTEST, self._LONGEST)

    @property
    def key(self) -> bytes:
        """The next key: never the one before, whose echo may be drawn again."""
        self._typed += 1
        return KEYS[self._typed % len(KEYS)]
