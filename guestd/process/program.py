"""Which file a program's name means (execvp's rule, with an error that tells absent from not executable), and
where it starts.

Shared by both ways to spawn, so they cannot disagree. Standard library only: the launcher imports it.
"""

from __future__ import annotations

import errno
import os
import stat

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str, path: str | None) -> str:
    """The file to execute, as seen from the current directory by the current user. Raises OSError."""
    if not name:
        raise OSError(errno.ENOENT, "the program's name is empty", name)
    if "/" in name:
        _check(name)
        return name
    refused: OSError | None = None
    for folder in (path if path is not None else DEFAULT_PATH).split(":"):
        candidate = f"{folder or '.'}/{name}"
        try:
            _check(candidate)
        except OSError as error:
            if error.errno == errno.EACCES:
                refused = refused or error
        else:
            return candidate
    if refused is not None:
        raise refused
    raise OSError(errno.ENOENT, f"no such program in PATH={path or DEFAULT_PATH}", name)


def enter_directory(candidates: list[str]) -> None:
    """Go to the first of them that the current user can enter. The error is the first one's: the others are
    fallbacks.
    """
    first: OSError | None = None
    for candidate in candidates:
        try:
            os.chdir(candidate)
        except OSError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _check(candidate: str) -> None:
    mode = os.stat(candidate).st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EACCES, "it is a directory", candidate)
    if not os.access(candidate, os.X_OK, effective_ids=True):
        raise OSError(errno.EACCES, "it is not executable for this user", candidate)
