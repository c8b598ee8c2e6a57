"""One order for every stop, within the time that was given, whatever hangs; and a receipt of what was done."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import Kind
from tests.support.hanging import hanging_mount
from tests.support.life import Follower, serving
from tests.support.peer import PATIENCE, Failed, Peer, Watched, living

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.support.server import Server

#: What ends in its own time after the order: far above what an interpreter takes to leave, and far below what anything
#: here would take that is not ended.
LEAVING = 5.0


@contextlib.contextmanager
def _within(seconds: float, server: Server) -> Generator[None]:
    begun = time.monotonic()
    yield
    server.process.wait(PATIENCE)
    took = time.monotonic() - begun
    assert took < seconds + LEAVING, f"the stop took {took:.2f} s of {seconds}"


def _kept(server: Server) -> dict[str, Any]:
    return json.loads((server.directory / "receipt.json").read_text())


def _settle() -> None:
    """What others have written to this machine's disk is not what a stop has to wait for here."""
    subprocess.run(["sync", "--file-system", "/"], check=True)


def _system(receipt: dict[str, Any], path: str) -> dict[str, Any]:
    (found,) = (each for each in receipt["filesystems"] if each["path"] == path)
    return found


# --------------------------------------------------------------------------------------------------------- the receipt


def test_the_receipt_says_what_was_ended_and_what_reached_its_disk() -> None:
    with serving() as server, Peer(server.address) as peer:
        polite = peer.open(
            "exec", shell="trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done", id="polite"
        )
        polite.lines(1)
        shell = peer.open("shell", argv=["cat"], id="terminal")
        shell.accepted()
        with Peer(server.address) as other:
            receipt = other.ask("stop", by="the host")
        assert (receipt["cause"], receipt["by"], receipt["grace"], receipt["action"]) == (
            "asked", "the host", 15.0, "poweroff",
        )  # fmt: skip
        ended = {each["id"]: each for each in receipt["ended"]["jobs"]}
        assert receipt["ended"]["count"] == 2
        assert (ended["polite"]["outcome"], ended["polite"]["status"], ended["polite"]["ended_by"]) == (
            "exited", 7, "stop",
        )  # fmt: skip
        assert (ended["terminal"]["kind"], ended["terminal"]["status"]) == ("shell", 129)
        assert receipt["unreached"] == {"count": 0, "processes": []}
        assert receipt["took"] < 15
        disks = [each for each in receipt["filesystems"] if each["type"] != "tmpfs"]
        assert disks
        assert all(each["synced"] or each["why"] for each in receipt["filesystems"])
        assert (
            "in memory"
            in _system(receipt, "/mnt" if not os.path.ismount("/mnt/workspace") else "/mnt/workspace")["why"]
        )
        assert server.process.wait(PATIENCE) == 0
        kept = _kept(server)
        assert {**kept, "took": 0} == {**receipt, "took": 0}


def test_a_signal_leaves_a_receipt_too() -> None:
    with serving() as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert _kept(server)["cause"] == "signal"


def test_events_tell_of_the_stop() -> None:
    with serving() as server, Peer(server.address) as peer, Peer(server.address) as other:
        events = Follower(peer)
        other.ask("stop")
        assert events.until("stopping")["cause"] == "asked"
        assert events.until("stopped")["took"] < 15


def test_all_who_ask_get_the_receipt_and_the_first_says_why() -> None:
    with serving() as server, Peer(server.address) as peer, Peer(server.address) as other:
        stubborn = peer.open("exec", shell="trap '' TERM; echo up; while :; do sleep 0.05; done")
        stubborn.lines(1)
        first = peer.open("stop", by="first", grace=60)
        first.accepted()
        second = other.open("stop", by="second", grace=0)
        assert second.accepted()["within"] <= 1.0
        receipts = first.end(), second.end()
        assert receipts[0] == receipts[1]
        assert (receipts[0]["by"], receipts[0]["grace"]) == ("first", 60.0)
        assert server.process.wait(PATIENCE) == 0


