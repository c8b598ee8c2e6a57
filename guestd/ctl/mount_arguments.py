"""The arguments of the commands about file systems, and what their help says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from guestd.ctl import values
from guestd.ctl.arguments import of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Command = Callable[[str, str, str], argparse.ArgumentParser]

_TYPES = ("block", "virtiofs", "9p", "nfs", "overlay", "bind", "tmpfs", "fuse")

MOUNT = """\
Mount a file system in the guest, and wait until it is there. With a path or a name alone: one that guestd knows, again.

  guestctl mount serial=data /mnt/data --format ext4      a disk; formatted if it is empty
  guestctl mount -t virtiofs share /mnt/share             what the host shares under that tag
  guestctl mount fs.example:/export /mnt/nfs -o vers=4.1  from a server
  guestctl mount -t tmpfs /mnt/scratch -o size=1G         memory
  guestctl mount -t overlay /image /mnt/work --upper /mnt/data/work
  guestctl mount -t fuse my-bucket /mnt/bucket --program s3fs --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY"""

UNMOUNT = """\
Take a mount of guestd's down, by its path or its name, when all of it is written. One that is in use stays, and those
who use it are named; --force takes it away under them."""

MOUNTS = """\
The file systems that guestd mounts: where, of what, and how they do."""


def add(command: Command) -> None:
    """All of them."""
    mount = command("mount", MOUNT, "guestctl mount [-t TYPE] [SOURCE] PATH [OPTIONS]")
    put = mount.add_argument
    put("words", nargs="+", metavar="[SOURCE] PATH", help="what, and where: a path, or a name for /mnt/NAME")
    put("-t", "--type", choices=_TYPES, help="what it is, where the source does not tell")
    put(
        "-o", "--options", action="append", default=[], metavar="OPTION[,OPTION]", help="as mount(8) has them"
    )
    put("--name", help="its name (default: the last part of its path)")
    put("--read-only", action="store_true", help="nothing can be written")
    put("--owner", type=of(values.name_or_number), help="whom its root belongs to, by name or number")
    put("--mode", type=of(values.octal), metavar="MODE", help="the permissions of its root, such as 0750")
    put("--timeout", type=of(values.seconds), metavar="S", help="how long it may take (default 30)")
    put("--format", choices=("ext4", "xfs"), help="make this on the disk if it is empty")
    put("--fsck", choices=("safe", "all", "none"), help="which mistakes of a disk to mend (default: safe)")
    put("--no-grow", action="store_true", help="do not grow it with its disk")
    put("--cover", action="store_true", help="it may hide what is in the directory")
    put("--upper", metavar="DIR", help="the writable directory of an overlay")
    put("--work", metavar="DIR", help="the working directory of an overlay")
    put("--program", metavar="NAME", help="mount-s3, s3fs or rclone; or a whole command with {path} in it")
    put(
        "--env", type=of(_variable), action="append", default=[], metavar="K[=V]",
        help="a variable of that program alone; without =V it has the value that it has here; repeatable",
    )  # fmt: skip
    put("--env-file", metavar="FILE", help="a file in the guest with NAME=VALUE lines for it")
    unmount = command("unmount", UNMOUNT, "guestctl unmount PATH [--force]")
    unmount.add_argument("path", metavar="PATH", help="its path or its name")
    unmount.add_argument("--force", action="store_true", help="also when it is in use, or does not answer")
    command("mounts", MOUNTS, "guestctl mounts")


def _variable(text: str) -> tuple[str, str]:
    """What is named alone is a secret, perhaps, that is not to stand on a command line."""
    if "=" in text or text not in os.environ:
        return values.variable(text)
    return text, os.environ[text]
