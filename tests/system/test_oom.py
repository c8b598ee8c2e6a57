"""Killed by the kernel for memory is an outcome of its own, said only when the kernel says so."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.peer import Peer
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 96 * 1024 * 1024
#: Joins a group and takes memory, page by page, until somebody stops it.
GLUTTON = r"""
import sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write("0")
held = []
while True:
    held.append(bytearray(b"x" * 1048576))
"""


def _make_group() -> Path | str:
    """A group whose memory is limited, or why there can be none."""
    if os.geteuid() != 0:
        return "only root can limit a group's memory"
    name = f"guestd-oom-test-{os.getpid()}-{os.urandom(3).hex()}"
    with open("/proc/self/mountinfo") as file:
        mounts = [(line.split(" ")[4], line.partition(" - ")[2]) for line in file]
    for mount, what in mounts:
        first = what.startswith("cgroup ") and "memory" in what.split(" ")[-1].strip().split(",")
        if not first and not what.startswith("cgroup2 "):
            continue
        group = Path(mount, name)
        try:
            group.mkdir()
            (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(LIMIT))
        except OSError:
            if group.exists():
                group.rmdir()
        else:
            return group
    return "no cgroup, of either version, that limits memory here"


@pytest.fixture
def group() -> Iterator[Path]:
    made = _make_group()
    if isinstance(made, str):
        pytest.skip(made)
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip(
            "the kernel's log cannot be read here, and a group that is not guestd's own tells it nothing"
        )
    yield made
    made.rmdir()


@pytest.fixture(scope="module", params=["auto", "off"], ids=["cgroup", "no-cgroup"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(config=f'[command]\ncgroup = "{request.param}"\n') as running:
        with Peer(running.address) as peer:
            peer.ask("exec", argv=["true"], user="nobody")
        yield running


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


def _glutton(group: Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", GLUTTON, str(group)]


def test_a_command_that_takes_more_memory_than_it_may_is_oom_killed(peer: Peer, group: Path) -> None:
    result = peer.ask("exec", argv=_glutton(group))
    assert (result["outcome"], result["signal_name"], result["status"]) == ("oom_killed", "SIGKILL", 137)
    assert result["ended_by"] is None
    # Not told where the supervisor itself, or whoever started it, was once as large.
    assert result["peak_memory"] is None or result["peak_memory"] > LIMIT / 2


def test_so_is_one_that_the_launcher_started(peer: Peer, group: Path) -> None:
    assert peer.ask("exec", argv=_glutton(group), nice=1)["outcome"] == "oom_killed"


def test_each_of_several_that_end_so_at_once_is_told_so(peer: Peer, group: Path) -> None:
    calls = [peer.open("exec", argv=_glutton(group)) for _ in range(4)]
    assert [call.end()["outcome"] for call in calls] == ["oom_killed"] * 4


def test_guestd_itself_and_its_other_commands_live_on(server: Server, peer: Peer, group: Path) -> None:
    other = peer.open("exec", shell="read line; exit 6", stdin="stream")
    other.accepted()
    assert peer.ask("exec", argv=_glutton(group))["outcome"] == "oom_killed"
    other.data(0, b"go on\n")
    assert other.end()["code"] == 6
    assert peer.ask("status")["pid"] == server.pid


def test_a_plain_kill_9_is_not_called_that(peer: Peer) -> None:
    result = peer.ask("exec", shell="kill -9 $$")
    assert (result["outcome"], result["signal"], result["ended_by"]) == ("signaled", signal.SIGKILL, None)


def test_a_kill_9_right_after_somebody_elses_end_by_memory_is_not_called_that(
    peer: Peer, group: Path
) -> None:
    """The kernel's log names the victim; another process, even of the same program, is not it."""
    assert peer.ask("exec", argv=_glutton(group))["outcome"] == "oom_killed"
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    result = peer.ask("exec", argv=[sys.executable, "-I", "-S", "-c", program])
    assert result["outcome"] == "signaled"


def test_what_guestd_kills_is_not_called_that(peer: Peer) -> None:
    call = peer.open("exec", shell="trap '' TERM; echo up; while :; do sleep 1; done", id="ended", grace=0.05)
    call.lines(1)
    peer.ask("kill", id="ended")
    assert (call.end()["outcome"], call.end()["ended_by"]) == ("signaled", "kill")


def test_a_child_that_is_oom_killed_is_its_parents_to_tell(peer: Peer, group: Path) -> None:
    words = " ".join(f"'{word}'" for word in _glutton(group))
    result = peer.ask("exec", shell=f"{words}; echo $?; exit 3")
    assert (result["outcome"], result["code"]) == ("exited", 3)
