"""SWE-ReX: its runtime server (FastAPI on uvicorn) in a venv of its own, over its HTTP interface."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING

from bench.measure import SubjectFailed
from bench.peers import Peer
from bench.peers.http import HttpConnection, request
from bench.programs import Program, accepts_port, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.lab import Lab

VERSION = "1.4.0"


class SweRex(Peer):
    """`/execute` is its way to run a command that is no part of a session: the quickest one it has."""

    name = "swe-rex"
    # No limit of its own, but it holds the output several times over, as text and as JSON.
    bulk_limit = 32 * 1024 * 1024

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._program: Program | None = None
        self._connection: HttpConnection | None = None
        self._token = secrets.token_hex(16)
        self._requests: dict[tuple[str, ...], bytes] = {}

    @property
    def _binary(self) -> str:
        return os.path.join(self.lab.cache, "swe-rex", "bin", "swerex-remote")

    def missing(self) -> str | None:
        return (
            None if os.access(self._binary, os.X_OK) else "not installed (--install-peers does it, with pip)"
        )

    def start(self) -> None:
        port = free_port()
        self._program = Program(
            [self._binary, "--host", "127.0.0.1", "--port", str(port), "--auth-token", self._token],
            log=self.lab.path("swe-rex.log"),
        )
        self._program.wait_until(accepts_port(port))
        self._connection = HttpConnection.to_port(port)

    def run(self, argv: Sequence[str]) -> int:
        assert self._connection
        key = tuple(argv)
        if key not in self._requests:
            body = {"command": list(argv)}
            self._requests[key] = request("POST", "/execute", body, {"X-API-Key": self._token})
        answer = json.loads(self._connection.ask(self._requests[key]))
        if answer["exit_code"] != 0:
            raise SubjectFailed(f"it answered {str(answer)[:200]}")
        return len(answer["stdout"])

    def stop(self) -> None:
        if self._connection:
            self._connection.close()
        if self._program:
            self._program.stop()
