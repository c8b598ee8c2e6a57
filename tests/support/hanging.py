"""A mount that does not answer: what a network's file system is on a bad day. Made with the kernel's own FUSE, whose
other end is held here, and answers when a test says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from tests.support.peer import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
_IN_HEADER = struct.Struct("<IIQQIIII")
_OUT_HEADER = struct.Struct("<IiQ")
_GETATTR, _INIT = 3, 26
#: FORGET, INTERRUPT, BATCH_FORGET: nobody waits for an answer.
_SILENT = {2, 36, 42}
_INIT_ANSWER = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0)


def _attributes(kind: int) -> bytes:
    return struct.pack("<QII6Q10I", 0, 0, 0, 1, *[0] * 5, *[0] * 3, kind | 0o755, 2, 0, 0, 0, 4096, 0)


class Hanging:
    """The mount's other end."""

    def __init__(self, path: str, fd: int, kind: int) -> None:
        self.path = path
        self._fd = fd
        self._kind = kind

    def answer(self) -> int:
        """Answer the next request, as an empty directory or file would; returns what it was."""
        readable, _, _ = select.select([self._fd], [], [], PATIENCE)
        assert readable, "nobody asks anything"
        operation, unique = _IN_HEADER.unpack_from(request := os.read(self._fd, 128 * 1024))[1:3]
        del request
        if operation in _SILENT:
            return operation
        error, body = 0, b""
        if operation == _INIT:
            body = _INIT_ANSWER
        elif operation == _GETATTR:
            body = _attributes(self._kind)
        else:
            error = -errno.ENOSYS
        # ENOENT: whoever asked has been killed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.write(self._fd, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), error, unique) + body)
        return operation

    def take(self) -> None:
        """Take the next request, and never answer it: whoever waits for it cannot be killed."""
        while True:
            readable, _, _ = select.select([self._fd], [], [], PATIENCE)
            assert readable, "nobody asks anything"
            if _IN_HEADER.unpack_from(os.read(self._fd, 128 * 1024))[1] not in _SILENT:
                return

    @property
    def asked(self) -> bool:
        """Is there a request that nobody has answered?"""
        return bool(select.select([self._fd], [], [], 0)[0])


@contextlib.contextmanager
def hanging_mount(parent: Path, *, kind: int = stat.S_IFDIR) -> Generator[Hanging]:
    """A folder `hangs` in `parent`, or one file of that name. At the end all who wait there get an error."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse: nothing here can hang on a file system")
    path = parent / "hangs"
    path.mkdir() if kind == stat.S_IFDIR else path.touch()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={fd},rootmode={kind:o},user_id=0,group_id=0,allow_other"
        _check(_libc.mount(b"hangs", os.fsencode(path), b"fuse", 0, options.encode()))
        try:
            yield Hanging(str(path), fd, kind)
        finally:
            # Not umount(8), which would look at it first.
            _check(_libc.umount2(os.fsencode(path), _MNT_DETACH))
    finally:
        os.close(fd)
        path.rmdir() if kind == stat.S_IFDIR else path.unlink()


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
