"""The first root of a machine: busybox, the modules, and a script that switches to the real one (init.sh)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from image.vm.cpio import Device, Directory, Link, Program, archive
from image.vm.failure import Failure, find

if TYPE_CHECKING:
    from collections.abc import Mapping

    from image.vm.cpio import Entry

_SCRIPT = Path(__file__).with_name("init.sh")
_APPLETS = ("insmod", "mkdir", "mount", "reboot", "sh", "sleep", "switch_root")


def make(modules: Mapping[str, bytes], time: int) -> bytes:
    """`modules` by their names in it, in the order in which they are loaded."""
    busybox = Path(find("busybox")).read_bytes()
    if b"/ld-linux" in busybox[:4096]:
        raise Failure("this busybox needs shared libraries; on Debian: apt-get install busybox-static")
    entries: dict[str, Entry] = {
        "init": Program(_SCRIPT.read_bytes()),
        "bin/busybox": Program(busybox),
        # The kernel opens the console for PID 1 before anything is mounted.
        "dev/console": Device(5, 1),
        "dev/null": Device(1, 3, 0o666),
        "proc": Directory(),
        "sys": Directory(),
        "modules": "".join(f"/{name}\n" for name in modules).encode(),
    }
    entries |= {f"bin/{name}": Link("busybox") for name in _APPLETS}
    entries |= modules
    return archive(entries, time)
