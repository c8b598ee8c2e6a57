"""Mounting at run time and by the settings, outside of the supervisor: what is right, what is wrong, what hangs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.disks import mount_of, one, run
from tests.support.hanging import hanging_mount
from tests.support.life import Follower, serving
from tests.support.peer import Failed, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as peer:
        yield peer


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Mount points are made as they are needed; the next test has to find none."""
    before = set(os.listdir("/mnt"))
    yield
    for name in set(os.listdir("/mnt")) - before:
        shutil.rmtree(f"/mnt/{name}")


@pytest.fixture
def place() -> Path:
    """A directory of this test's own."""
    path = Path("/mnt/here")
    path.mkdir()
    return path


def refused(peer: Peer, op: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  whatever a test asks for
    with pytest.raises(Failed) as caught:
        peer.ask(op, **fields)
    return caught.value.fields


# -------------------------------------------------------------------------------------------------------- at run time


def test_memory_is_mounted_told_and_taken_down(server: Server, peer: Peer) -> None:
    made = peer.ask("mount", type="tmpfs", name="scratch", options=["size=8M"], mode=0o1777)
    assert (made["path"], made["state"], made["created"], made["adopted"]) == (
        "/mnt/scratch",
        "mounted",
        True,
        False,
    )
    assert mount_of("/mnt/scratch") == "tmpfs"
    assert stat.S_IMODE(os.stat("/mnt/scratch").st_mode) == 0o1777
    again = peer.ask("mount", type="tmpfs", name="scratch", options=["size=8M"], mode=0o1777)
    assert again["created"] is False
    entry = one(peer.ask("mounts"), "/mnt/scratch")
    assert (entry["total"], entry["origin"], entry["why"]) == (8 << 20, "request", None)
    assert refused(peer, "mount", type="tmpfs", name="scratch")["code"] == "conflict"
    assert peer.ask("unmount", path="scratch") == {
        "path": "/mnt/scratch",
        "name": "scratch",
        "ways": ["plain"],
    }
    assert mount_of("/mnt/scratch") is None
    assert peer.ask("mounts")["mounts"] == []
    assert refused(peer, "unmount", path="scratch")["code"] == "not_found"


def test_its_root_belongs_to_whom_it_should(peer: Peer) -> None:
    peer.ask("mount", type="tmpfs", name="theirs", owner="nobody")
    assert os.stat("/mnt/theirs").st_uid == 65534
    assert "no user" in refused(peer, "mount", type="tmpfs", name="x", owner="noone-such")["message"]


def test_a_bind_shows_a_directory_and_may_be_read_only(peer: Peer, place: Path) -> None:
    (place / "file").write_text("seen")
    peer.ask("mount", type="bind", path="/mnt/there", source=str(place), read_only=True)
    assert Path("/mnt/there/file").read_text() == "seen"
    with pytest.raises(OSError, match="Read-only"):
        Path("/mnt/there/file").write_text("")
    (place / "file").write_text("the original can be written")


def test_an_overlay_has_the_image_below_and_the_workspace_above(peer: Peer, place: Path) -> None:
    (place / "image").mkdir()
    (place / "image" / "file").write_text("of the image")
    peer.ask("mount", type="overlay", name="both", source=str(place / "image"), upper=str(place / "upper"))
    Path("/mnt/both/file").write_text("changed")
    assert (place / "image" / "file").read_text() == "of the image"
    assert (place / "upper" / "file").read_text() == "changed"


def test_the_writable_directory_of_an_overlay_is_no_symlink_to_somewhere_else(
    peer: Peer, place: Path
) -> None:
    (place / "up").symlink_to("/etc")
    error = refused(peer, "mount", type="overlay", name="both", source="/usr/share", upper=str(place / "up"))
    assert "is a symbolic link, to /etc" in error["message"]


def test_all_who_ask_for_the_same_at_once_get_the_same_and_one_who_takes_it_down_waits(peer: Peer) -> None:
    calls = [peer.open("mount", type="tmpfs", name="same") for _ in range(5)]
    # It is known from then on, and is being mounted.
    peer.ask("status")
    last = peer.open("unmount", path="same")
    states = set[str]()
    for call in calls:
        try:
            states.add(call.end()["state"])
        except Failed as failed:
            states.add(failed.fields["code"])
    # Which of them was first is not settled, but each hears of an end.
    assert states <= {"mounted", "mount_failed"}
    assert last.end()["path"] == "/mnt/same"
    assert mount_of("/mnt/same") is None
    assert peer.ask("mounts")["mounts"] == []


def test_a_resume_says_how_mounts_do_and_tries_what_was_lost(place: Path) -> None:
    config = (
        f'[[mount]]\nname = "late"\ntype = "bind"\nsource = "{place}/in"\ntimeout = 1\nrequired = false\n'
    )
    with serving(config=config) as server, Peer(server.address) as peer, Peer(server.address) as other:
        Follower(other).until("mount_failed", path="/mnt/late")
        (place / "in").mkdir()
        assert peer.ask("resume")["mounts"] == {"/mnt/late": "mounted"}


def test_what_stands_on_another_goes_first(peer: Peer) -> None:
    peer.ask("mount", type="tmpfs", name="base")
    peer.ask("mount", type="tmpfs", path="/mnt/base/in")
    assert refused(peer, "unmount", path="base")["code"] == "conflict"
    peer.ask("unmount", path="/mnt/base/in")
    peer.ask("unmount", path="base")


def test_who_uses_it_is_named_and_only_force_takes_it_away(peer: Peer) -> None:
    peer.ask("mount", type="tmpfs", name="used")
    call = peer.open("exec", argv=["sleep", "1000"], cwd="/mnt/used", id="holder")
    pid = call.accepted()["pid"]
    error = refused(peer, "unmount", path="used")
    assert error["code"] == "mount_failed"
    assert f"sleep ({pid})" in error["message"]
    assert "force" in error["message"]
    assert one(peer.ask("mounts"), "/mnt/used")["state"] == "mounted"
    assert peer.ask("unmount", path="used", force=True)["ways"] == ["lazy"]
    assert mount_of("/mnt/used") is None
    peer.ask("kill", id="holder")


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": "tmpfs"}, "path"),
        ({"type": "ext4", "name": "x"}, "type"),
        ({"type": "block", "name": "x", "source": "sdb"}, "source"),
        ({"type": "tmpfs", "name": "x", "options": "size=1"}, "options"),
        ({"type": "tmpfs", "name": "x", "mode": "0755"}, "mode"),
        ({"type": "tmpfs", "path": "/proc"}, "path"),
    ],
)
def test_a_field_that_is_wrong_is_named(peer: Peer, fields: dict[str, Any], field: str) -> None:
    error = refused(peer, "mount", **fields)
    assert (error["code"], error["field"]) == ("bad_request", field)


