"""How mounted file systems do: what a look says, compared with the one before. Pure.

A trouble has a name and words. `stalled`: it does not answer. `dead`: it answers that it is no more. `read_only`: it
takes no writes, after an error. `space`, `inodes`: there is little left.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from guestd.storage.plan import BLOCK, FUSE, NFS, NINEP, TMPFS, VIRTIOFS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.storage.mountinfo import Mounted
    from guestd.storage.plan import Wanted

STALLED, DEAD, READ_ONLY, SPACE, INODES = "stalled", "dead", "read_only", "space", "inodes"
#: Its other end is gone for good, whatever the file system.
_GONE = {errno.ENOTCONN, errno.ESTALE, errno.ESHUTDOWN, errno.ECONNABORTED, errno.ENODEV, errno.ENXIO}
#: More room than the limit by this factor ends a trouble: it is not told twice a minute.
_BACK = 1.25
_PERCENT = 100


def troubles(
    wanted: Wanted,
    mounted: Mounted | None,
    looked: Mapping[str, Any] | None,
    least: float,
    before: Mapping[str, str],
) -> dict[str, str]:
    """What is wrong. `looked` is None for one that did not answer; `least` is the share in percent below which space is
    little; `before`: what was wrong at the last look.
    """
    if looked is None:
        return {**before, STALLED: "it does not answer"}
    found: dict[str, str] = {}
    number = int(looked.get("errno") or 0)
    if number in _GONE or (number == errno.EIO and wanted.type in {BLOCK, FUSE, NFS, NINEP, VIRTIOFS}):
        return {DEAD: _words(number, wanted)}
    if number:
        # To be denied a look is not its mistake.
        return {}
    if mounted is not None and mounted.failed_read_only and not wanted.read_only:
        found[READ_ONLY] = (
            "it takes no more writes, after an error: save what you need, then mount it again, which checks it"
        )
    for name, total, free, words in (
        (SPACE, looked.get("total"), looked.get("free"), "of its space is free"),
        (INODES, looked.get("files"), looked.get("files_free"), "of its inodes are free"),
    ):
        if isinstance(total, int) and isinstance(free, int) and total > 0 and not wanted.read_only:
            share = free * _PERCENT / total
            if share < least * (_BACK if name in before else 1.0):
                found[name] = f"{share:.1f} % {words} ({free} of {total})"
    return found


def _words(number: int, wanted: Wanted) -> str:
    import os

    return {
        errno.ENOTCONN: "the program behind it has ended",
        errno.ESTALE: "the server knows it no more (stale handle)",
        errno.EIO: "the disk does not answer" if wanted.type == BLOCK else "its other end has failed",
    }.get(number, os.strerror(number))


def may_come_back(wanted: Wanted) -> bool:
    """Is it safe to take down one that is dead and mount it anew? Whoever has files open there keeps the dead ones."""
    return wanted.type != TMPFS


def worth_looking(wanted: Wanted) -> bool:
    """Memory never fails."""
    return wanted.type != TMPFS or bool(wanted.options)
