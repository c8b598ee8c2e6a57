"""Who a process runs as: names and numbers resolved, with the groups that go with them."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from typing import NamedTuple

from guestd.errors import StartFailed

FALLBACK_SHELL = "/bin/sh"
DEFAULT_SHELL = "/bin/bash"
AGENT = "agent"


class Identity(NamedTuple):
    """A user as a process carries it."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


def own_identity() -> Identity:
    """Who this process is."""
    uid = os.geteuid()
    entry = _entry(uid)
    return Identity(
        uid, os.getegid(), tuple(sorted(os.getgroups())),
        entry.pw_name if entry else str(uid), entry.pw_dir if entry else "/", entry.pw_shell if entry else "",
    )  # fmt: skip


def default_user(configured: str) -> str | int | None:
    """The user of a request that names none: the configured one, else `agent` when it exists, else None: this one."""
    if configured:
        return int(configured) if configured.isdecimal() else configured
    if os.geteuid() == 0 and _entry(AGENT) is not None:
        return AGENT
    return None


def resolve_identity(
    user: str | int | None, group: str | int | None, groups: list[str | int] | None, own: Identity,
) -> Identity:
    """What was asked, as numbers. Raises StartFailed (stage `user`) naming what does not exist.

    A user by number need not have an entry: containers are full of those. It then has no groups, `/` for a home, and
    its number for a name.
    """
    if user is None and group is None and groups is None:
        return own
    if user is None:
        found = own
    elif (entry := _entry(user)) is not None:
        found = Identity(
            entry.pw_uid, entry.pw_gid, tuple(sorted(os.getgrouplist(entry.pw_name, entry.pw_gid))),
            entry.pw_name, entry.pw_dir or "/", entry.pw_shell,
        )  # fmt: skip
    elif isinstance(user, int):
        found = Identity(user, user, (user,), str(user), "/", "")
    else:
        raise StartFailed(f"there is no user {user!r} in this machine's user database", stage="user", errno=errno.ENOENT)
    if group is not None:
        gid = _gid(group)
        found = found._replace(gid=gid, groups=tuple(sorted({gid, *found.groups} - {found.gid})))
    if groups is not None:
        found = found._replace(groups=tuple(sorted({_gid(each) for each in groups})))
    return found


def pick_shell(configured: str, identity: Identity) -> str:
    """The shell of a shell string: the configured one, else bash when it exists, else sh."""
    if configured:
        return configured
    return DEFAULT_SHELL if os.path.exists(DEFAULT_SHELL) else identity.shell or FALLBACK_SHELL


def _entry(user: str | int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        if isinstance(user, str) and user.isdecimal() and int(user) < 2**32 - 1:
            return _entry(int(user))
        return None


def _gid(group: str | int) -> int:
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isdecimal() and int(group) < 2**32 - 1:
            return int(group)
        raise StartFailed(
            f"there is no group {group!r} in this machine's group database", stage="user", errno=errno.ENOENT,
        ) from None
