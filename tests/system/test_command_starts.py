"""A start either runs its program or says that it did not: while a file system hangs, and while the launcher dies."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from guestd.process import cgroup
from tests.support.commands import NOBODY, public_folder, run, serving_commands
from tests.support.hanging import hanging_mount
from tests.support.peer import PATIENCE, living

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hanging import Hanging
    from tests.support.peer import Peer
    from tests.support.server import Server

WAYS = pytest.mark.parametrize("way", [{}, {"user": NOBODY}], ids=["thread", "launcher"])


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, Peer]]:
    with serving_commands() as served:
        yield served


@pytest.fixture
def peer(served: tuple[Server, Peer]) -> Peer:
    return served[1]


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """A folder on a file system that does not answer."""
    with public_folder() as folder, hanging_mount(folder) as hanging:
        yield hanging


# ------------------------------------------------------------------------------------------- file systems that hang


@WAYS
@pytest.mark.parametrize("what", ["cwd", "program", "path"])
def test_a_start_that_hangs_holds_up_nobody_and_ends_with_its_timeout(
    peer: Peer, hanging: Hanging, way: dict[str, Any], what: str
) -> None:
    fields = {
        "cwd": {"argv": ["true"], "cwd": hanging.path},
        "program": {"argv": [f"{hanging.path}/tool"]},
        "path": {"argv": ["tool"], "env": {"PATH": f"{hanging.path}:/bin"}},
    }[what]
    # For as long as the test takes, and for its timeout.
    peer.open("exec", id=(hung := f"hung-{os.urandom(4).hex()}"), **fields, **way)
    call = peer.open("exec", timeout=0.3, **fields, **way)
    # Meanwhile everything else starts, either way, on the same connection.
    for other in ({}, {"user": NOBODY}):
        assert run(peer, "echo", "here", **other).text == "here"
    assert peer.ask("status")["jobs"]["running"] >= 1
    result = call.end()
    assert peer.ask("kill", id=hung)["stage"] == "killed"
    told = {key: result.get(key) for key in ("outcome", "stage", "errno_name", "code", "pid")}
    assert told == {
        "outcome": "not_started", "stage": "exec", "errno_name": "ETIMEDOUT", "code": None, "pid": None,
    }  # fmt: skip
    assert "does not answer" in result["message"]


@WAYS
def test_a_start_that_hangs_can_be_killed(peer: Peer, hanging: Hanging, way: dict[str, Any]) -> None:
    name = f"hung-{'-'.join(way) or 'root'}"
    call = peer.open("exec", argv=["true"], cwd=hanging.path, id=name, **way)
    assert [row["state"] for row in peer.ask("ps")["jobs"] if row["id"] == name] == ["starting"]
    assert peer.ask("kill", id=name)["stage"] == "killed"
    result = call.end()
    assert (result["outcome"], result["ended_by"], result["pid"]) == ("not_started", "kill", None)


def test_a_file_system_that_answers_in_time_is_just_slow(peer: Peer, hanging: Hanging) -> None:
    call = peer.open("exec", argv=["pwd", "-P"], cwd=hanging.path)
    while not call.queue:
        if hanging.asked:
            hanging.answer()
        elif peer.has_input(0):
            peer.pump()
    assert call.end()["code"] == 0
    assert call.stdout.decode() == f"{hanging.path}\n"


def test_a_start_that_was_given_up_is_not_made_when_the_file_system_answers(
    served: tuple[Server, Peer], hanging: Hanging
) -> None:
    """It was: minutes later, with descriptors that by then were another job's, and then killed."""
    server, peer = served
    before = peer.ask("status")["processes"]["orphans_reaped"]
    used = len(os.listdir(f"/proc/{server.pid}/fd"))
    result = peer.ask("exec", argv=["true"], cwd=hanging.path, timeout=0.05)
    assert (result["outcome"], result["errno_name"]) == ("not_started", "ETIMEDOUT")
    # The thread still waits; what it holds is its own.
    held = os.listdir(f"/proc/{server.pid}/fd")
    assert len(held) > used
    while len(os.listdir(f"/proc/{server.pid}/fd")) > used:
        if hanging.asked:
            hanging.answer()
    assert peer.ask("status")["processes"]["orphans_reaped"] == before


# ---------------------------------------------------------------------------------------------- where they are born


