"""Where a file has data and where it has holes, as its file system tells."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of a read, and of what is written in one go.
CHUNK = 128 * 1024


def pieces_of(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each stretch of data between two offsets. One that is all data is one piece."""
    at = start
    while at < end:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            finish = os.lseek(fd, begin, os.SEEK_HOLE) if begin < end else end
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            begin, finish = at, end  # a file system that does not know of holes
        if begin >= end:
            return
        finish = min(finish, end)
        if finish <= begin:
            return
        yield begin, finish - begin
        at = finish


def may_have_holes(status: os.stat_result) -> bool:
    """Does it take less room than it is long? Then it is worth asking where."""
    return status.st_blocks * 512 < status.st_size
