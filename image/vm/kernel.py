"""A kernel, and those of its modules that a machine needs, in an order in which they can be loaded.

Debian's kernels have their drivers as modules, so an initramfs has to bring them. A kernel of one's own (`--kernel`)
comes with a folder of modules, or with none: then everything has to be in it.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from image.vm import debian
from image.vm.failure import Failure, find, has, run

#: Loaded before the root is mounted. Those that a kernel does not have are in it, or not needed. ext4 asks for crc32c
#: by that name alone, so no file says that it depends on one.
FIRST = (
    "virtio_pci", "virtio_mmio", "virtio_blk", "crc32c_generic", "crc32c_intel", "overlay",
    "vmw_vsock_virtio_transport", "virtio_rng", "virtiofs", "virtio_net", "button", "evdev", "qemu_fw_cfg", "ptp_kvm",
)  # fmt: skip
#: In the root file system for modprobe(8), which the kernel calls as they are needed.
LATER = (
    "vsock_loopback", "nfs", "nfsv3", "nfsv4", "9p", "9pnet_virtio", "loop", "tun", "veth", "bridge", "isofs", "vfat",
    "ip_tables", "iptable_nat", "iptable_filter", "nf_tables", "nft_chain_nat", "nft_compat",
    "xt_MASQUERADE", "xt_conntrack", "xt_addrtype", "br_netfilter",
)  # fmt: skip
_ROOTS = {"ext4": "ext4", "erofs": "erofs", "squashfs": "squashfs"}
_ELF = b"\x7fELF"


@dataclass(frozen=True)
class Kernel:
    """`image` is what a boot loader takes; `modules` the folder lib/modules/RELEASE, or None."""

    image: Path
    release: str
    modules: Path | None


def debians(package: str = debian.KERNEL) -> Kernel:
    """`package` as apt takes it: NAME, or NAME/SUITE for one of another release."""
    name, _, suite = package.partition("/")
    root = debian.unpacked(name, suite or None)
    image = next(iter(root.glob("boot/vmlinuz-*")), None)
    if image is None:
        raise Failure(f"there is no kernel in Debian's package {package}")
    release = image.name.removeprefix("vmlinuz-")
    return Kernel(image, release, root / "lib/modules" / release)


def given(image: Path, modules: Path | None) -> Kernel:
    if not image.is_file():
        raise Failure(f"there is no kernel {image}")
    if modules is not None and not (modules / "kernel").is_dir():
        raise Failure(f"{modules} is no folder of modules: lib/modules/RELEASE is, with `kernel` in it")
    return Kernel(image, modules.name if modules else _release(image), modules)


def _release(image: Path) -> str:
    """What a bzImage says of itself; an ELF file does not."""
    with image.open("rb") as file:
        head = file.read(0x10000)
    if head[0x202:0x206] != b"" and head[0x202:0x206] == b"HdrS":
        (at,) = struct.unpack_from("<H", head, 0x20E)
        return head[at + 0x200 :].split(b"\0", 1)[0].split(b" ", 1)[0].decode("ascii", "replace")
    return ""


@dataclass(frozen=True)
class Modules:
    """`first`: by their names in an initramfs, in the order in which to load them. `root`: all of them, and what
    depmod(8) says of them, by their names in the root file system.
    """

    first: dict[str, bytes]
    root: dict[str, bytes]


def modules(kernel: Kernel, root: str, more: tuple[str, ...]) -> Modules:
    """Those that a machine with a root of that type needs, or may."""
    if kernel.modules is None:
        return Modules({}, {})
    with tempfile.TemporaryDirectory(prefix="guestd-modules-") as scratch:
        base = Path(scratch)
        place = base / "lib/modules" / kernel.release
        place.mkdir(parents=True)
        # depmod wants to write beside them, and what is in the cache stays as it is.
        (place / "kernel").symlink_to(kernel.modules / "kernel")
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            if (kernel.modules / name).exists():
                shutil.copy(kernel.modules / name, place / name)
        run("depmod", "-b", base, kernel.release)
        first = _closure(place, (*FIRST, _ROOTS[root], *more))
        later = [each for each in _closure(place, LATER) if each not in first]
        files = {each: (place / each).read_bytes() for each in (*first, *later)}
        # Now what depmod says of these alone.
        (place / "kernel").unlink()
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        run("depmod", "-b", base, kernel.release)
        above = f"lib/modules/{kernel.release}"
        whole = {f"{above}/{name}": content for name, content in files.items()}
        whole |= {f"{above}/{each.name}": each.read_bytes() for each in sorted(place.glob("modules.*"))}
        return Modules({f"{above}/{each}": files[each] for each in first}, whole)


def _closure(place: Path, names: tuple[str, ...]) -> list[str]:
    """Each with all that it depends on before it, as paths below lib/modules/RELEASE."""
    depends: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in (place / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[path] = rest.split()
        paths[os.path.basename(path).split(".ko")[0].replace("-", "_")] = path
    found: list[str] = []
    for name in names:
        path = paths.get(name.replace("-", "_"))
        if path is not None:
            # Those that a module needs stand behind it in reverse.
            found += [each for each in (*reversed(depends[path]), path) if each not in found]
    return found


def elf(image: Path) -> bytes | None:
    """The kernel as Firecracker wants it, without its own unpacker; None where there is nothing to unpack it with."""
    data = image.read_bytes()
    if data.startswith(_ELF):
        return data
    if data[0x202:0x206] != b"HdrS":
        raise Failure(f"{image} is neither a bzImage nor an ELF kernel")
    sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[(sectors + 1) * 512 + offset :][:length]
    for magic, command in (
        (b"\x02\x21\x4c\x18", ("lz4", "-dc")), (b"\x28\xb5\x2f\xfd", ("zstd", "-dc")), (b"\x1f\x8b", ("gzip", "-dc")),
        (b"\xfd7zXZ", ("xz", "-dc")),
    ):  # fmt: skip
        if payload.startswith(magic):
            return _unpack(payload, command) if has(command[0]) else None
    return None


def _unpack(payload: bytes, command: tuple[str, ...]) -> bytes:
    import subprocess

    # Behind it stands its size, which such programs complain of and have unpacked everything before.
    done = subprocess.run([find(command[0]), *command[1:]], input=payload, capture_output=True, check=False)
    if not done.stdout.startswith(_ELF):
        raise Failure(
            f"{command[0]} could not unpack the kernel: {done.stderr.decode(errors='replace')[:300]}"
        )
    return done.stdout
