"""The host's side of a machine's vsock: the kernel's where it has one, else a process beside QEMU.

Such a process may end while the machine runs. QEMU takes no second one for a socket that it has lost, so a new device
is plugged in, as a card into a slot: the guest's connections are broken off by that, and who listens in it goes on.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from image.vm import debian
from image.vm.failure import Failure, find, has

if TYPE_CHECKING:
    from pathlib import Path

    from image.vm.qemu import Monitor

#: What it and its slot are called in QEMU.
DEVICE, SLOT = "vsock", "vsock-slot"
_BACKEND = f"/machine/peripheral/{DEVICE}/virtio-backend"
_IS_DRIVEN = "DRIVER_OK"
#: For a guest under emulation to let go of a device, and to take another.
_SECONDS = 60.0
_LOOK_AGAIN = 0.02


def has_vhost(device: str = "/dev/vhost-vsock") -> bool:
    """Has this kernel the host's side of vsock? Opening its device tells, and loads the module if there is one."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def program() -> str:
    """vhost-device-vsock: this machine's, or that of Debian sid, which needs nothing newer than what Debian 12 has."""
    if has("vhost-device-vsock"):
        return find("vhost-device-vsock")
    return str(debian.unpacked("vhost-device-vsock", "sid") / "usr/bin/vhost-device-vsock")


def words(path: Path) -> list[str]:
    """For QEMU: a slot, and in it the device of the process that listens at `path`."""
    return [
        "-chardev", f"socket,id={DEVICE},path={path}", "-device", f"pcie-root-port,id={SLOT},chassis=1",
        "-device", f"vhost-user-vsock-pci,id={DEVICE},chardev={DEVICE},bus={SLOT}",
    ]  # fmt: skip


def unplug(monitor: Monitor) -> None:
    """The guest has let go of it when this returns."""
    monitor.ask("device_del", id=DEVICE)
    while monitor.wait("DEVICE_DELETED", _SECONDS)["data"].get("device") != DEVICE:
        pass
    monitor.ask("chardev-remove", id=DEVICE)


def plug(monitor: Monitor, path: Path) -> None:
    """The guest uses it when this returns."""
    address = {"type": "unix", "data": {"path": str(path)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    monitor.ask("chardev-add", id=DEVICE, backend=backend)
    monitor.ask("device_add", driver="vhost-user-vsock-pci", id=DEVICE, chardev=DEVICE, bus=SLOT)
    due = time.monotonic() + _SECONDS
    while _IS_DRIVEN not in str(monitor.ask("x-query-virtio-status", path=_BACKEND)["status"]):
        if time.monotonic() > due:
            raise Failure(f"the guest has not taken its new vsock within {_SECONDS:.0f} s")
        time.sleep(_LOOK_AGAIN)
