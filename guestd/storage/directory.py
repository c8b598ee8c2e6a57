"""Making a directory with its parents, which belongs to somebody; for a place that cannot hang, or in the worker."""

from __future__ import annotations

import os


def make_directory(path: str, uid: int = -1, gid: int = -1) -> bool:
    """Make it where it is missing, and say whether it was. Only one that is made here is given an owner.

    Raises OSError, FileExistsError for something else of that name.
    """
    try:
        os.makedirs(path, mode=0o755)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return False
    if uid >= 0 and os.geteuid() == 0:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, uid, gid)
        finally:
            os.close(fd)
    return True
