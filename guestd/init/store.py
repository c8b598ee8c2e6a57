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
        #: By name and by what they are of, to find the same one again among thousands.
        self._found: dict[tuple[str, int, int], list[int]] = {}
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
            if not valid:
                os.close(fd)
                continue
            key = _key(name, fd)
            if any(_same(fd, each) for each in self._found.get(key, ())):
                os.close(fd)
            elif len(self._kept) >= self.most:
                os.close(fd)
                left_out += 1
            else:
                self._found.setdefault(key, []).append(fd)
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
        name = self._kept.pop(fd, None)
        if name is None:
            return
        key = _key(name, fd)
        self._found[key].remove(fd)
        if not self._found[key]:
            del self._found[key]
        self.watched.discard(fd)
        os.close(fd)

    def close(self) -> None:
        for fd in list(self._kept):
            self.drop(fd)


def _key(name: str, fd: int) -> tuple[str, int, int]:
    what = os.fstat(fd)
    return name, what.st_dev, what.st_ino


def _same(one: int, other: int) -> bool:
    """Do both, which are of one thing, stand for one opening of it? Kernels before 6.10 do not tell."""
    try:
        return fcntl.fcntl(one, _DUPFD_QUERY, other) == 1
    except OSError:
        pass
    mode = os.fstat(one).st_mode
    # Terminals, pidfds and their like share one number among many things.
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
        return False
    return fcntl.fcntl(one, fcntl.F_GETFL) == fcntl.fcntl(other, fcntl.F_GETFL)
