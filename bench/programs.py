"""The programs that a run starts: each with its output in a file, ended by its pid, and looked at through
/proc.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from bench.measure import SubjectFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: How long a program has to come up. A cold cache on a loaded machine takes seconds; nobody takes this long.
START_LIMIT = 30.0
_STOP_LIMIT = 10.0


class Program:
    """A child of the bench, in a session of its own so that Ctrl-C reaches the bench alone."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: str,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = os.path.basename(argv[0])
        self._log = log
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        """The end of what it printed, on one line, for an error message."""
        with open(self._log, "rb") as output:
            lines = output.read().decode("utf-8", "replace").split("\n")
        return " / ".join(line.strip() for line in lines if line.strip())[-400:]

    def wait_until(self, came_up: Callable[[], bool], *, limit: float = START_LIMIT) -> None:
        """Ask `came_up` until it says yes; fail when the program ends or the limit is over."""
        deadline = time.monotonic() + limit
        while not came_up():
            if not self.running:
                raise SubjectFailed(
                    f"{self.name} ended with status {self._process.returncode}: {self.last_words()}"
                )
            if time.monotonic() > deadline:
                raise SubjectFailed(f"{self.name} did not come up within {limit:.0f} s: {self.last_words()}")
            time.sleep(0.005)

    def stop(self) -> None:
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def accepts(path: str) -> Callable[[], bool]:
    """Whether somebody listens on that Unix socket."""

    def try_it() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True

    return try_it


def accepts_port(port: int) -> Callable[[], bool]:
    """Whether somebody listens on that port of the loopback."""

    def try_it() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return try_it


def free_port() -> int:
    """A port of the loopback that nobody has now. For programs that cannot be handed a listening socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def proportional_bytes(pid: int) -> int:
    """Resident bytes, those that are shared counted by share (PSS)."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))


def open_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def children(pid: int) -> int:
    """Children of any of its threads, zombies included."""
    found = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as listed:
                found += len(listed.read().split())
        except FileNotFoundError:
            # A thread that ended meanwhile has handed its children to another, which is counted in its turn.
            continue
    return found
