"""The audit log's file: records are appended, whole lines at a time, and a full file is put aside.

Beside it lies `FILE.head`, the number and the hash of the last record: with it an end that is missing is seen.
Everything here may wait for a disk, and is called from a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from guestd.wire.chain import NOTHING, Head, head_line, read, read_head, seal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_EMPTY = Head(0, NOTHING)
#: More than a record can have: what is looked at of an end to find the last one.
_LAST_LOOK = 1024 * 1024
HEAD_SUFFIX = ".head"


class Journal:
    """See the module. One process has it open at a time; a second one is refused the lock, and goes without."""

    def __init__(self, path: str, *, mode: int, limit: int, files: int) -> None:
        self.path = path
        self._mode = mode
        self._limit = limit
        self._files = files
        self._fd = -1
        self._head_fd = -1
        self._size = 0
        self.head = _EMPTY

    def open(self) -> dict[str, object]:
        """Begin, or go on where another process stopped. Returns how that one left it, for the first record. Raises
        OSError.
        """
        directory = os.path.dirname(self.path)
        with suppress(FileExistsError):
            os.makedirs(directory, mode=0o755)
        # Not through a link that somebody has put there, and nothing but a file.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self.path, flags, self._mode)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, self._mode)
            self._head_fd = os.open(
                self.path + HEAD_SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, self._mode
            )
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self._take_up()

    def _take_up(self) -> dict[str, object]:
        known = read_head(os.pread(self._head_fd, 128, 0))
        self._size = os.fstat(self._fd).st_size
        if not self._size:
            if known is None:
                return {"after": "nothing"}
            # A full file is put aside before the next one has anything.
            if self._set_aside_ends_at(known):
                self.head = known
                return {"after": "closed" if self._last_set_aside_is_closed() else "died"}
            return {
                "after": "unknown",
                "broken": f"the file is gone; record {known.n} was the last one in it",
            }
        start = max(0, self._size - _LAST_LOOK)
        data = os.pread(self._fd, self._size - start, start)
        whole, newline, rest = data.rpartition(b"\n")
        found: dict[str, object] = {}
        if rest:
            # A kill -9 in the middle of a write. Nobody was told of a record that is not whole.
            self._size -= len(rest)
            os.ftruncate(self._fd, self._size)
            found["torn"] = len(rest)
        last = whole.rpartition(b"\n")[2] if newline else b""
        try:
            record, head = read(last)
        except ValueError as error:
            return {**found, "after": "unknown", "broken": f"of the last record: {error}"}
        if known is not None and (known.n > head.n or (known.n == head.n and known.hash != head.hash)):
            return {
                **found, "after": "unknown",
                "broken": f"record {known.n} was written, and record {head.n} is the last one that is there",
            }  # fmt: skip
        self.head = head
        return {**found, "after": "closed" if record.get("event") == "log_closed" else "died"}

    def _set_aside_ends_at(self, known: Head) -> bool:
        last = _last_line(f"{self.path}.1")
        with suppress(ValueError):
            return read(last)[1] == known
        return False

    def _last_set_aside_is_closed(self) -> bool:
        with suppress(ValueError):
            return bool(read(_last_line(f"{self.path}.1"))[0].get("event") == "log_closed")
        return False

    def append(self, records: Iterable[Mapping[str, object]]) -> list[bytes]:
        """Write these down, and their head; returns their lines. Behind an OSError nothing of it is there."""
        lines: list[bytes] = []
        head = self.head
        for record in records:
            line, head = seal(record, head)
            lines.append(line)
        data = memoryview(b"".join(line + b"\n" for line in lines))
        if not data:
            return lines
        if self._size and self._size + len(data) > self._limit:
            self._put_aside()
        begun = self._size
        try:
            while data:
                written = os.write(self._fd, data)
                self._size += written
                data = data[written:]
            os.pwrite(self._head_fd, head_line(head), 0)
        except OSError:
            # All of them or none: the next try begins where this one began.
            os.ftruncate(self._fd, begun)
            self._size = begun
            raise
        self.head = head
        return lines

    def _put_aside(self) -> None:
        """Make room: FILE becomes FILE.1, that FILE.2, and the last one goes."""
        fresh = f"{self.path}.new"
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(fresh, flags, self._mode)
        try:
            os.fchmod(fd, self._mode)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for number in range(self._files - 1, 0, -1):
                with suppress(FileNotFoundError):
                    os.rename(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            if self._files:
                os.rename(self.path, f"{self.path}.1")
            os.rename(fresh, self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._size = fd, 0

    def close(self) -> None:
        for fd in (self._fd, self._head_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._head_fd = -1


def lately_ended(path: str) -> set[tuple[object, object]]:
    """Jobs of which the end of the log tells that they ended: id, and when they were started."""
    found: set[tuple[object, object]] = set()
    for name in files_of(path)[-2:]:
        with open(name, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_LOOK))
            for line in file:
                if b'"event":"job_ended"' in line:
                    with suppress(ValueError):
                        record, _ = read(line.rstrip(b"\n"))
                        found.add((record.get("job"), record.get("started_at")))
    return found


def files_of(path: str) -> list[str]:
    """The files of a log that are there, oldest first."""
    older: list[str] = []
    while os.path.exists(name := f"{path}.{len(older) + 1}"):
        older.append(name)
    return [*reversed(older), *([path] if os.path.exists(path) else [])]


def read_lines(path: str) -> Iterator[bytes]:
    """All lines of a log, oldest first, over all its files. Raises OSError."""
    for name in files_of(path):
        with open(name, "rb") as file:
            yield from file


def _last_line(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LAST_LOOK))
            return file.read().rstrip(b"\n").rpartition(b"\n")[2]
    except OSError:
        return b""
