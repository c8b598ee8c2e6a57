"""A tiny process that puts the terminal right when guestctl is gone without a word (kill -9, a crash of Python).

It holds the terminal and a pipe whose other end only guestctl has. As long as that is open it learns what there is to
undo; when it ends, it undoes it and is gone too. On every ordinary way out guestctl does that itself, and ends the
guardian before.

It is no part of guestctl's process group, so that a signal to the whole group leaves it, and it blocks what the kernel
sends to those in the background who touch the terminal. A shell that has set the terminal up for its own prompt
meanwhile is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guestd.ctl.terminal import Attributes

# Its words: the attributes of the terminal at rest, then the first four as guestctl sets them. stdin: one line for each
# change, what undoes it all in hex. A terminal that takes no output any more is given up after a while.
_PROGRAM = """
import signal, sys, termios
undo = b""
for undo in sys.stdin.buffer:
    pass
signal.alarm(5)
words = sys.argv[1:]
raw = [int(word) for word in words[7:]]
if termios.tcgetattr(1)[:4] == raw:
    letters = [bytes([each]) for each in bytes.fromhex(words[6])]
    termios.tcsetattr(1, termios.TCSANOW, [*map(int, words[:6]), letters])
    open(1, "wb", 0).write(bytes.fromhex(undo.decode()))
"""
_BLOCKED = ("HUP", "INT", "QUIT", "TERM", "TSTP", "TTIN", "TTOU", "USR1", "USR2", "PIPE")


class Guardian:
    """See the module. Without one (no Python to start it with) the terminal is only put right on ordinary ways out."""

    def __init__(self, tty: int, rest: Attributes, raw: Attributes) -> None:
        self._pipe: int | None = None
        self._pid: int | None = None
        self._told = b""
        reader, writer = os.pipe()
        letters = b"".join(each if isinstance(each, bytes) else bytes([each]) for each in rest[6])
        words = [*map(str, rest[:6]), letters.hex(), *map(str, raw[:4])]
        # In this order: the terminal is our own stdin.
        actions = [(os.POSIX_SPAWN_DUP2, tty, 1), (os.POSIX_SPAWN_DUP2, reader, 0)]
        try:
            # guestctl is no supervisor: nothing else in it has children, or waits for them.
            self._pid = os.posix_spawn(  # noqa: TID251
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *words],
                os.environ,
                file_actions=actions,
                setpgroup=0,
                setsigmask=[getattr(signal, f"SIG{name}") for name in _BLOCKED],
            )
            self._pipe = writer
        except OSError:
            os.close(writer)
        finally:
            os.close(reader)

    def tell(self, undo: bytes) -> None:
        """This undoes everything from now on."""
        if self._pipe is None or undo == self._told:
            return
        self._told = undo
        # The guardian may have been ended by somebody.
        with suppress(BrokenPipeError):
            os.write(self._pipe, undo.hex().encode() + b"\n")

    def dismiss(self) -> None:
        """The terminal is at rest, and will be."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)  # noqa: TID251  the only child there is
            self._pid = None
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