def test_the_kernels_own_words_come_along(peer: Peer) -> None:
    error = refused(peer, "mount", type="tmpfs", name="x", options=["sise=1M"])
    assert any("Unknown parameter 'sise'" in line for line in error["said"]), error
    assert peer.ask("mounts")["mounts"] == []


@pytest.mark.parametrize("kind", ["file", "fifo", "symlink", "symlink above", "full", "socket"])
def test_a_mount_point_has_to_be_an_empty_directory(peer: Peer, place: Path, kind: str) -> None:
    target = place / "target"
    at = target
    if kind == "file":
        target.write_text("something")
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(target))
    elif kind == "full":
        target.mkdir()
        (target / "file").write_text("hidden?")
    else:
        (place / "real").mkdir()
        target.symlink_to("real")
        at = target / "in" if "above" in kind else target
    message = refused(peer, "mount", type="tmpfs", path=str(at))["message"]
    expected = {"file": "is a file", "fifo": "is a FIFO", "full": "not empty", "socket": "is a socket"}
    assert expected.get(kind, "is a symbolic link, to real") in message
    assert mount_of(str(at)) is None
    if kind == "full":
        peer.ask("mount", type="tmpfs", path=str(at), cover=True)
        assert not list(target.iterdir())


def test_what_is_mounted_by_somebody_is_adopted_or_is_an_error(peer: Peer, place: Path) -> None:
    peer.ask("exec", argv=["mount", "-t", "tmpfs", "none", str(place)])
    assert (
        "another mount already: tmpfs"
        in refused(peer, "mount", type="bind", path=str(place), source="/etc")["message"]
    )
    found = peer.ask("mount", type="tmpfs", path=str(place))
    assert (found["adopted"], found["state"]) == (True, "mounted")
    # It was not made by this guestd, so the end of the session leaves it: see the stop's own test.
    peer.ask("unmount", path=str(place))
    assert mount_of(str(place)) is None


def test_there_is_a_limit() -> None:
    with serving(config="[limits]\nmounts = 1\n") as server, Peer(server.address) as peer:
        peer.ask("mount", type="tmpfs", name="one")
        error = refused(peer, "mount", type="tmpfs", name="two")
        assert (error["code"], error["setting"]) == ("limit", "limits.mounts")


