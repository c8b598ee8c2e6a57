"""Reading the audit log record by record, from a number on, across its files, while others write it."""

from __future__ import annotations

import json
import os
import threading
from typing import IO, TYPE_CHECKING, Any, cast

from guestd.telemetry.journal import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Trail:
    """Everything but `leave` may wait for a disk, and is called from a thread, one at a time."""

    def __init__(self, path: str, start: int) -> None:
        self._path = path
        self.next = start
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._busy = self._left = False

    def leave(self) -> None:
        """Nobody reads any more. Where a thread still does, it is that one that closes the file."""
        with self._lock:
            self._left = True
            if not self._busy:
                self._close()

    def more(self, most: int, most_bytes: int) -> list[bytes]:
        """The next lines, without their newlines; none where there are no more by now. Raises OSError."""
        with self._lock:
            if self._left:
                return []
            self._busy = True
        try:
            return self._more(most, most_bytes)
        finally:
            with self._lock:
                self._busy = False
                if self._left:
                    self._close()

    def _more(self, most: int, most_bytes: int) -> list[bytes]:
        lines: list[bytes] = []
        while len(lines) < most and most_bytes > 0:
            line = self._line()
            if line is None:
                break
            n = _number(line)
            # A line that says no number was changed by somebody: it is shown where it stands.
            if n is None or n >= self.next:
                lines.append(line)
                most_bytes -= len(line)
            if n is not None:
                self.next = max(self.next, n + 1)
        return lines

    def _line(self) -> bytes | None:
        if self._file is None:
            self._file = self._open()
        while self._file is not None:
            at = self._file.tell()
            line = self._file.readline()
            if line.endswith(b"\n"):
                return line[:-1]
            self._file.seek(at)
            if self._is_newest(self._file):
                return None
            # It was put aside, and is read to its end: on with the next one.
            self._file.close()
            self._file = self._open()
        return None

    def _is_newest(self, file: IO[bytes]) -> bool:
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            return True
        here = os.fstat(file.fileno())
        return (now.st_dev, now.st_ino) == (here.st_dev, here.st_ino)

    def _open(self) -> IO[bytes] | None:
        """The file that the next record is in: the last of those that do not begin behind it."""
        found: IO[bytes] | None = None
        for file in _opened(self._path):
            first = _number(file.readline())
            file.seek(0)
            if found is not None and (first is None or first > self.next):
                file.close()
                continue
            if found is not None:
                found.close()
            found = file
        return found

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _opened(path: str) -> Iterator[IO[bytes]]:
    for name in files_of(path):
        yield open(name, "rb")  # noqa: SIM115  whoever asks closes it


def _number(line: bytes) -> int | None:
    try:
        found: object = json.loads(line)
    except ValueError:
        return None
    n = cast("dict[str, Any]", found).get("n") if isinstance(found, dict) else None
    return n if isinstance(n, int) else None
