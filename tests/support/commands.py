"""One command, run to its end over a `Peer`: what it printed, and what guestd says of it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.hanging import hanging_mount
from tests.support.peer import Peer
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.server import Server

#: A user that every machine has, and that owns nothing: its commands are started by the launcher.
NOBODY = "nobody"


class Done(NamedTuple):
    """A command's result, and its output byte by byte."""

    result: dict[str, Any]
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it printed, when it went well."""
        assert (self.result["outcome"], self.result["code"]) == ("exited", 0), (self.result, self.stderr)
        return self.stdout.decode().removesuffix("\n")


def run(peer: Peer, *argv: str | bytes, **fields: Any) -> Done:  # noqa: ANN401  whatever a test asks for
    """Run a command, by its words or by `shell="…"`, and read all that it prints."""
    call = peer.open("exec", **({"argv": list(argv)} if argv else {}), **fields)
    result = call.end()
    assert not call.gaps
    return Done(result, call.stdout, call.stderr)


@contextlib.contextmanager
def public_folder() -> Generator[Path]:
    """A folder that every user can reach. pytest's are for one user, and each session that begins sees to it again."""
    with tempfile.TemporaryDirectory(prefix="guestd-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def status_of(peer: Peer, **fields: Any) -> dict[str, str]:  # noqa: ANN401
    """/proc/self/status of a command: cat's own, which has changed nothing about itself."""
    return parse_status(run(peer, "cat", "/proc/self/status", **fields).text)


def parse_status(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


#: The three ways to start a program. Each makes the same process.
WAYS = ("direct", "thread", "launcher")


@contextlib.contextmanager
def taking_way(way: str, folder: Path) -> Generator[dict[str, Any]]:
    """What makes guestd take that way: fields of a request, or a mount that may hang."""
    if way == "thread":
        with hanging_mount(folder):
            yield {}
    else:
        yield {"nice": 1} if way == "launcher" else {}


@contextlib.contextmanager
def serving_commands(**options: Any) -> Generator[tuple[Server, Peer]]:  # noqa: ANN401
    """A guestd for several tests, and a connection to it. Its launcher runs already, so that no test is taken for the
    one that left it.
    """
    with serving(**options) as server, Peer(server.address) as peer:
        assert run(peer, "true", user=NOBODY).result["outcome"] == "exited"
        yield server, peer
