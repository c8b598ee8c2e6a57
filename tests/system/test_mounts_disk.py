"""Disks: found, made, checked, grown, filled, pulled; and a workspace on one that is kept across sessions."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.disks import MIB, loop, make_image, mount_of, one, run
from tests.support.life import Follower, serving
from tests.support.peer import Failed, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    before = set(os.listdir("/mnt"))
    yield
    for name in set(os.listdir("/mnt")) - before:
        shutil.rmtree(f"/mnt/{name}")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as peer:
        yield peer


def refused(peer: Peer, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  whatever a test asks for
    with pytest.raises(Failed) as caught:
        peer.ask("mount", type="block", name="disk", **fields)
    return caught.value.fields


# ------------------------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_disk_is_found_by_what_is_on_it(peer: Peer, tmp_path: Path, kind: str) -> None:
    image = make_image(tmp_path / "image", 320 * MIB if kind == "xfs" else 32 * MIB, kind, "gd-find")
    with loop(image) as device:
        uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", device).strip()
        for source in ("label=gd-find", f"uuid={uuid}", f"UUID={uuid.upper()}", device):
            found = peer.ask("mount", type="block", name="disk", source=source)
            assert (found["file_system"], found["device"], found["state"]) == (kind, device, "mounted")
            Path("/mnt/disk/file").write_text(source)
            peer.ask("unmount", path="disk")
        error = refused(peer, source="label=gd-nobody", timeout=3)
        assert "no disk has label=gd-nobody" in error["message"]


def test_two_that_look_the_same_are_not_guessed_between(peer: Peer, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 16 * MIB, "ext4", "gd-twin")
    shutil.copy(image, tmp_path / "twin")
    with loop(image), loop(tmp_path / "twin"):
        assert "is of 2 disks" in refused(peer, source="label=gd-twin", timeout=3)["message"]


# ---------------------------------------------------------------------------------------------------------- formatting


@pytest.mark.parametrize(("kind", "size"), [("ext4", 32), ("xfs", 320)])
def test_an_empty_disk_is_formatted_when_that_is_said_and_is_the_users(
    peer: Peer, tmp_path: Path, kind: str, size: int
) -> None:
    with loop(make_image(tmp_path / "image", size * MIB)) as device:
        assert 'format = "ext4" makes one' in refused(peer, source=device)["message"]
        found = peer.ask("mount", type="block", name="disk", source=device, format=kind, owner="nobody")
        assert found["file_system"] == kind
        assert any("formatted" in note for note in found["notes"])
        assert os.stat("/mnt/disk").st_uid == 65534
        Path("/mnt/disk/kept").touch()
        peer.ask("unmount", path="disk")
        found = peer.ask("mount", type="block", name="disk", source=device, format=kind)
        assert not any("formatted" in note for note in found["notes"])
        assert Path("/mnt/disk/kept").exists()


@pytest.mark.parametrize("what", ["swap", "a byte at the end", "a byte in the middle", "partitions", "btrfs"])
def test_one_with_anything_on_it_never_is(peer: Peer, tmp_path: Path, what: str) -> None:
    image = make_image(tmp_path / "image", 64 * MIB)
    if what == "swap":
        run("mkswap", str(image))
    else:
        offset, data = {
            "a byte at the end": (64 * MIB - 1, b"x"), "a byte in the middle": (8193 * 1024, b"x"),
            "partitions": (510, b"\x55\xaa"), "btrfs": (0x10040, b"_BHRfS_M"),
        }[what]  # fmt: skip
        with image.open("r+b") as file:
            file.seek(offset)
            file.write(data)
    before = image.read_bytes()
    with loop(image) as device:
        message = refused(peer, source=device, format="ext4")["message"]
    assert (
        "is not formatted" in message
        or "has swap" in message
        or "has dos" in message
        or "has btrfs" in message
    )
    assert image.read_bytes() == before


# ------------------------------------------------------------------------------------------------------------ checking


def test_a_torn_image_is_mended_as_far_as_that_is_safe_and_only_then_on_request(
    peer: Peer, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "image", 32 * MIB, "ext4", "gd-torn")
    run("debugfs", "-w", "-R", "write /etc/passwd kept", str(image))
    # As a machine that lost its power in the middle of things: counts that are wrong, an inode that nobody names.
    run("debugfs", "-w", "-R", "set_super_value free_blocks_count 7", str(image))
    run("debugfs", "-w", "-R", "set_super_value state 0", str(image))
    with loop(image) as device:
        found = peer.ask("mount", type="block", name="disk", source=device)
        assert any("mended" in note for note in found["notes"]), found
        assert Path("/mnt/disk/kept").read_text() == Path("/etc/passwd").read_text()
        peer.ask("unmount", path="disk")
    # A directory whose block is nonsense: whoever mends that decides what is lost.
    run("debugfs", "-w", "-R", "set_inode_field <2> block[0] 0", str(image))
    run("debugfs", "-w", "-R", "set_inode_field <2> block[IND] 99999999", str(image))
    run("debugfs", "-w", "-R", "clri <11>", str(image))
    run("debugfs", "-w", "-R", "set_super_value state 2", str(image))
    with loop(image) as device:
        message = refused(peer, source=device)["message"]
        assert "is damaged, and mending it may lose something" in message
        assert 'fsck = "all"' in message
        found = peer.ask("mount", type="block", name="disk", source=device, fsck="all")
        assert any("mended" in note for note in found["notes"])


#: Growing ext4 while it is used takes this right, which a machine in a sandbox may not have.
_CAP_SYS_RESOURCE = 24


def may_grow_ext4() -> bool:
    (line,) = (
        each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("CapEff:")
    )
    return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def test_a_disk_grows_with_its_device(peer: Peer, tmp_path: Path) -> None:
    for kind, size in (("xfs", 320), ("ext4", 32)):
        image = make_image(tmp_path / kind, size * MIB, kind, "gd-grow")
        with image.open("r+b") as file:
            file.truncate(3 * size * MIB)
        with loop(image) as device:
            found = peer.ask("mount", type="block", name="disk", source=device)
            (note,) = found["notes"]
            if kind == "ext4" and not may_grow_ext4():
                assert "could not grow: Operation not permitted; guestd needs CAP_SYS_RESOURCE" in note
            else:
                assert "grown from" in note
                assert one(peer.ask("mounts"), "/mnt/disk")["total"] > 2.5 * size * MIB
            peer.ask("unmount", path="disk")


def test_a_disk_that_is_made_larger_while_it_is_used_is_grown_soon(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 320 * MIB, "xfs", "gd-live")
    config = "[storage]\ncheck = '1s'\n[[mount]]\nname = 'disk'\ntype = 'block'\nsource = 'label=gd-live'\n"
    with loop(image) as device, serving(config=config) as server, Peer(server.address) as peer:
        follower = Follower(peer)
        follower.until("mounted", path="/mnt/disk")
        with image.open("r+b") as file:
            file.truncate(640 * MIB)
        run("losetup", "-c", device)
        assert follower.until("mount_grown", path="/mnt/disk")["after"] > 500 * MIB


# ------------------------------------------------------------------------------------------------------- going wrong


def test_a_disk_that_fills_up_is_told_before_and_after(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 32 * MIB, "ext4", "gd-full")
    config = "[storage]\ncheck = '1s'\nspace = 10\n[[mount]]\nname = 'disk'\ntype = 'block'\nsource = 'label=gd-full'\n"
    with (
        loop(image),
        serving(config=config) as server,
        Peer(server.address) as peer,
        Peer(server.address) as other,
    ):
        follower = Follower(other)
        follower.until("mounted", path="/mnt/disk")
        full = peer.open("exec", shell="cat /dev/zero > /mnt/disk/all", cwd="/")
        assert full.end()["code"] == 1
        assert b"No space left" in full.stderr
        assert "of its space is free" in follower.until("mount_trouble", trouble="space")["why"]
        assert "space" in one(peer.ask("mounts"), "/mnt/disk")["troubles"]
        assert peer.ask("status")["mounts"]["troubles"][0]["path"] == "/mnt/disk"
        os.unlink("/mnt/disk/all")
        follower.until("mount_recovered", trouble="space")


def test_a_disk_that_is_pulled_under_a_writer_is_told_and_comes_back_with_what_was_acknowledged(
    tmp_path: Path,
) -> None:
    image = make_image(tmp_path / "image", 32 * MIB, "ext4", "gd-pull")
    whole = image.stat().st_size
    config = "[storage]\ncheck = '1s'\n[[mount]]\nname = 'disk'\ntype = 'block'\nsource = 'label=gd-pull'\n"
    with (
        loop(image) as device,
        serving(config=config) as server,
        Peer(server.address) as peer,
        Peer(server.address) as other,
    ):
        follower = Follower(other)
        follower.until("mounted", path="/mnt/disk")
        peer.ask("exec", shell="echo acknowledged > /mnt/disk/kept; sync /mnt/disk/kept", cwd="/")
        kept = image.read_bytes()
        with image.open("r+b") as file:
            file.truncate(64 * 1024)
        run("losetup", "-c", device)
        writer = peer.open(
            "exec", shell="while echo more > /mnt/disk/file; do sync -f /mnt/disk; done; exit 3", cwd="/"
        )
        assert writer.end()["code"] != 0
        trouble = follower.until("mount_trouble", path="/mnt/disk", trouble="read_only")
        assert "after an error" in trouble["why"]
        assert peer.ask("exec", argv=["true"], cwd="/")["code"] == 0
        # Plugged in again.
        with image.open("r+b") as file:
            file.write(kept)
            file.truncate(whole)
        run("losetup", "-c", device)
        peer.ask("unmount", path="disk", force=True)
        found = peer.ask("mount", path="disk")
        assert found["state"] == "mounted"
        assert Path("/mnt/disk/kept").read_text() == "acknowledged\n"


# -------------------------------------------------------------------------------------------------------- the workspace


def test_a_workspace_is_kept_across_stop_and_start_with_all_that_can_be_in_one(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 64 * MIB)
    with loop(image) as device:
        config = (
            'workspace = "/mnt/work"\nuser = "nobody"\n[[mount]]\npath = "/mnt/work"\ntype = "block"\n'
            f'source = "{device}"\nformat = "ext4"\n'
        )
        with serving(config=config) as server, Peer(server.address) as peer:
            script = """
                set -e
                echo text > file; ln file link; ln -s file soft; mkfifo fifo; mkdir -m 2750 dir; chmod 4755 file
                python3 -c "import os; os.setxattr('file', 'user.note', b'kept')"
                truncate -s 10M sparse; pwd
            """
            call = peer.open("exec", shell=script)
            assert call.end()["code"] == 0, call.stderr
            assert call.stdout == b"/mnt/work\n"
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind("/mnt/work/socket")
            found = peer.ask("status")["workspace"]
            assert (found["persistent"], found["why"]) == (True, None)
            receipt = peer.ask("stop")
            (disk,) = (each for each in receipt["filesystems"] if each["path"] == "/mnt/work")
            assert (disk["synced"], disk["unmounted"], disk["why"]) == (True, "plain", None)
        assert mount_of("/mnt/work") is None
        assert "clean" in run("e2fsck", "-n", device)
        with serving(config=config) as server, Peer(server.address) as peer:
            assert peer.ask("exec", argv=["true"])["code"] == 0
            entry = one(peer.ask("mounts"), "/mnt/work")
            assert not any("formatted" in note or "mended" in note for note in entry["notes"])
            with contextlib.chdir("/mnt/work"):
                assert Path("file").read_text() == "text\n"
                assert os.stat("file").st_nlink == 2
                assert stat.S_IMODE(os.stat("file").st_mode) == 0o4755
                assert os.getxattr("file", "user.note") == b"kept"
                assert os.readlink("soft") == "file"
                assert stat.S_ISFIFO(os.stat("fifo").st_mode)
                assert stat.S_ISSOCK(os.stat("socket").st_mode)
                assert stat.S_IMODE(os.stat("dir").st_mode) == 0o2750
                assert os.stat("sparse").st_blocks == 0
                assert os.stat("file").st_uid == 65534


def test_a_guestd_that_is_killed_leaves_its_mounts_to_the_next(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 32 * MIB, "ext4", "gd-next")
    config = "[[mount]]\nname = 'disk'\ntype = 'block'\nsource = 'label=gd-next'\n"
    with loop(image):
        with serving(config=config) as server, Peer(server.address) as peer:
            assert peer.ask("exec", argv=["true"], cwd="/")["code"] == 0
            server.kill()
        assert mount_of("/mnt/disk") == "ext4"
        with serving(config=config) as server, Peer(server.address) as peer:
            assert peer.ask("exec", argv=["true"], cwd="/")["code"] == 0
            assert one(peer.ask("mounts"), "/mnt/disk")["adopted"] is True
            peer.ask("unmount", path="disk")
