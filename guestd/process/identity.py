"""Who a process runs as: names and numbers resolved, with the groups that go with them.

Users are those of /etc/passwd and /etc/group, as for `docker run --user`. The name service is not asked: its
modules may wait for a network, and where systemd is installed a name that does not exist costs sixty system
calls.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from guestd.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FALLBACK_SHELL = "/bin/sh"
DEFAULT_SHELL = "/bin/bash"
_NO_SHELLS = {"", "sh", "nologin", "false", "true", "sync"}
AGENT = "agent"
#: (uid_t)-1: what the kernel takes for «leave it as it is».
_NO_ID = 2**32 - 1


class Identity(NamedTuple):
    """A user as a process carries it."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


class _User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str
    shell: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


class Users:
    """The user database, read again when its files have changed."""

    def __init__(self, folder: str = "/etc") -> None:
        self._passwd = _Table(f"{folder}/passwd", _read_user)
        self._group = _Table(f"{folder}/group", _read_group)

    def own_identity(self) -> Identity:
        """Who this process is."""
        uid = os.geteuid()
        user = self._user(uid) or _User(str(uid), uid, os.getegid(), "/", "")
        return Identity(uid, os.getegid(), tuple(sorted(os.getgroups())), user.name, user.home, user.shell)

    def default_user(self, configured: str) -> str | int | None:
        """The user of a request that names none: the configured one, else `agent` when it exists, else None:
        this one.
        """
        if configured:
            return configured
        return AGENT if os.geteuid() == 0 and self._user(AGENT) is not None else None

    def resolve(
        self,
        user: str | int | None,
        group: str | int | None,
        groups: list[str | int] | None,
        own: Identity,
    ) -> Identity:
        """What was asked, as numbers. Raises StartFailed (stage `user`) naming what does not exist.

        A user by number need not have an entry: containers are full of those. It then has no further groups,
        `/` for a home, and its number for a name.
        """
        if user is None and group is None and groups is None:
            return own
        found = own if user is None else self._identity(user)
        if group is not None:
            gid = self._gid(group)
            found = found._replace(gid=gid, groups=tuple(sorted({gid, *found.groups} - {found.gid})))
        if groups is not None:
            found = found._replace(groups=tuple(sorted({self._gid(each) for each in groups})))
        return found

    def _identity(self, user: str | int) -> Identity:
        entry = self._user(user)
        if entry is not None:
            groups = {entry.gid, *(group.gid for group in self._group.rows() if entry.name in group.members)}
            return Identity(
                entry.uid, entry.gid, tuple(sorted(groups)), entry.name, entry.home or "/", entry.shell
            )
        number = _number(user)
        if number is None:
            raise StartFailed(
                f"could not start: there is no user {user!r} in /etc/passwd (user, ENOENT)",
                stage="user", errno=errno.ENOENT,
            )  # fmt: skip
        return Identity(number, number, (number,), str(number), "/", "")

    def _user(self, user: str | int) -> _User | None:
        rows = self._passwd.rows()
        if isinstance(user, str):
            for row in rows:
                if row.name == user:
                    return row
        number = _number(user)
        return next((row for row in rows if row.uid == number), None)

    def _gid(self, group: str | int) -> int:
        for row in self._group.rows():
            if row.name == group:
                return row.gid
        number = _number(group)
        if number is None:
            raise StartFailed(
                f"could not start: there is no group {group!r} in /etc/group (user, ENOENT)",
                stage="user", errno=errno.ENOENT,
            )  # fmt: skip
        return number


def pick_shell(configured: str, identity: Identity) -> str:
    """The shell of a shell string: the configured one, else bash when it exists, else sh."""
    if configured:
        return configured
    return DEFAULT_SHELL if os.path.exists(DEFAULT_SHELL) else identity.shell or FALLBACK_SHELL


def login_shell(configured: str, identity: Identity) -> str:
    """The shell of somebody who logs in: the configured one, else their own. The plain `sh` that accounts are made with
    by default, and what is there to keep people out, count as none.
    """
    own = identity.shell
    if not configured and os.path.basename(own) not in _NO_SHELLS and os.access(own, os.X_OK):
        return own
    return pick_shell(configured, identity._replace(shell=""))


RowT = TypeVar("RowT")


class _Table(Generic[RowT]):
    """One of the two files, as rows; kept until the file is another one."""

    def __init__(self, path: str, read: Callable[[list[str]], RowT]) -> None:
        self._path = path
        self._read = read
        self._rows: list[RowT] = []
        self._seen: tuple[int, int, int] | None = None

    def rows(self) -> list[RowT]:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return []
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                lines = [line.rstrip("\n").split(":") for line in file]
            self._rows = list(self._readable(lines))
            self._seen = seen
        return self._rows

    def _readable(self, lines: list[list[str]]) -> Iterator[RowT]:
        for line in lines:
            # A line that is no entry (a comment, `+` of NIS, a typing error) is passed over, as libc does.
            with suppress(ValueError, IndexError):
                yield self._read(line)


def _read_user(fields: list[str]) -> _User:
    return _User(fields[0], int(fields[2]), int(fields[3]), fields[5], fields[6])


def _read_group(fields: list[str]) -> _Group:
    return _Group(fields[0], int(fields[2]), tuple(fields[3].split(",")))


def _number(user: str | int) -> int | None:
    if isinstance(user, str):
        user = int(user) if user.isdecimal() else -1
    return user if 0 <= user < _NO_ID else None
