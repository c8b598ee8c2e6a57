"""Can a path make this process wait? Not while every mount is a file system of this machine's own.

A network's or a user space's file system may stop answering, and whoever touches it then waits, perhaps for
ever. The kernel tells when the table of mounts has changed, so asking costs one system call.
"""

from __future__ import annotations

import select

_MOUNTINFO = "/proc/self/mountinfo"
#: Everything else is taken for remote.
_LOCAL = {
    "bcachefs", "binfmt_misc", "bpf", "btrfs", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
    "devtmpfs", "efivarfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fusectl",
    "hugetlbfs", "iso9660", "mqueue", "ntfs3", "nsfs", "overlay", "proc", "pstore", "ramfs",
    "rootfs", "rpc_pipefs", "securityfs", "selinuxfs", "squashfs", "sysfs", "tmpfs", "tracefs",
    "vfat", "xfs", "zfs",
}  # fmt: skip


def is_local(fs_type: str) -> bool:
    """Is it one that can make nobody wait for another machine, or for a program?"""
    return fs_type in _LOCAL


class Mounts:
    """The mounts of this process's namespace."""

    def __init__(self) -> None:
        # Held open: the changes it reports are those since it was last polled.
        self._file = open(_MOUNTINFO, "rb")  # noqa: SIM115  closed by `close`
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._all_local = self._look()

    def all_local(self) -> bool:
        """Is there no mount that could make anybody wait?"""
        if self._poll.poll(0):
            self._all_local = self._look()
        return self._all_local

    def close(self) -> None:
        self._file.close()

    def _look(self) -> bool:
        self._file.seek(0)
        for line in self._file:
            _, _, after = line.partition(b" - ")
            if not is_local(after.split(b" ", 1)[0].decode()):
                return False
        return True
