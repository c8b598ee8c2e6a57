"""AgentCore's own Python client of shells, unchanged: over TLS, to the name that AWS has. See agentcore_shell.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.agentcore import BARE_HOME
from tests.support.peer import Peer
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

PERSON = Path(__file__).with_name("agentcore_shell.py")
#: Those of one line share a process: importing the client takes most of the time.
SCENARIOS = [["run", "end"], ["drop", "away"], ["takeover", "authorities"]]
#: A hang is to become a failure that names its scenario.
SECONDS = 100


def play(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PERSON), *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def guest() -> Iterator[Server]:
    with serving(config=BARE_HOME) as server:
        with Peer(server.address) as peer:
            # Whoever starts programs on terminals is started with the first of them.
            peer.ask("exec", argv=["true"], user="root")
        yield server
        server.stop()
        assert "Traceback" not in server.log, server.log


@pytest.mark.parametrize("scenarios", SCENARIOS, ids="-".join)
def test_their_client(guest: Server, scenarios: list[str]) -> None:
    play(guest.path, *scenarios)


def test_no_scenario_is_forgotten() -> None:
    assert play().split() == [each for scenarios in SCENARIOS for each in scenarios]
