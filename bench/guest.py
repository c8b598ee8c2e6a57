"""A `guestd serve` of the bench's own: a private socket, a config of its own, ended by its pid."""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Self

from bench.client import Connection
from bench.measure import SubjectFailed
from bench.programs import START_LIMIT, Program

if TYPE_CHECKING:
    from bench.lab import Lab

#: What would set guestd up otherwise than a plain one: its own settings, and telemetry.
_SETTINGS = ("GUESTD_", "OTEL_")


def environment(lab: Lab, directory: str) -> dict[str, str]:
    """Of a plain guestd that keeps to this directory."""
    kept = {name: value for name, value in lab.environment.items() if not name.startswith(_SETTINGS)}
    return {**kept, "GUESTD_RUNTIME_DIR": os.path.join(directory, "run")}


def settings_file(directory: str, config: str = "") -> str:
    """An empty one as well, so that the machine's own config has no say."""
    path = os.path.join(directory, "config.toml")
    with open(path, "w", encoding="utf-8") as settings:
        settings.write(config)
    return path


class Guest:
    """`guestd serve`, READY. `ready_after` is the time from its exec to its word that it is, in
    milliseconds.
    """

    def __init__(self, lab: Lab, *, config: str = "") -> None:
        self._directory = tempfile.mkdtemp(prefix="guest-", dir=lab.path(""))
        self.address = os.path.join(self._directory, "s")
        path = settings_file(self._directory, config)
        argv = [
            sys.executable,
            "-P",
            "-m",
            "guestd",
            "serve",
            "--listen",
            f"unix:{self.address}",
            "--config",
            path,
        ]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(os.path.join(self._directory, "notify"))
            told = {
                **environment(lab, self._directory),
                "NOTIFY_SOCKET": os.path.join(self._directory, "notify"),
            }
            begin = time.perf_counter()
            self._program = Program(argv, log=os.path.join(self._directory, "log"), env=told)
            try:
                self._await_ready(notices)
                self.ready_after = (time.perf_counter() - begin) * 1e3
            except BaseException:
                self._program.stop()
                raise
        self.pid = self._program.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def connect(self) -> Connection:
        return Connection(self.address)

    def _await_ready(self, notices: socket.socket) -> None:
        # Wakes for the notice or for the end of the program, whichever is first: no polling, so no error in
        # the figure.
        pidfd = os.pidfd_open(self._program.pid)
        try:
            deadline = time.monotonic() + START_LIMIT
            while (left := deadline - time.monotonic()) > 0:
                readable, _, _ = select.select([notices, pidfd], [], [], left)
                if notices in readable and b"READY=1" in notices.recv(4096).split(b"\n"):
                    return
                if pidfd in readable:
                    raise SubjectFailed(
                        f"guestd serve ended before it was READY: {self._program.last_words()}"
                    )
        finally:
            os.close(pidfd)
        raise SubjectFailed(
            f"guestd serve was not READY within {START_LIMIT:.0f} s: {self._program.last_words()}"
        )