def test_a_stop_that_is_asked_for_with_more_time_gets_no_more() -> None:
    with serving() as server, Peer(server.address) as peer:
        stubborn = peer.open("exec", shell="trap '' TERM; echo up; while :; do sleep 0.05; done")
        stubborn.lines(1)
        with _within(2.0, server):
            first = peer.open("stop", grace=2)
            assert first.accepted()["within"] <= 2.0
            assert peer.open("stop", grace=3600).accepted()["within"] <= 2.0
            server.process.send_signal(signal.SIGTERM)
            first.end()


def test_who_connects_while_it_stops_is_heard_and_gets_a_clear_no() -> None:
    with serving() as server, Peer(server.address) as peer:
        stubborn = peer.open("exec", shell="trap 'echo no' TERM; echo up; while :; do sleep 0.05; done")
        stubborn.lines(1)
        peer.open("stop", grace=3600).accepted()
        stubborn.lines(2)
        with Peer(server.address) as late:
            assert late.ask("status")["stopping"] == "asked"
            for op, fields in (("exec", {"argv": ["true"]}), ("shell", {})):
                with pytest.raises(Failed) as refused:
                    late.ask(op, **fields)
                assert (refused.value.kind, refused.value.code) == (Kind.REJECT, "shutting_down")
            assert late.ask("stop", grace=0)["cause"] == "asked"
        assert server.process.wait(PATIENCE) == 0


# ------------------------------------------------------------------------------------------------------------ the order


def test_hooks_run_when_all_programs_have_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    config = f"""
[stop]
hooks = ["echo first >> {log}", ["/bin/sh", "-c", "echo second >> {log}"], "echo no >&2; exit 3", ["/nowhere"]]
"""
    with serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open(
            "exec",
            shell=f"trap 'sleep 0.2; echo program >> {log}; exit' TERM; echo up; while :; do sleep 0.05; done",
        )
        call.lines(1)
        hooks = peer.ask("stop")["hooks"]
        assert log.read_text().split() == ["program", "first", "second"]
        assert [hook["ok"] for hook in hooks] == [True, True, False, False]
        assert hooks[2]["why"] == "it ended with 3: no"
        assert "no such file" in hooks[3]["why"]


def test_a_hook_that_takes_too_long_is_ended_and_the_next_has_its_turn(tmp_path: Path) -> None:
    config = f"""
[stop]
hooks = ["sleep 1000 & sleep 1000", "touch {tmp_path}/done"]
hook_timeout = "1s"
"""
    with serving(config=config) as server, Peer(server.address) as peer:
        before = living()
        hooks = peer.ask("stop")["hooks"]
        assert [hook["ok"] for hook in hooks] == [False, True]
        assert "it was ended after" in hooks[0]["why"]
        assert hooks[0]["took"] >= 1
        assert (tmp_path / "done").exists()
        assert server.process.wait(PATIENCE) == 0
        assert {pid: name for pid, name in living().items() if pid not in before} == {}


def test_hooks_that_hang_leave_time_for_the_disks() -> None:
    config = '[stop]\nhooks = ["trap \'\' TERM; sleep 1000", "true"]\nhook_timeout = "1h"\n'
    _settle()
    # What is left for the disks is a sixteenth of this, and a process has to start in it.
    with serving(config=config) as server, Peer(server.address) as peer, _within(10.0, server):
        receipt = peer.ask("stop", grace=10)
        assert receipt["hooks"][0]["ok"] is False
        assert any(each["synced"] for each in receipt["filesystems"])


# -------------------------------------------------------------------------------------------------------- what may hang


@pytest.mark.parametrize("taken", [False, True], ids=["asked and not heard", "heard and not answered"])
def test_a_file_system_that_does_not_answer_is_told_and_not_waited_for(tmp_path: Path, taken: bool) -> None:
    """Heard and not answered is the state that no signal ends."""
    _settle()
    with hanging_mount(tmp_path) as hanging, serving() as server, Peer(server.address) as peer:
        hanging.answer()
        before = set(living())
        with _within(2.0, server):
            call = peer.open("stop", grace=2)
            call.accepted()
            if taken:
                hanging.take()
            receipt = call.end()
            dead = _system(receipt, hanging.path)
            assert (dead["synced"], dead["why"]) == (False, "it did not answer in time")
            others = [
                each
                for each in receipt["filesystems"]
                if each["path"] != hanging.path and each["type"] != "tmpfs"
            ]
            assert all(each["synced"] for each in others)
        watched: list[Watched] = []
        for pid in living():
            with contextlib.suppress(ProcessLookupError):  # it ends in this moment
                watched += [] if pid in before else [Watched(pid)]
        assert len(watched) <= 1
    for each in watched:
        with each:
            each.wait()


