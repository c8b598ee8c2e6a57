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
        _raise_if(_why_not(name), name)
        return name
    refused: tuple[str | None, str] = None, name
    for folder in (path if path is not None else DEFAULT_PATH).split(":"):
        candidate = f"{folder or '.'}/{name}"
        try:
            reason = _why_not(candidate)
        except OSError:
            # Not there; or in a directory of somebody else's PATH, which this user may not search: for them, not there.
            continue
        if reason is None:
            return candidate
        refused = refused if refused[0] else (reason, candidate)
    _raise_if(*refused)
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


def _why_not(candidate: str) -> str | None:
    """Why a file that exists cannot be executed; None when it can. Raises OSError when it cannot be found."""
    if stat.S_ISDIR(os.stat(candidate).st_mode):
        return "it is a directory"
    if not os.access(candidate, os.X_OK, effective_ids=True):
        return "it is not executable for this user"
    return None


def _raise_if(reason: str | None, candidate: str) -> None:
    if reason is not None:
        raise OSError(errno.EACCES, reason, candidate)
