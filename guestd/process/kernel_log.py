"""The kernel's log, to be read record by record."""

from __future__ import annotations

import errno
import os

_PATH = "/dev/kmsg"
#: The kernel's own number for it.
_DEVICE = os.makedev(1, 11)


def open_kernel_log(*, from_start: bool = False) -> int:
    """Its descriptor, from now on or from its first record; reading never waits. Raises OSError, also where something
    else has its name: containers are given a pipe, a terminal, or /dev/null, which have no records and no end.
    """
    fd = os.open(_PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_rdev != _DEVICE:
            raise OSError(errno.ENODEV, "it is not the kernel's log", _PATH)
        if not from_start:
            os.lseek(fd, 0, os.SEEK_END)
    except BaseException:
        os.close(fd)
        raise
    return fd
