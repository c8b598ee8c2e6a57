"""Where processes or memory run out, the supervisor answers, says what happened, and the end is complete."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.peer import Peer, living
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Generator

#: Nobody else's, so that a limit on its processes counts no others.
UID = 54_321
MOST = 60
MEMORY = 128 * 1024 * 1024
#: Forks for as long as it may, and again as soon as it may; each of them does the same.
BOMB = """
import os, signal, sys, time
if len(sys.argv) > 1:
    with open(sys.argv[1] + "/cgroup.procs", "w") as file:
        file.write("0")
sys.stdout.write("begun\\n")
sys.stdout.flush()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.02)
"""
PERL_BOMB = """
$SIG{TERM} = $SIG{CHLD} = 'IGNORE'; $| = 1; print "begun\\n";
while (1) { fork // select(undef, undef, undef, 0.02) }
"""
GLUTTON = """
held = []
while True:
    held.append(bytearray(b"x" * 1048576))
"""


@contextlib.contextmanager
def _limited(controller: str, names: tuple[str, str], limit: int) -> Generator[Path | None]:
    """A group with a limit, of cgroup v2 where that can be, else of v1; None where there is neither."""
    name = f"guestd-pressure-{os.getpid()}-{os.urandom(3).hex()}"
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [(line.split(" ")[4], line.partition(" - ")[2]) for line in file]
    made: Path | None = None
    for mount, what in mounts:
        first = what.startswith("cgroup ") and controller in what.split(" ")[-1].strip().split(",")
        if not first and not what.startswith("cgroup2 "):
            continue
        group = Path(mount, name)
        try:
            group.mkdir()
            (group / names[first]).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
        else:
            made = group
            break
    try:
        yield made
    finally:
        if made is not None:
            made.rmdir()


@pytest.mark.parametrize("kind", ["cgroup", "rlimit"])
def test_a_fork_bomb_under_a_limit_is_answered_around_and_ended_whole(kind: str) -> None:
    with (
        _limited("pids", ("pids.max", "pids.max"), MOST) as group,
        serving() as server,
        Peer(server.address) as peer,
    ):
        if kind == "cgroup" and group is None:
            pytest.skip(
                "no cgroup, of either version, that limits processes here; the limit of a user does below"
            )
        before = set(living())
        if kind == "cgroup":
            call = peer.open("exec", argv=[sys.executable, "-I", "-S", "-c", BOMB, str(group)], id="bomb")
        else:
            # The interpreter may lie where that user cannot read.
            call = peer.open(
                "exec", argv=["perl", "-e", PERL_BOMB], id="bomb", user=UID, cwd="/", rlimits={"nproc": MOST}
            )
        call.lines(1)
        while len(set(living()) - before) < MOST - 5:
            peer.ask("status")
        # It goes on, and so does everybody else.
        for number in range(20):
            assert peer.ask("exec", argv=["sh", "-c", f"exit {number}"])["code"] == number
        with Peer(server.address) as another:
            assert another.ask("status")["pid"] == server.pid
        result = peer.ask("kill", id="bomb", grace=0.2)
        assert result["unreached"]["count"] == 0
        assert result["ended_by"] == "kill"
        while set(living()) - before - {peer.ask("status")["processes"]["launcher"]}:
            pass


def test_a_supervisor_under_memory_pressure_lives_and_says_who_was_killed_for_it() -> None:
    """The supervisor, its launcher and a command share what little memory there is: the command is what goes."""
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip(
            "the kernel's log cannot be read here, and a group that is not guestd's own tells it nothing"
        )
    with (
        _limited("memory", ("memory.max", "memory.limit_in_bytes"), MEMORY) as group,
        serving() as server,
        Peer(server.address) as peer,
    ):
        if group is None:
            pytest.skip("no cgroup, of either version, that limits memory here")
        peer.ask("exec", argv=["true"], user="nobody")
        launcher = peer.ask("status")["processes"]["launcher"]
        for pid in (server.pid, launcher):
            (group / "cgroup.procs").write_text(str(pid))
        try:
            other = peer.open("exec", shell="read line; exit 6", stdin="stream")
            other.accepted()
            for more in ({}, {"nice": 1}):
                result = peer.ask("exec", argv=[sys.executable, "-I", "-S", "-c", GLUTTON], **more)
                assert (result["outcome"], result["status"]) == ("oom_killed", 137), result
            other.data(0, b"go on\n")
            assert other.end()["code"] == 6
            found = peer.ask("status")
            assert (found["pid"], found["processes"]["launcher"]) == (server.pid, launcher)
            assert peer.ask("exec", shell="echo still here")["code"] == 0
        finally:
            server.stop()
