"""Disks for tests: images behind loop devices of the machine's."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

MIB = 1 << 20


def make_image(path: Path, size: int, kind: str = "", label: str = "") -> Path:
    """An image: empty, or with a file system."""
    with path.open("wb") as file:
        file.truncate(size)
    if kind:
        run(f"mkfs.{kind}", "-q", "-L", label, str(path))
    return path


@contextlib.contextmanager
def loop(image: Path) -> Generator[str]:
    """A loop device for the image, for the length of a block. What is still mounted keeps it a little longer."""
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("this machine has no loop devices: no disk can be made of a file here")
    device = run("losetup", "-f", "--show", "--direct-io=off", str(image)).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=False, capture_output=True)


def run(*argv: str) -> str:
    """A program of the system's, to its end."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return subprocess.run(
        argv, check=True, text=True, capture_output=True, env={**os.environ, "PATH": path}
    ).stdout


def mount_of(path: str) -> str | None:
    """The type of what is mounted there."""
    with open("/proc/self/mountinfo") as file:
        found = [line.split(" - ")[1].split()[0] for line in file if line.split()[4] == path]
    return found[-1] if found else None


def one(found: dict[str, Any], path: str) -> dict[str, Any]:
    """That mount, of what `mounts` has answered."""
    (entry,) = (each for each in found["mounts"] if each["path"] == path)
    return entry
