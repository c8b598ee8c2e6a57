"""The descriptors that a `serve` has put aside for the next one: systemd's fd store, in PID 1.

A duplicate of each is held here under its name, whatever happens to the serve that sent it, until it is taken off by
its name. Several may have one name. What the same serve sends again, or the next one after it was handed it, is held
once.
"""

from __future__ import annotations

import fcntl
import os
import stat

_DUPFD_QUERY = 1027
_DEFAULT_NAME = "stored"
_NAME_MAX = 255


class Refused(Exception):
    """What was sent is not kept; says why."""


class Store:
    def __init__(self, most: int) -> None:
        self.most = most
        #: In the order of arrival, which is the order in which the next serve has them.
        self._kept: dict[int, str] = {}
        #: Those to be dropped when their other end is gone.
        self.watched: set[int] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> list[tuple[int, str]]:
        return list(self._kept.items())

    def add(self, name: str, fds: list[int], *, watch: bool) -> None:
        """Takes the descriptors over. Raises Refused, with all that are not kept closed."""
        name = name or _DEFAULT_NAME
        valid = len(name) <= _NAME_MAX and ":" not in name and name.isprintable() and name.isascii()
        left_out = 0
        for fd in fds:
            if not valid or len(self._kept) >= self.most:
                os.close(fd)
                left_out += 1
            elif any(_same(fd, each) for each, its in self._kept.items() if its == name):
                os.close(fd)
            else:
                self._kept[fd] = name
                if watch:
                    self.watched.add(fd)
        if not valid:
            raise Refused(f"{len(fds)} descriptors not stored: {name[:60]!r} is no name for them")
        if left_out:
            raise Refused(
                f"{left_out} descriptors {name!r} not stored: there are {self.most}; init.fd_store allows more"
            )

    def remove(self, name: str) -> None:
        for fd in [fd for fd, its in self._kept.items() if its == (name or _DEFAULT_NAME)]:
            self.drop(fd)

    def drop(self, fd: int) -> None:
        if self._kept.pop(fd, None) is not None:
            self.watched.discard(fd)
            os.close(fd)

    def close(self) -> None:
        for fd in list(self._kept):
            self.drop(fd)


def _same(one: int, other: int) -> bool:
    """Do both stand for one opening of one thing? Kernels before 6.10 only tell whether it is one thing."""
    try:
        return fcntl.fcntl(one, _DUPFD_QUERY, other) == 1
    except OSError:
        pass
    a, b = os.fstat(one), os.fstat(other)
    if (a.st_dev, a.st_ino, a.st_mode) != (b.st_dev, b.st_ino, b.st_mode):
        return False
    # Terminals, pidfds and their like share one number among many things.
    if not (stat.S_ISFIFO(a.st_mode) or stat.S_ISSOCK(a.st_mode) or stat.S_ISREG(a.st_mode)):
        return False
    return fcntl.fcntl(one, fcntl.F_GETFL) == fcntl.fcntl(other, fcntl.F_GETFL)
