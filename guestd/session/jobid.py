"""The names of jobs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from guestd.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Container

ID_MAX = 128
_ID_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_ID_REST = _ID_FIRST | {"_", "-"}
ID_RULE = "a letter or digit, then up to 127 letters, digits, _ or -"


def check_id(job_id: str) -> None:
    """An id names a job in paths, environment and headers, so it is of few characters."""
    if not (0 < len(job_id) <= ID_MAX and job_id[0] in _ID_FIRST and _ID_REST.issuperset(job_id)):
        raise BadRequest(f"{job_id[:200]!r} is no job id: {ID_RULE}", field="id", expected=ID_RULE)


def new_id(kind: str, taken: Container[str]) -> str:
    """An id that nobody has."""
    while (job_id := f"{kind}-{os.urandom(5).hex()}") in taken:
        pass
    return job_id
