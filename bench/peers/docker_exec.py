"""`docker exec`, as the engine's own interface does it: over its Unix socket, without the start of the
command.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from bench.measure import SubjectFailed
from bench.peers import Peer
from bench.peers.http import HttpConnection, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.lab import Lab

#: Names an image to use; else the first that the engine has. Nothing is ever pulled.
IMAGE_VARIABLE = "BENCH_IMAGE"


def engine_socket() -> str | None:
    """Where the engine listens, if that is a Unix socket."""
    scheme, _, path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").partition("://")
    return path if scheme == "unix" else None


class DockerExec(Peer):
    """Three requests a command: create, start (the answer ends with the output), and inspect for the exit
    code.
    """

    name = "docker exec"
    bulk_absent = "the file to print is not in its container"

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._connection: HttpConnection | None = None
        self._container: str | None = None

    def missing(self) -> str | None:
        path = engine_socket()
        if path is None:
            return "DOCKER_HOST is not a Unix socket of this machine"
        try:
            connection = HttpConnection.to_path(path)
        except OSError:
            return f"no engine runs here (nothing listens on {path})"
        try:
            images = json.loads(connection.ask(request("GET", "/images/json")))
        except (SubjectFailed, OSError) as error:
            return f"the engine at {path} refused: {error}"
        finally:
            connection.close()
        return None if images else f"the engine has no image to start ({IMAGE_VARIABLE} may name one)"

    def start(self) -> None:
        self._connection = HttpConnection.to_path(cast("str", engine_socket()))
        image = os.environ.get(IMAGE_VARIABLE) or self._ask("GET", "/images/json")[0]["Id"]
        # `cat` with an open stdin waits for ever, whatever little the image holds.
        body = {"Image": image, "Entrypoint": [], "Cmd": ["cat"], "OpenStdin": True, "NetworkDisabled": True}
        self._container = quote(self._ask("POST", "/containers/create", body)["Id"])
        self._ask("POST", f"/containers/{self._container}/start")

    def run(self, argv: Sequence[str]) -> int:
        body = {"Cmd": list(argv), "AttachStdout": True, "AttachStderr": True}
        made = self._ask("POST", f"/containers/{self._container}/exec", body)["Id"]
        # The engine takes a connection over for the output and ends it with the output.
        taken = HttpConnection.to_path(cast("str", engine_socket()))
        try:
            output = taken.ask(request("POST", f"/exec/{made}/start", {"Detach": False, "Tty": False}))
        finally:
            taken.close()
        state = self._ask("GET", f"/exec/{made}/json")
        if state["Running"] or state["ExitCode"] != 0:
            raise SubjectFailed(f"the engine says {str(state)[:200]}")
        return len(output)

    def stop(self) -> None:
        if self._connection and self._container:
            self._ask("DELETE", f"/containers/{self._container}?force=true")
        if self._connection:
            self._connection.close()

    def _ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        assert self._connection
        answer = self._connection.ask(request(method, path, body))
        return json.loads(answer) if answer else None