def test_one_that_somebody_takes_down_is_told_and_stays_down_until_it_is_asked_for() -> None:
    config = '[[mount]]\nname = "gone"\ntype = "tmpfs"\nrequired = false\n'
    with serving(config=config) as server, Peer(server.address) as peer, Peer(server.address) as other:
        follower = Follower(other)
        follower.until("mounted", path="/mnt/gone")
        peer.ask("exec", argv=["umount", "/mnt/gone"])
        assert follower.until("mount_lost", path="/mnt/gone")["again"] is False
        entry = one(peer.ask("mounts"), "/mnt/gone")
        assert entry["state"] == "lost"
        assert "somebody has unmounted it" in entry["why"]
        assert peer.ask("mount", path="gone")["state"] == "mounted"
        assert mount_of("/mnt/gone") == "tmpfs"


# -------------------------------------------------------------------------------------------------------- what hangs


def test_a_mount_that_hangs_is_given_up_at_its_time_and_hangs_nobody_else(peer: Peer, place: Path) -> None:
    with hanging_mount(place) as hanging:
        slow = peer.open("mount", type="bind", name="hung", source=f"{hanging.path}/in", timeout=2)
        slow.accepted()
        hanging.answer()
        hanging.take()
        assert peer.ask("exec", argv=["echo", "quick"], cwd="/")["code"] == 0
        with pytest.raises(Failed) as caught:
            slow.end()
        assert "did not answer within" in caught.value.fields["message"]
        assert mount_of("/mnt/hung") is None
        assert peer.ask("mounts")["mounts"] == []


# ------------------------------------------------------------------------------------------------------ the settings

FAILING = """\
[[mount]]
name = "needed"
type = "bind"
source = "/mnt/not-there"
timeout = 1
"""


def test_work_is_refused_without_a_required_mount_unless_it_is_asked_for_all_the_same() -> None:
    with serving(config=FAILING) as server, Peer(server.address) as peer:
        error = refused(peer, "exec", argv=["true"])
        assert error["code"] == "mount_failed"
        assert "/mnt/needed is required and is not mounted" in error["message"]
        assert "/mnt/not-there: No such file or directory" in error["message"]
        assert refused(peer, "shell", argv=["true"])["code"] == "mount_failed"
        assert peer.ask("exec", argv=["true"], without_mounts=True)["code"] == 0
        status = peer.ask("status")
        assert status["mounts"]["ready"] is False
        assert status["mounts"]["troubles"][0]["path"] == "/mnt/needed"
        os.mkdir("/mnt/not-there")
        assert peer.ask("mount", path="needed")["state"] == "mounted"
        assert peer.ask("exec", argv=["true"])["code"] == 0


def test_the_workload_waits_for_what_it_needs_each_time_that_it_is_started() -> None:
    """It was `ended` while it waited, so that an invocation was turned away; and started again without its mount."""
    config = f"{FAILING}[workload]\ncommand = 'sleep 1000'\nbackoff = '100ms'\n"
    with serving(config=config) as server, Peer(server.address) as peer:

        def state() -> tuple[str, int]:
            found = peer.ask("status")["workload"]
            return "backoff" if found["restarts_in"] is not None else found["state"], found["starts"]

        assert state() == ("waiting", 0)
        os.mkdir("/mnt/not-there")
        peer.ask("mount", path="needed")
        while state()[0] != "running":
            pass
        peer.ask("unmount", path="needed")
        os.rmdir("/mnt/not-there")
        assert refused(peer, "mount", path="needed")["code"] == "mount_failed"
        peer.ask("kill", id="workload")
        while (found := state())[0] in {"ended", "backoff"}:
            pass
        assert found == ("waiting", 1)
        os.mkdir("/mnt/not-there")
        peer.ask("mount", path="needed")
        while state() != ("running", 2):
            pass


def test_work_may_be_allowed_without_it() -> None:
    with serving(config=f"{FAILING}[storage]\nrequired = 'allow'\n") as server, Peer(server.address) as peer:
        assert peer.ask("exec", argv=["true"])["code"] == 0


def test_or_the_session_stops() -> None:
    with serving(config=f"{FAILING}[storage]\nrequired = 'stop'\n", expected_status=None) as server:
        assert server.process.wait(30) == 125
        assert json.loads((server.directory / "receipt.json").read_text())["cause"] == "mounts"


