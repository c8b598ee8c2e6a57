"""The least that each thing can cost in this Python: what guestd's figures are divided by."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

from bench.measure import SubjectFailed
from bench.programs import Program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.lab import Lab

#: By its full path for everybody: nobody is charged for a search of PATH.
TRUE = "/bin/true"
#: What `guestd serve` cannot do without.
IMPORTS = "import trio, msgpack"

_CHUNK = 1024 * 1024


def spawn_true() -> None:
    """A bare spawn and wait: no pipes, no result, no supervision."""
    pid = os.posix_spawn(TRUE, [TRUE], os.environ)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SubjectFailed(f"{TRUE} ended with wait status {status}")


def import_only(environment: Mapping[str, str]) -> None:
    """The interpreter with what the supervisor imports from others, from exec to exit."""
    _interpret(IMPORTS, environment)


def nothing(environment: Mapping[str, str]) -> None:
    """The interpreter alone, from exec to exit."""
    _interpret("pass", environment)


def _interpret(code: str, environment: Mapping[str, str]) -> None:
    argv = [sys.executable, "-c", code]
    pid = os.posix_spawn(sys.executable, argv, environment)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SubjectFailed(f"{' '.join(argv)} ended with wait status {status}")


def imported_memory(environment: Mapping[str, str]) -> int:
    """Resident bytes of an interpreter that has only imported, read by itself."""
    code = f"{IMPORTS}; print(open('/proc/self/statm').read().split()[1])"
    read_end, write_end = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write_end, 1)]
    try:
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], environment, file_actions=actions)
    finally:
        os.close(write_end)
    with open(read_end, encoding="ascii") as output:
        pages = output.read()
    os.waitpid(pid, 0)
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class CopyLoop:
    """A process that copies a command's output to a Unix socket, unframed (bench/copier.py), and its
    reader.
    """

    def __init__(self, lab: Lab) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._program = Program(
                [sys.executable, "-P", "-m", "bench.copier", str(theirs.fileno())],
                log=lab.path("copier.log"),
                env=lab.environment,
                pass_fds=[theirs.fileno()],
            )
        self._buffer = bytearray(_CHUNK)

    def rate(self, argv: Sequence[str], size: int) -> float:
        """Megabytes a second, from the request to the last byte."""
        begin = time.perf_counter()
        self._socket.sendall(json.dumps(argv).encode() + b"\n")
        left = size
        while left:
            received = self._socket.recv_into(self._buffer)
            if not received:
                raise SubjectFailed(f"the copy loop ended {left} bytes early: {self._program.last_words()}")
            left -= received
        return size / (time.perf_counter() - begin) / 1e6

    def stop(self) -> None:
        self._socket.close()
        self._program.stop()
