"""A machine that goes back to where it was saved, with its memory and its disk: `resume` makes it another session."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from typing import TYPE_CHECKING

from image.vm.failure import find
from tests.support import vm
from tests.support.server import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.vm import Guest

COUNT = "i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); sleep 0.2; done"


def _go_back(guest: Guest) -> tuple[str, str]:
    """To the snapshot, and on from there. Its session's id, and what its kernel takes for random."""
    assert guest.machine.monitor.human("loadvm here") == ""
    with guest.peer() as peer:
        before = peer.hello["session_id"]
        found = peer.ask("resume", now=time.time(), entropy=os.urandom(64))
        assert found["previous"] == before
        assert found["clock"]["set"] is True
        assert found["clock"]["off"] > 1
        assert (found["entropy"]["bytes"], found["entropy"]["credited"]) == (64, True)
    assert abs(float(guest.run("date +%s.%N")) - time.time()) < vm.PATIENCE / 10
    random = guest.run("od -An -tx1 -N16 /dev/urandom")
    return found["session_id"], random


def test_two_lives_of_one_snapshot_are_two_sessions_and_their_jobs_go_on(tmp_path: Path) -> None:
    raw, disk = vm.disk(tmp_path / "raw", 64), tmp_path / "workspace.qcow2"
    subprocess.run([find("qemu-img"), "convert", "-O", "qcow2", str(raw), str(disk)], check=True)
    with vm.running(disk, network="user", port=free_port(), token=secrets.token_hex(16)) as guest:
        assert guest.run("stat -f -c %T /mnt/workspace") == "ext2/ext3"
        with guest.peer() as peer:
            first = peer.hello
            going = peer.open("exec", shell=COUNT, id="going")
            going.lines(3)
            guest.run("echo before >/mnt/workspace/before")
            assert guest.machine.monitor.human("savevm here") == ""
            guest.run("echo after >/mnt/workspace/after; sync")
            had = len(going.lines(going.stdout.count(b"\n") + 10))
        lives = [_go_back(guest), _go_back(guest)]
        assert len({first["session_id"], *(session for session, _ in lives)}) == 3
        assert lives[0][1] != lives[1][1]
        assert guest.run("ls /mnt/workspace").split() == ["before", "lost+found"]
        with guest.peer() as peer:
            assert peer.hello["boot_id"] == first["boot_id"]
            again = peer.open("attach", id="going", from_={"stdout": 0})
            assert again.lines(had + 10)[: had + 10] == [str(each) for each in range(had + 10)]
            assert again.gaps == []
            peer.ask("kill", id="going", signal="KILL")
