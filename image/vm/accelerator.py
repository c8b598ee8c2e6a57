"""Which accelerator QEMU can use here: KVM where a guest has really run with it, else its own emulation (TCG).

/dev/kvm may be there and be of no use: in a container without the right, or in a virtual machine whose own hypervisor
emulates less than a kernel needs. So a guest of sixteen instructions is started that prints its line; the answer is
kept for this boot of this machine.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from pathlib import Path

from image.vm import cache
from image.vm.failure import find

KVM, TCG = "kvm", "tcg"
_SECONDS = 5.0
_WORD = b"guestd\n"
_DONE = 0x10


def choose() -> str:
    """KVM or TCG. GUESTD_TEST_ACCELERATOR says it without a probe."""
    if asked := os.environ.get("GUESTD_TEST_ACCELERATOR"):
        return asked
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache.folder() / "accelerator"
    try:
        known, _, found = note.read_text().partition(" ")
        if known == boot and found in {KVM, TCG}:
            return found
    except OSError:
        pass
    found = KVM if probe(KVM) else TCG
    note.parent.mkdir(parents=True, exist_ok=True)
    fresh = note.with_name(f"{note.name}.{os.getpid()}")
    fresh.write_text(f"{boot} {found}")
    fresh.rename(note)
    return found


def arguments(kind: str) -> list[str]:
    """For QEMU."""
    return ["-accel", KVM, "-cpu", "host"] if kind == KVM else ["-accel", "tcg,thread=multi", "-cpu", "max"]


def probe(kind: str) -> bool:
    """A guest says its word on the serial line, and ends. Far below a second where it works."""
    with tempfile.TemporaryDirectory(prefix="guestd-probe-") as scratch:
        image = Path(scratch) / "boot"
        image.write_bytes(_sector())
        command = [
            find("qemu-system-x86_64"), *arguments(kind), "-M", "pc", "-m", "16", "-nodefaults", "-no-user-config",
            "-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            "-drive", f"file={image},format=raw,if=ide,readonly=off",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            return False
        # The device's own way of saying a status: twice the value, and one.
        return done.returncode == _DONE * 2 + 1 and _WORD in done.stdout


def _sector() -> bytes:
    """A boot sector: print each letter on the first serial port, then write to the device that ends QEMU."""
    code = b""
    code += b"\xba" + struct.pack("<H", 0x3F8)  # mov dx, 0x3f8
    for letter in _WORD:
        code += b"\xb0" + bytes([letter]) + b"\xee"  # mov al, letter; out dx, al
    code += b"\xba" + struct.pack("<H", 0xF4)  # mov dx, 0xf4
    code += b"\xb0" + bytes([_DONE]) + b"\xee"  # mov al, done; out dx, al
    code += b"\xf4\xeb\xfd"  # hlt; and again
    return code.ljust(510, b"\0") + b"\x55\xaa"
