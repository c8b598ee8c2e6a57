"""Machines for tests: those that image/run starts, with the frames and commands of the other tiers."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from image.vm import manifest, sit, vsock
from image.vm.failure import Failure, find
from image.vm.machine import Machine
from image.vm.qemu import Hardware
from image.vm.run import make_disk
from tests.support.peer import Peer
from tests.support.tiers import CANNOT

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from image.vm.manifest import Manifest

#: For a command in a machine under emulation, on a machine that is busy.
PATIENCE = 90.0
#: Where the shared machine relays from, and the port of the host's where it leads.
RELAY = 4700
_PROGRAMS = (
    "qemu-system-x86_64",
    "mke2fs",
    "debugfs",
    "depmod",
    "busybox",
    "debootstrap",
    "virtiofsd",
    "qemu-img",
    "ganesha.nfsd",
)


def unavailable() -> str | None:
    """Why no machine can be started here, or None. What can be installed is no reason: tests/run does that."""
    if platform.machine() != "x86_64":
        return f"the machines are for x86_64, and this is {platform.machine()}"
    if os.geteuid() != 0:
        return "a root file system is made as root"
    for program in _PROGRAMS:
        try:
            find(program)
        except Failure as failure:
            return str(failure)
    return None


@cache
def built() -> Manifest:
    """The machine that `image/try --vm` starts."""
    return manifest.read(sit.machine())


class Guest:
    """A machine and what is asked of it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.monitor  # noqa: B018  opened here, not by the first test that asks it something

    @property
    def address(self) -> str:
        return self.machine.address

    def peer(self, **options: Any) -> Peer:  # noqa: ANN401  as the one it stands for
        peer = Peer(self.address, token=self.machine.hardware.token or None, **options)
        peer.sock.settimeout(PATIENCE)
        return peer

    def run(self, shell: str, *, status: int | None = 0, **fields: Any) -> str:  # noqa: ANN401  fields of the request
        """A shell string as root, to its end; what it printed. `status`: what it must end with."""
        with self.peer() as peer:
            call = peer.open("exec", shell=shell, user="root", **fields)
            end = call.end()
        told = f"{call.stdout.decode(errors='replace')}{call.stderr.decode(errors='replace')}"
        if status is not None:
            assert end["outcome"] == "exited", (end, told)
            assert end["code"] == status, (shell, end["code"], told)
        return call.stdout.decode(errors="replace").strip()

    @contextlib.contextmanager
    def listening(self, port: int) -> Generator[socket.socket]:
        """On a port of the host's, for what the guest connects to CID 2."""
        path = self.machine.folder / f"vsock_{port}"
        hybrid = self.address.startswith("hybrid:")
        with socket.socket(socket.AF_UNIX if hybrid else socket.AF_VSOCK) as listener:
            listener.settimeout(PATIENCE)
            listener.bind(str(path) if hybrid else (socket.VMADDR_CID_ANY, port))
            listener.listen()
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)

    def console(self) -> str:
        return self.machine.console.read_text(errors="replace")

    def wait_for_console(self, text: str, since: int = 0) -> str:
        """Until that is on the console, which has no event."""
        due = time.monotonic() + PATIENCE
        while text not in (found := self.console()[since:]):
            assert time.monotonic() < due, f"{text!r} did not come: {found[-2000:]}"
            time.sleep(0.02)
        return found


@contextlib.contextmanager
def running(
    workspace: Path | None = None,
    *,
    manifest: Manifest | None = None,
    stopped: bool = False,
    **hardware: Any,  # noqa: ANN401  of Hardware's
) -> Generator[Guest]:
    """A machine that is ready. `stopped`: it ends itself within the block; else it is unplugged behind it."""
    hardware.setdefault("memory", 512)
    append = hardware.pop("append", "")
    with Machine(
        manifest or built(),
        Hardware(
            workspace=workspace, append=f"guestd.idle.timeout=0 guestd.idle.lifetime=0 {append}", **hardware
        ),
    ) as machine:
        machine.wait_until_ready()
        guest = Guest(machine)
        yield guest
        if stopped:
            assert machine.wait_for_end() == 0
        elif not machine.running:
            raise AssertionError(f"the machine has ended by itself; {machine.last_words()}")


def disk(path: Path, mebibytes: int = 256) -> Path:
    """A workspace disk, as `image/run --workspace FILE` makes one."""
    make_disk(path, mebibytes << 20)
    return path


def check_disk(path: Path) -> None:
    """Nothing was left to mend: e2fsck's status is 0 for a file system that is clean, and was unmounted."""
    done = subprocess.run(
        [find("e2fsck"), "-fn", str(path)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recovering journal" not in done.stdout + done.stderr


def main() -> int:
    """`python -m tests.support.vm`: make what the tier starts. Says why when it cannot."""
    why = unavailable()
    if why is not None:
        print(why)
        return CANNOT
    try:
        built()
        vsock.program()
    except Failure as failure:
        print(failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
