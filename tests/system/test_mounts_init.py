"""Mounts under `guestd init`: they outlive a serve that is killed, and are down at the end of PID 1."""

from __future__ import annotations

import json
import os
import select
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.disks import MIB, loop, make_image, one, run
from tests.support.init import booted
from tests.support.peer import Failed, Peer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.init import Guest

FOLDER = {"type": "fuse", "name": "folder", "program": "rclone", "options": ["config=/dev/null"]}


def peer_of(guest: Guest) -> Peer:
    return Peer(f"unix:{guest.directory}/guestd.sock")


def test_after_kill_9_all_mounts_and_their_programs_go_on_with_what_they_need(tmp_path: Path) -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse: no program can mount anything here")
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "file").write_text("seen")
    image = make_image(tmp_path / "image", 32 * MIB, "ext4", "gd-init")
    config = "[[mount]]\nname = 'disk'\ntype = 'block'\nsource = 'label=gd-init'\n"
    with loop(image), booted(fake=False, config=config, environment={"HOME": "/root"}) as guest:
        with peer_of(guest) as peer:
            peer.ask("mount", type="tmpfs", name="scratch", options=["size=1M"])
            peer.ask("mount", source=str(tmp_path / "shown"), env={"SECRET": "kept"}, **FOLDER)
            before = {each["id"]: each["pid"] for each in peer.ask("ps")["jobs"]}["fuse-folder"]
            os.kill(guest.outer(peer.ask("status")["pid"]), signal.SIGKILL)
        guest.wait_for("serve is ready", times=2)
        with peer_of(guest) as peer:
            assert peer.ask("exec", argv=["true"], cwd="/")["code"] == 0
            found = peer.ask("mounts")
            states = {
                each["path"]: (each["state"], each["origin"], each["adopted"]) for each in found["mounts"]
            }
            assert states == {
                "/mnt/disk": ("mounted", "config", True),
                "/mnt/scratch": ("mounted", "request", True),
                "/mnt/folder": ("mounted", "request", True),
            }
            assert {each["id"]: each["pid"] for each in peer.ask("ps")["jobs"]}["fuse-folder"] == before
            # And its program can be started again, with what only the guestd before had been told.
            with Peer(f"unix:{guest.directory}/guestd.sock") as other:
                events = other.open("events", follow=True)
                events.accepted()
                os.kill(guest.outer(before), signal.SIGKILL)
                while not any(each["event"] == "mount_lost" for each in events.events):
                    events.step()
                seen = len(events.events)
                while not any(each["event"] == "mounted" for each in events.events[seen:]):
                    events.step()
            now = {each["id"]: each["pid"] for each in peer.ask("ps")["jobs"]}["fuse-folder"]
            assert now != before
            with open(f"/proc/{guest.outer(now)}/environ", "rb") as file:
                assert b"SECRET=kept" in file.read()
            call = peer.open("exec", argv=["cat", "/mnt/folder/file"])
            call.end()
            assert call.stdout == b"seen"
            # What a guestd before this one has mounted is taken down as if this one had.
            receipt = peer.ask("stop", action="exit")
            ways = {each["path"]: each.get("unmounted") for each in receipt["filesystems"]}
            assert (ways["/mnt/disk"], ways["/mnt/folder"]) == ("plain", "plain"), receipt["filesystems"]
        assert guest.wait() == 0
        assert "unmounted /mnt/disk" not in guest.console
    assert "clean" in run("e2fsck", "-n", str(image))


def test_a_serve_that_dies_as_a_disk_comes_up_has_mounted_it_all_the_same(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 32 * MIB, "ext4", "gd-moment")
    # Larger than what is on it: after the kernel has mounted it, serve is not done with it yet.
    os.truncate(image, 64 * MIB)
    with loop(image) as device, booted(fake=False) as guest:
        serve = guest.outer(_status(guest)["pid"])
        with open(f"/proc/{guest.pid}/mountinfo", encoding="utf-8") as table, peer_of(guest) as peer:
            changed = select.poll()
            changed.register(table, select.POLLPRI)
            peer.open("mount", type="block", name="disk", source=device)
            while "/mnt/disk" not in table.read():
                assert changed.poll(30_000), "it was not mounted"
                table.seek(0)
            os.kill(serve, signal.SIGKILL)
        guest.wait_for("serve is ready", times=2)
        with peer_of(guest) as peer:
            # Whoever has asked was not answered, and finds what was asked for.
            assert peer.ask("mount", type="block", name="disk", source=device)["adopted"]
            receipt = peer.ask("stop", action="exit")
        ways = {each["path"]: each.get("unmounted") for each in receipt["filesystems"]}
        assert ways["/mnt/disk"] == "plain"
        assert guest.wait() == 0


def test_a_workload_that_runs_is_taken_over_also_where_its_mount_is_gone(tmp_path: Path) -> None:
    """It was nobody's until the mount was back: not asked how it is, and not the first to hear of a stop."""
    source = tmp_path / "source"
    source.mkdir()
    config = (
        f"[[mount]]\nname = 'data'\ntype = 'bind'\nsource = '{source}'\n[workload]\ncommand = 'sleep 1000'\n"
    )
    with booted(fake=False, config=config) as guest:
        while (before := _status(guest)["workload"])["state"] != "running":
            pass
        with peer_of(guest) as peer:
            peer.ask("unmount", path="data")
        source.rmdir()
        os.kill(guest.outer(_status(guest)["pid"]), signal.SIGKILL)
        guest.wait_for("serve is ready", times=2)
        while (now := _status(guest))["workload"]["state"] != "running":
            pass
        assert now["mounts"]["ready"] is False
        assert now["workload"]["pid"] == before["pid"]


def _status(guest: Guest) -> dict[str, Any]:
    with peer_of(guest) as peer:
        return peer.ask("status")


def test_what_serve_could_not_take_down_is_taken_down_by_pid_1(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 32 * MIB, "ext4", "gd-left")
    config = (
        "[[mount]]\nname = 'disk'\ntype = 'block'\nsource = 'label=gd-left'\n[init]\nrestart_delay = '10s'\n"
    )
    with loop(image), booted(fake=False, config=config) as guest:
        with peer_of(guest) as peer:
            peer.ask("exec", shell="echo kept > /mnt/disk/file", cwd="/")
            pid = guest.outer(peer.ask("status")["pid"])
        # It dies as PID 1 is told to end: nobody but that is left.
        os.kill(pid, signal.SIGSTOP)
        guest.signal(signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)
        guest.wait()
        assert "unmounted /mnt/disk" in guest.console
    assert "clean" in run("e2fsck", "-n", str(image))
    assert run("debugfs", "-R", "cat file", str(image)) == "kept\n"


def test_an_init_that_is_only_tried_mounts_nothing_on_somebodys_machine() -> None:
    config = "[[mount]]\nname = 'never'\ntype = 'tmpfs'\n"
    with booted(fake=False, first=False, config=config) as guest:
        with peer_of(guest) as peer:
            found = peer.ask("mounts")
            assert "not PID 1" in found["refused"]
            assert one(found, "/mnt/never")["state"] == "failed"
            with pytest.raises(Failed, match="not PID 1"):
                peer.ask("mount", type="tmpfs", name="x")
            receipt = peer.ask("stop", action="exit")
        assert guest.wait() == 0
    assert all("unmounted" not in each for each in receipt["filesystems"])
    assert json.dumps(receipt)
