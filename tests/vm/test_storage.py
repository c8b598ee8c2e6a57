"""What a machine writes to its workspace is there after its end: on a disk, in a folder of the host, on a server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

from image.vm.failure import find
from tests.support import vm

if TYPE_CHECKING:
    from pathlib import Path

WRITE = """
cd /mnt/workspace && mkdir -p deep/er && head -c 5000000 /dev/urandom >deep/er/random && echo kept >kept &&
ln -s kept link && sha256sum <deep/er/random | cut -d' ' -f1
"""


def _receipt(guest: vm.Guest) -> dict[str, object]:
    with guest.peer() as peer:
        call = peer.open("stop", wait=True)
        return call.end()


def test_a_disk_is_whole_after_a_stop(tmp_path: Path) -> None:
    disk = vm.disk(tmp_path / "workspace.img")
    with vm.running(disk, stopped=True) as guest:
        assert guest.run("stat -f -c %T /mnt/workspace") == "ext2/ext3"
        told = guest.run(WRITE)
        receipt = _receipt(guest)
        guest.machine.wait_for("X_GUESTD_END")
    assert guest.machine.herald.seen["X_GUESTD_END"] == "power-off"
    assert "/mnt/workspace" in json.dumps(receipt, default=str)
    vm.check_disk(disk)
    content = subprocess.run(
        [find("debugfs"), "-R", "cat deep/er/random", str(disk)], capture_output=True, check=True
    ).stdout
    assert hashlib.sha256(content).hexdigest() == told


def test_a_folder_of_the_hosts(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "from-the-host").write_text("hello\n")
    with vm.running(folder, stopped=True) as guest:
        assert guest.run("stat -f -c %T /mnt/workspace") in {"fuseblk", "UNKNOWN (0x65735546)", "fuse"}
        assert guest.run("cat /mnt/workspace/from-the-host") == "hello"
        told = guest.run(WRITE)
        # Both see it while the machine runs.
        assert (folder / "kept").read_text() == "kept\n"
        _receipt(guest)
    assert hashlib.sha256((folder / "deep/er/random").read_bytes()).hexdigest() == told
    assert os.readlink(folder / "link") == "kept"
    # Between two machines it is the host's alone.
    (folder / "from-the-host").write_text("hello again\n")
    (folder / "kept").rename(folder / "moved")
    with vm.running(folder, stopped=True) as guest:
        found = guest.run(
            "cd /mnt/workspace && cat from-the-host moved && sha256sum <deep/er/random && ls"
        ).split()
        assert found == ["hello", "again", "kept", told, "-", "deep", "from-the-host", "link", "moved"]
        guest.run("cd /mnt/workspace && echo more >>moved && rm link && chown 1234 moved")
        guest.machine.power_button()
    assert (folder / "moved").read_text() == "kept\nmore\n"
    assert (folder / "moved").stat().st_uid == 1234
    assert not (folder / "link").is_symlink()
