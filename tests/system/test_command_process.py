"""The process a command is: privileges, descriptors, signals, session. All three ways to start one make the same."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guestd.config import capability_numbers
from tests.support.commands import NOBODY, WAYS, parse_status, run, serving_commands, status_of, taking_way
from tests.support.hanging import hanging_mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.peer import Peer


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with serving_commands() as (_, peer):
        yield peer


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    with taking_way(request.param, tmp_path) as fields:
        yield fields


# ----------------------------------------------------------------------------------------------------------- privileges


def test_privileges_are_taken_away_by_config_for_good() -> None:
    config = '[command]\nno_new_privs = true\ndrop_capabilities = ["CAP_NET_RAW", "CAP_SYS_ADMIN"]\n'
    with serving_commands(config=config) as (server, peer):
        gone = sum(1 << number for number in capability_numbers(["CAP_NET_RAW", "CAP_SYS_ADMIN"]))
        for fields in ({}, {"user": NOBODY}, {"user": 31337}):
            status = status_of(peer, **fields)
            assert status["NoNewPrivs"] == "1"
            for which in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
                assert int(status[f"Cap{which}"], 16) & gone == 0
        own = status_of(peer)
        supervisor = parse_status(Path(f"/proc/{server.pid}/status").read_text())
        # Those, and no others.
        assert int(own["CapEff"], 16) == int(supervisor["CapEff"], 16) & ~gone
        assert run(peer, "sh", "-c", "mount -t tmpfs none /mnt/workspace 2>&1; true").text != ""


def test_all_capabilities_can_go() -> None:
    with serving_commands(config='[command]\ndrop_capabilities = ["all"]\n') as (_, peer):
        status = status_of(peer)
        assert [int(status[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5
        assert status["Uid"].split()[0] == "0"


def test_privileges_are_left_alone_otherwise(peer: Peer, way: dict[str, Any]) -> None:
    own = parse_status(Path("/proc/self/status").read_text())
    status = status_of(peer, **way)
    assert status["NoNewPrivs"] == "0"
    assert (status["CapEff"], status["CapBnd"]) == (own["CapEff"], own["CapBnd"])


# --------------------------------------------------------------------------------------- descriptors, signals, session


#: Opens nothing itself, as listing the folder would.
_DESCRIPTORS = "n=0; while [ $n -lt 300 ]; do [ -e /proc/$$/fd/$n ] && echo $n; n=$((n+1)); done"


def test_it_has_the_three_descriptors_and_no_other(peer: Peer, way: dict[str, Any]) -> None:
    for stdin, fds in (("none", "0 1 2"), ("stream", "0 1 2"), ("closed", "1 2")):
        assert run(peer, "sh", "-c", _DESCRIPTORS, stdin=stdin, **way).text.split() == fds.split(), stdin
    assert run(peer, "readlink", "/proc/self/fd/0", **way).text == "/dev/null"
    assert run(peer, "readlink", "/proc/self/fd/0", stdin="stream", **way).text.startswith("pipe:")


def test_input_none_is_an_end_of_file_and_closed_is_no_descriptor(peer: Peer, way: dict[str, Any]) -> None:
    assert run(peer, "cat", stdin="none", **way).text == ""
    done = run(peer, "cat", stdin="closed", **way)
    assert done.result["code"] == 1
    assert b"Bad file descriptor" in done.stderr


def test_it_leads_a_session_of_its_own_without_a_terminal(peer: Peer, way: dict[str, Any]) -> None:
    call = peer.open("exec", argv=["cat", "/proc/self/stat"], **way)
    pid = call.accepted()["pid"]
    call.end()
    _, parent, group, session, terminal = call.stdout.decode().rpartition(") ")[2].split()[:5]
    assert (int(group), int(session), terminal) == (pid, pid, "0")
    assert int(parent) == peer.ask("status")["pid"]


def _signals(status: dict[str, str]) -> dict[str, int]:
    return {which: int(status[f"Sig{which}"], 16) for which in ("Blk", "Ign", "Cgt")}


def test_no_signal_is_blocked_or_ignored(peer: Peer, way: dict[str, Any]) -> None:
    """Python ignores SIGPIPE and SIGXFSZ, guestd blocks SIGCHLD, and libc's posix_spawn ignores two of its own."""
    assert _signals(status_of(peer, **way)) == {"Blk": 0, "Ign": 0, "Cgt": 0}


def test_nor_is_what_guestd_was_started_with_ignored(tmp_path: Path) -> None:
    """As by nohup, or a shell's `&`. Ignored signals would survive every exec that follows."""
    ignored = "trap '' HUP INT QUIT PIPE USR1 USR2; exec \"$@\""
    with serving_commands(prefix=["sh", "-c", ignored, "sh"]) as (_, peer):
        for fields in ({}, {"user": NOBODY}):
            assert _signals(status_of(peer, **fields)) == {"Blk": 0, "Ign": 0, "Cgt": 0}
        with hanging_mount(tmp_path):
            assert _signals(status_of(peer)) == {"Blk": 0, "Ign": 0, "Cgt": 0}


def test_a_pipeline_ends_quietly_when_its_reader_has_gone(peer: Peer, way: dict[str, Any]) -> None:
    done = run(peer, "sh", "-c", "yes | head -n 1", **way)
    assert (done.text, done.stderr) == ("y", b"")


def test_guestd_started_without_standard_descriptors_gives_its_commands_theirs() -> None:
    """Whatever guestd opens first would come to lie at 0, 1 and 2, where the child's own are put."""
    with serving_commands(prefix=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]) as (_, peer):
        for fields in ({}, {"user": NOBODY}, {"stdin": "closed"}, {"stdin": "closed", "user": NOBODY}):
            done = run(peer, "sh", "-c", "echo out; echo err >&2", **fields)
            assert (done.result["code"], done.stdout, done.stderr) == (0, b"out\n", b"err\n"), fields
        assert run(peer, "/no/such/file", user=NOBODY).result["outcome"] == "not_started"


def test_what_guestd_inherited_is_not_handed_on() -> None:
    """A descriptor of whoever started guestd: a log, a lock, a socket of the container's engine."""
    ours, theirs = socket.socketpair()
    with ours, theirs, serving_commands(pass_fds=[theirs.fileno()]) as (_, peer):
        for fields in ({}, {"user": NOBODY}):
            assert run(peer, "sh", "-c", _DESCRIPTORS, **fields).text.split() == ["0", "1", "2"]
