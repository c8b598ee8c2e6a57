"""The digest of a file's or a tree's content, as the file process makes it while it reads or writes.

It is of the whole: where a transfer goes on at an offset, what is before it is read once more, and not sent. The line
is told meanwhile that this process is alive.
"""

from __future__ import annotations

import hashlib
import os

from guestd.storage.file_line import Line, Refused
from guestd.tree.holes import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ZEROS = bytes(CHUNK)


class Digest:
    """Of the whole; None where none was asked for."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self._hash = None if name is None else hashlib.new(name)

    def add(self, data: bytes | memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def add_file(self, line: Line, fd: int, start: int, end: int) -> None:
        """A stretch of a file, holes as the zeros that they read as."""
        if self._hash is None:
            return
        room = memoryview(bytearray(CHUNK))
        while start < end:
            size = os.preadv(fd, [room[: min(CHUNK, end - start)]], start)
            if not size:
                return
            self._hash.update(room[:size])
            start += size
            line.alive()

    def add_zeros(self, line: Line, size: int) -> None:
        if self._hash is None:
            return
        while size > 0:
            self._hash.update(_ZEROS[: min(size, CHUNK)])
            size -= CHUNK
            line.alive()

    def told(self) -> dict[str, Any]:
        return {} if self._hash is None else {"digest": self._hash.hexdigest()}

    def check(self, given: str | None) -> None:
        if self._hash is not None and given is not None and self._hash.hexdigest() != given.lower():
            raise Refused(
                "digest",
                f"what arrived has the {self.name} {self._hash.hexdigest()}, what was sent had {given}: send it again",
            )