_OUTSIDE = """
import os, trio
from guestd.process.identity import Users
from guestd.process.reaper import Reaper
from guestd.process.plan import Plan
from guestd.process.spawn import Spawner

class NoGroup:
    def open(self):
        return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

async def main():
    reaper = Reaper(lambda: (0.0, 0.0))
    own = Users().own_identity()
    spawner = Spawner(own, reaper)
    plan = Plan(program="sh", argv=[b"sh", b"-c", b"exit 7"], env={b"PATH": b"/bin"}, cwd=["/"], identity=own,
                fds={0: 2, 1: 2, 2: 2}, nice=1, cgroup=NoGroup())
    exits, ended = [], trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run)
        await spawner.start(plan, lambda exit: (exits.append(exit.status), ended.set()))
        await ended.wait()
        spawner.close()
        while spawner.launcher_pid is not None:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    print(os.waitstatus_to_exitcode(exits[0]), plan.cgroup)

trio.run(main)
"""


def test_what_its_cgroup_cannot_take_is_born_outside_of_it() -> None:
    """As where the group has been removed, or a filter refuses the call that bears into one; and it is not hidden."""
    done = subprocess.run([sys.executable, "-c", _OUTSIDE], capture_output=True, text=True, check=False)
    assert done.stdout == "7 None\n", done.stderr


def test_a_group_that_somebody_removes_while_it_is_read_is_an_empty_one(tmp_path: Path) -> None:
    """Reading one that is no more fails with ENODEV, and that ended the supervisor with all its jobs."""

    class Gone:
        def read(self) -> str:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def reading(_path: str) -> contextlib.nullcontext[Gone]:
        return contextlib.nullcontext(Gone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroup, "open", reading, raising=False)
        assert cgroup.Cgroup(str(tmp_path)).pids() == []
    assert cgroup.Cgroup(str(tmp_path / "absent")).pids() == []


# -------------------------------------------------------------------------------------------- a launcher that dies


def test_each_start_runs_or_is_not_started_while_the_launcher_is_killed_again_and_again() -> None:
    """And what counts as not started has not run. Where the launcher itself gave the clone's number away, a launcher
    that died in between left a program running that nobody knew of.
    """
    before = set(living())
    order = random.Random(7)
    with public_folder() as folder, serving_commands() as (server, peer):
        folder.chmod(0o777)
        ran, refused = set[int](), set[int]()
        started = 0
        for _ in range(40):
            launcher = peer.ask("status")["processes"]["launcher"]
            batch = range(started, started + order.randrange(1, 8))
            started = batch.stop
            calls = [
                peer.open("exec", argv=["sh", "-c", f"echo {n} >{folder}/{n}; echo {n}"], user=NOBODY)
                for n in batch
            ]
            for _ in range(order.randrange(0, 3)):
                if not calls[0].queue:
                    peer.pump()
            if launcher is not None:
                with suppress(ProcessLookupError):
                    os.kill(launcher, signal.SIGKILL)
            for n, call in zip(batch, calls, strict=True):
                result = call.end()
                if result["outcome"] == "not_started":
                    assert (result["stage"], result["errno_name"]) == ("fork", "EAGAIN"), result
                    assert "launcher" in result["message"]
                    refused.add(n)
                else:
                    assert (result["outcome"], result["code"]) == ("exited", 0), result
                    assert call.stdout.decode() == f"{n}\n"
                    ran.add(n)
        assert {int(path.name) for path in folder.iterdir()} == ran
        assert ran | refused == set(range(started))
        assert len(ran) > len(refused) > 0
        assert run(peer, "echo", "fine", user=NOBODY).text == "fine"
        # Nothing of all that is left but the last launcher. Those that were killed need not be gone at once.
        due = time.monotonic() + PATIENCE
        left = {server.pid, peer.ask("status")["processes"]["launcher"]}
        while (found := set(living()) - before) != left and time.monotonic() < due:
            pass
        assert found == left


def test_a_launcher_that_died_between_starts_is_not_missed() -> None:
    with serving_commands() as (_, peer):
        for _ in range(5):
            launcher = peer.ask("status")["processes"]["launcher"]
            os.kill(launcher, signal.SIGKILL)
            while peer.ask("status")["processes"]["launcher"] == launcher:
                pass
            assert run(peer, "echo", "here", user=NOBODY).text == "here"


def test_a_launcher_that_stands_still_delays_only_those_who_need_it(peer: Peer) -> None:
    stopped = peer.ask("status")["processes"]["launcher"]
    os.kill(stopped, signal.SIGSTOP)
    late = peer.open("exec", argv=["echo", "late"], user=NOBODY)
    assert run(peer, "echo", "here").text == "here"
    os.kill(stopped, signal.SIGCONT)
    assert late.end()["code"] == 0
    assert late.stdout == b"late\n"