def test_work_that_comes_early_waits_and_loses_nothing_of_its_input(place: Path) -> None:
    config = f'[[mount]]\nname = "late"\ntype = "bind"\nsource = "{place}/source"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open("exec", argv=["sh", "-c", "cat; ls /mnt/late"], stdin="stream", cwd="/")
        call.data(0, b"typed early\n")
        call.event(event="eof", stream=0, offset=12)
        assert peer.ask("status")["mounts"]["ready"] is False
        # All at once: it is looked for all the time.
        (place / "made").mkdir()
        (place / "made" / "there").touch()
        (place / "made").rename(place / "source")
        call.end()
        assert call.stdout == b"typed early\nthere\n"


def test_who_waits_may_go_away(place: Path) -> None:
    config = f'[[mount]]\nname = "late"\ntype = "bind"\nsource = "{place}/source"\ntimeout = 20\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open("exec", argv=["touch", f"{place}/ran"], id="left", cwd="/")
        call.reset()
        (place / "source").mkdir()
        assert peer.ask("exec", argv=["ls", "/mnt/late"])["code"] == 0
        assert not (place / "ran").exists()


def test_mistakes_in_the_settings_are_told_with_their_lines_and_secrets_are_not(tmp_path: Path) -> None:
    file = tmp_path / "guestd.toml"
    fuse = '[[mount]]\nname = "c"\ntype = "fuse"\nsource = "c"\nenv = { KEY = "hush" }\n'
    file.write_text(f'[[mount]]\nname = "a"\ntype = "tmpfs"\n[[mount]]\nname = "b"\ntype = "block"\n{fuse}')
    for more in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "guestd", "check", "--config", str(file), *more],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "hush" not in done.stdout
        assert "mount[1].source" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "guestd", "check", "--config", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f'{file}:4: mount[1].source is ""; expected serial=' in done.stdout
    assert done.returncode != 0


# -------------------------------------------------------------------------------------------- the end, and the next one


def test_the_end_takes_down_what_guestd_has_mounted_in_reverse_and_nothing_else(place: Path) -> None:
    config = '[[mount]]\nname = "low"\ntype = "tmpfs"\n'
    config += f'[[mount]]\npath = "/mnt/low/high"\ntype = "bind"\nsource = "{place}"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        peer.ask("exec", argv=["mkdir", "/mnt/theirs"])
        peer.ask("exec", argv=["mount", "-t", "tmpfs", "x", "/mnt/theirs"])
        assert peer.ask("mount", type="tmpfs", name="theirs")["adopted"] is True
        assert mount_of("/mnt/low/high") is not None
        # A program of somebody else's that stays holds it no longer than it may.
        fd = os.open("/mnt/low", os.O_RDONLY)
        try:
            receipt = peer.ask("stop")
        finally:
            os.close(fd)
        assert receipt["took"] < receipt["grace"]
        assert mount_of("/mnt/low/high") is None
        assert mount_of("/mnt/low") is None
        assert mount_of("/mnt/theirs") == "tmpfs"
    run("umount", "/mnt/theirs")


def test_without_the_right_to_mount_it_is_refused_and_the_workspace_is_a_directory() -> None:
    prefix = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    config = '[[mount]]\nname = "never"\ntype = "tmpfs"\n'
    with serving(config=config, prefix=prefix) as server, Peer(server.address) as peer:
        found = peer.ask("mounts")
        assert "CAP_SYS_ADMIN" in found["refused"]
        assert one(found, "/mnt/never")["state"] == "failed"
        assert "CAP_SYS_ADMIN" in refused(peer, "mount", type="tmpfs", name="x")["message"]
        assert "CAP_SYS_ADMIN" in refused(peer, "exec", argv=["true"])["message"]


def test_the_workspace_is_made_and_is_said_not_to_last() -> None:
    with (
        serving(config='workspace = "/mnt/fresh/work"\nuser = "nobody"\n') as server,
        Peer(server.address) as peer,
    ):
        # Where the machine has disks that could be one, those are looked at first.
        while not (found := peer.ask("status")["workspace"])["there"]:
            pass
        assert os.stat("/mnt/fresh/work").st_uid == 65534
        assert found["persistent"] is False
        assert "lost with this machine" in found["why"]


def test_a_workspace_that_is_mounted_already_is_taken(place: Path) -> None:
    with serving(config=f'workspace = "{place}"\n') as server, Peer(server.address) as peer:
        assert peer.ask("status")["workspace"]["persistent"] is False
    run("mount", "--bind", "/var", str(place))
    try:
        with serving(config=f'workspace = "{place}"\n') as server, Peer(server.address) as peer:
            found = peer.ask("status")["workspace"]
            assert (found["persistent"], found["why"]) == (True, None)
        assert mount_of(str(place)) is not None
    finally:
        run("umount", str(place))
