"""A machine that goes back to where it was saved, with its memory and its disk: `resume` makes it another session.

Its kernel is one that has a driver for the generation id, so that a copy in another QEMU is told by nobody but that.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from image.vm import build, manifest
from image.vm.failure import find
from image.vm.machine import Machine
from image.vm.qemu import Hardware
from tests.support import vm
from tests.support.life import Follower
from tests.support.server import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from image.vm.manifest import Manifest
    from tests.support.peer import Peer
    from tests.support.vm import Guest

#: The kernel that docs/machines.md names for machines that are copied.
KERNEL = "linux-image-amd64"
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


def _with_its_kernel(place: Path) -> Manifest:
    """The usual machine with another kernel and initramfs, as image/build makes them; its root is what takes long."""
    (place / "root/opt/guestd/bin").mkdir(parents=True)
    (place / "root/opt/guestd/bin/guestd").touch()
    made = manifest.read(
        build.build(build.Plan(source=place / "root", output=place / "built", kernel_package=KERNEL))
    )
    usual = vm.built()
    files = {part: {"file": str(made.file(part))} for part in ("kernel", "initramfs")}
    return replace(usual, fields={**usual.fields, **files})


def _reached(guest: Guest) -> Peer:
    """It says nothing on its console: it runs since long before."""
    due = time.monotonic() + vm.PATIENCE
    while True:
        try:
            return guest.peer()
        except (OSError, EOFError):
            assert guest.machine.running, guest.machine.last_words()
            assert time.monotonic() < due, guest.machine.last_words()
            time.sleep(0.05)


def test_two_lives_of_one_snapshot_are_two_sessions_and_their_jobs_go_on(tmp_path: Path) -> None:
    raw, disk = vm.disk(tmp_path / "raw", 64), tmp_path / "workspace.qcow2"
    subprocess.run([find("qemu-img"), "convert", "-O", "qcow2", str(raw), str(disk)], check=True)
    its = _with_its_kernel(tmp_path)
    hardware: dict[str, Any] = {"network": "user", "token": secrets.token_hex(16), "memory": 512}
    with vm.running(disk, manifest=its, port=free_port(), **hardware) as guest:
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
            _went_on(peer, had + 10)
            # What a program of the guest writes there is not the kernel's word.
            guest.run("echo '<5>random: crng reseeded due to virtual machine fork' >/dev/kmsg")
            assert peer.ask("status")["session_id"] == lives[1][0]
    # Another QEMU gives the same memory another generation id; nobody calls `resume`.
    again = Hardware(workspace=disk, port=free_port(), more=("-loadvm", "here"), **hardware)
    with Machine(its, again) as machine:
        guest = vm.Guest(machine)
        with _reached(guest) as peer:
            resumed = Follower(peer).until("resumed", cause="copy")
            found = peer.ask("status")
            assert resumed["session_id"] == found["session_id"]
            # Once, however many ways the kernel has to say it.
            assert found["generation"] == first["generation"] + 1
            assert found["session_id"] not in {first["session_id"], *(session for session, _ in lives)}
            _went_on(peer, had)
        with guest.peer() as peer:
            assert peer.hello["previous"] == [first["session_id"]]


def _went_on(peer: Peer, lines: int) -> None:
    """The job that ran when the machine was saved has lost nothing, and prints more."""
    call = peer.open("attach", id="going", from_={"stdout": 0})
    assert call.lines(lines)[:lines] == [str(each) for each in range(lines)]
    assert call.gaps == []
