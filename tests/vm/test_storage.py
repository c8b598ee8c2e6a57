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


def _check(disk: Path) -> None:
    """Nothing was left to mend: e2fsck's status is 0 for a file system that is clean, and was unmounted."""
    done = subprocess.run(
        [find("e2fsck"), "-fn", str(disk)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recovering journal" not in done.stdout + done.stderr


def test_a_disk_is_whole_after_a_stop_and_there_at_the_next_start(tmp_path: Path) -> None:
    disk = vm.disk(tmp_path / "workspace.img")
    with vm.running(disk, stopped=True) as guest:
        assert guest.run("stat -f -c %T /mnt/workspace") == "ext2/ext3"
        told = guest.run(WRITE)
        receipt = _receipt(guest)
        guest.machine.wait_for("X_GUESTD_END")
    assert guest.machine.herald.seen["X_GUESTD_END"] == "power-off"
    assert "/mnt/workspace" in json.dumps(receipt, default=str)
    _check(disk)
    content = subprocess.run(
        [find("debugfs"), "-R", "cat deep/er/random", str(disk)], capture_output=True, check=True
    ).stdout
    assert hashlib.sha256(content).hexdigest() == told
    with vm.running(disk, stopped=True) as guest:
        assert guest.run("cat /mnt/workspace/link; sha256sum </mnt/workspace/deep/er/random").split()[:2] == [
            "kept",
            told,
        ]
        # Whatever has written a moment ago is on the disk too: nobody has called sync.
        guest.run("echo late >/mnt/workspace/late")
        guest.machine.power_button()
    _check(disk)
    late = subprocess.run(
        [find("debugfs"), "-R", "cat late", str(disk)], capture_output=True, check=True
    ).stdout
    assert late == b"late\n"


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