def test_a_command_that_cannot_be_killed_is_told_and_not_waited_for(tmp_path: Path) -> None:
    config = '[command]\ncgroup = "off"\n'
    with hanging_mount(tmp_path) as hanging, serving(config=config) as server, Peer(server.address) as peer:
        hanging.answer()
        # A daemon that nobody knows any more has its turn when all jobs have ended, or when the time for that is over.
        daemon = peer.open("exec", shell="(exec setsid env -i sleep 1000 >/dev/null 2>&1 & echo $!)")
        daemon.end()
        call = peer.open("exec", argv=["ls", hanging.path], id="stuck")
        pid = call.accepted()["pid"]
        hanging.take()
        with Watched(int(daemon.stdout)) as unknown, _within(2.0, server), Watched(pid) as stuck:
            receipt = peer.ask("stop", grace=2)
            assert [each["id"] for each in receipt["unreached"]["processes"]] == ["stuck"]
            assert call.end()["outcome"] == "unknown"
            assert stuck.lives
            unknown.wait()
        dead = _system(receipt, hanging.path)
        assert not dead["synced"]
        watched = Watched(pid)
    with watched:
        watched.wait()


def test_a_client_that_never_reads_does_not_hold_it_up() -> None:
    with serving() as server, Peer(server.address) as peer, Peer(server.address, window=2**30) as deaf:
        deaf.open("exec", argv=["yes"])
        deaf.receive()
        with _within(2.0, server):
            assert peer.ask("stop", grace=2)["cause"] == "asked"


def test_what_forks_as_it_is_ended_does_not_outlive_the_grace() -> None:
    with serving() as server, Peer(server.address) as peer:
        before = set(living())
        call = peer.open(
            "exec",
            shell="trap 'setsid sh -c \"trap : TERM; sleep 1000\" & ' TERM; echo up; while :; do sleep 0.01; done",
        )
        call.lines(1)
        with _within(3.0, server):
            peer.ask("stop", grace=3)
        assert {pid for pid in living() if pid not in before} == set()


@pytest.mark.parametrize("grace", [0, 0.2])
def test_little_time_is_enough_for_the_order(grace: float) -> None:
    with serving() as server, Peer(server.address) as peer:
        stubborn = peer.open("exec", shell="trap '' TERM; echo up; while :; do sleep 0.05; done")
        stubborn.lines(1)
        with _within(1.0, server):
            receipt = peer.ask("stop", grace=grace)
        assert receipt["ended"]["jobs"][0]["status"] == 137


def test_a_receipt_that_cannot_be_written_is_still_told(tmp_path: Path) -> None:
    with serving() as server, Peer(server.address) as peer:
        (server.directory / "receipt.json").mkdir()
        assert peer.ask("stop")["cause"] == "asked"
        assert server.process.wait(PATIENCE) == 0
        assert os.strerror(errno.EISDIR) in server.log


# --------------------------------------------------------------------------------------------------------------- PID 1


@pytest.mark.parametrize(("action", "said"), [("poweroff", b"p"), ("reboot", b"b"), ("exit", b"x\0")])
def test_whoever_is_pid_1_is_told_what_was_asked(action: str, said: bytes, tmp_path: Path) -> None:
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    starter = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        with (
            serving(
                prefix=[sys.executable, "-c", starter, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                environment={"LISTEN_FDNAMES": "init"},
            ) as server,
            Peer(server.address) as peer,
        ):
            peer.ask("stop", action=action)
            ours.settimeout(PATIENCE)
            assert ours.recv(16) == said
            assert server.process.wait(PATIENCE) == 0
