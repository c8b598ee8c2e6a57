"""rivet sandbox-agent: an HTTP server in Rust. Its npm package carries the binary for each platform."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING

from bench.measure import SubjectFailed
from bench.peers import Peer
from bench.peers.http import HttpConnection, request
from bench.programs import Program, accepts_port, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.lab import Lab

VERSION = "0.4.2"
_PLATFORMS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}


def package() -> str | None:
    """The npm package that holds the binary for this machine."""
    found = _PLATFORMS.get(platform.machine())
    return f"@sandbox-agent/cli-{found}" if found else None


class SandboxAgent(Peer):
    name = "sandbox-agent"
    bulk_absent = "keeps at most 1 MiB of a command's output"

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._program: Program | None = None
        self._connection: HttpConnection | None = None
        self._requests: dict[tuple[str, ...], bytes] = {}

    @property
    def _binary(self) -> str:
        return os.path.join(
            self.lab.cache, "sandbox-agent", "node_modules", package() or "none", "bin/sandbox-agent"
        )

    def missing(self) -> str | None:
        if package() is None:
            return f"has no package for {platform.machine()}"
        return (
            None if os.access(self._binary, os.X_OK) else "not installed (--install-peers does it, with npm)"
        )

    def start(self) -> None:
        port = free_port()
        home = self.lab.directory("sandbox-agent")
        self._program = Program(
            [
                self._binary,
                "server",
                "--no-token",
                "--no-telemetry",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ],
            log=self.lab.path("sandbox-agent.log"),
            env={"PATH": os.environ["PATH"], "HOME": home, "XDG_DATA_HOME": home, "XDG_STATE_HOME": home},
        )
        self._program.wait_until(accepts_port(port))
        self._connection = HttpConnection.to_port(port)

    def run(self, argv: Sequence[str]) -> int:
        assert self._connection
        key = tuple(argv)
        if key not in self._requests:
            body = {"command": argv[0], "args": list(argv[1:])}
            self._requests[key] = request("POST", "/v1/processes/run", body)
        answer = json.loads(self._connection.ask(self._requests[key]))
        if answer["exitCode"] != 0 or answer["stdoutTruncated"]:
            raise SubjectFailed(f"it answered {str(answer)[:200]}")
        return len(answer["stdout"])

    def stop(self) -> None:
        if self._connection:
            self._connection.close()
        if self._program:
            self._program.stop()
