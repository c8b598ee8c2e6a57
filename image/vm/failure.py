"""What a person who builds or starts a machine can do something about, said in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Programs and the Debian packages they come in, for those who lack them.
PACKAGES = {
    "apt-get": "apt", "apt-cache": "apt", "busybox": "busybox-static", "debootstrap": "debootstrap",
    "depmod": "kmod", "modprobe": "kmod", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs",
    "dumpe2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "debugfs": "e2fsprogs",
    "mkfs.erofs": "erofs-utils", "mksquashfs": "squashfs-tools", "lz4": "lz4", "zstd": "zstd",
    "qemu-system-x86_64": "qemu-system-x86", "virtiofsd": "qemu-system-common",
}  # fmt: skip
#: Where programs are that only root has in PATH, and those that QEMU brings along.
_MORE = "/usr/sbin:/sbin:/usr/lib/qemu:/usr/libexec"


class Failure(Exception):
    """Why it could not be done, and what would help."""


def say(text: str) -> None:
    print(f"guestd: {text}", file=sys.stderr, flush=True)


def find(program: str) -> str:
    """Its path. Failure names the package that it comes in."""
    found = shutil.which(program) or shutil.which(program, path=_MORE)
    if found is None:
        package = PACKAGES.get(program, program)
        raise Failure(f"there is no {program} here; on Debian: apt-get install {package}")
    return found


def has(program: str) -> bool:
    return bool(shutil.which(program) or shutil.which(program, path=_MORE))


def run(*command: str | Path, env: Mapping[str, str] | None = None, input: str | None = None) -> str:
    """Run a program to its end; returns what it printed. Failure has its last lines."""
    argv = [find(str(command[0])), *map(str, command[1:])]
    done = subprocess.run(
        argv, env=env, input="" if input is None else input, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        told = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise Failure(f"{' '.join(map(str, command))[:300]} ended with {done.returncode}:\n{told}")
    return done.stdout


def shown(command: Sequence[str]) -> str:
    import shlex

    return shlex.join(command)
