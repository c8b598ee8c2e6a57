"""qemu-guest-agent on a Unix socket: guest-exec, then guest-exec-status until it says that the command
has ended.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from bench.measure import SubjectFailed
from bench.peers import Peer
from bench.programs import Program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.lab import Lab

#: Debian puts it where only root's PATH looks.
PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"


class QemuGa(Peer):
    """Its protocol has no event for an end, so a caller polls. Here it asks again as soon as it has the
    answer: no other pause would give a smaller figure.
    """

    name = "qemu-ga"
    # It keeps 16 MiB of a command's output.
    bulk_limit = 16 * 1024 * 1024

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._program: Program | None = None
        self._stream: socket.socket | None = None
        self._answers: io.BufferedReader | None = None

    def missing(self) -> str | None:
        found = shutil.which("qemu-ga", path=PATH)
        return None if found else "not installed (--install-peers does it, with apt-get, as root)"

    def start(self) -> None:
        path = self.lab.path("qemu-ga.sock")
        state = self.lab.directory("qemu-ga")
        binary = cast("str", shutil.which("qemu-ga", path=PATH))
        self._program = Program(
            [binary, "-m", "unix-listen", "-p", path, "-t", state, "-f", f"{state}/pid"],
            log=self.lab.path("qemu-ga.log"),
        )
        self._stream = socket.socket(socket.AF_UNIX)
        # It serves one client at a time, so a probe's connection would be the one that it serves.
        self._program.wait_until(partial(self._connect, path))
        self._answers = io.BufferedReader(socket.SocketIO(self._stream, "r"), 1024 * 1024)

    def run(self, argv: Sequence[str]) -> int:
        arguments = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        pid = self._ask({"execute": "guest-exec", "arguments": arguments})["pid"]
        poll = {"execute": "guest-exec-status", "arguments": {"pid": pid}}
        status = self._ask(poll)
        while not status["exited"]:
            status = self._ask(poll)
        if status.get("exitcode") != 0 or status.get("out-truncated"):
            raise SubjectFailed(f"it answered {str(status)[:200]}")
        return len(base64.b64decode(status.get("out-data", "")))

    def stop(self) -> None:
        if self._answers:
            self._answers.close()
        if self._stream:
            self._stream.close()
        if self._program:
            self._program.stop()

    def _ask(self, question: Mapping[str, object]) -> dict[str, Any]:
        assert self._stream
        assert self._answers
        self._stream.sendall(json.dumps(question).encode() + b"\n")
        answer = cast("dict[str, Any]", json.loads(self._answers.readline() or b"{}"))
        if "return" not in answer:
            raise SubjectFailed(f"it answered {str(answer)[:200]}")
        return cast("dict[str, Any]", answer["return"])

    def _connect(self, path: str) -> bool:
        assert self._stream
        try:
            self._stream.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True
