"""Where a path leads: from the session's directory for who gave no root, and never out of the root for who did.

With a root the kernel itself keeps every step below it (openat2, RESOLVE_BENEATH), symlinks and renames under way
included. Everything that changes a name works on the open folder that holds it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from guestd.storage.file_line import Refused, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The same number on every architecture.
_OPENAT2 = 437
_BENEATH = 0x08 | 0x02  # and no magic links of /proc
_AGAIN_MAX = 64
_SYMLINKS_MAX = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Places:
    """How one request means its paths. `close` it."""

    def __init__(self, ask: dict[str, Any]) -> None:
        root: bytes | None = ask["root"]
        self.beneath = root is not None
        self._top = _first_folder([root] if root is not None else ask["bases"])

    def close(self) -> None:
        os.close(self._top)

    def open(self, path: bytes, flags: int) -> int:
        """Open what is there; symlinks are followed, unless the flags say otherwise."""
        if not self.beneath:
            return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._top)
        how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, _BENEATH)
        inside = path.lstrip(b"/") or b"."
        number = errno.EAGAIN
        for _ in range(_AGAIN_MAX):
            fd: int = _libc.syscall(_OPENAT2, self._top, inside, how, ctypes.sizeof(how))
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            if number in {errno.ENOSYS, errno.EPERM} and not _has_openat2():
                raise Refused(
                    "unsupported",
                    "`root` needs openat2 (Linux 5.6), which this kernel, or a filter in front of it, does not give;"
                    " leave `root` out, or run guestd where it is there",
                    field="root",
                )
            if number != errno.EAGAIN:  # something on the way was renamed in that moment
                break
        raise OSError(number, os.strerror(number), os.fsdecode(path))

    def folder(self, path: bytes, *, make: bool = False) -> int:
        """Open a folder, as a place to work in. `make`: with all that is missing on the way to it."""
        try:
            return self.open(path, _FOLDER)
        except FileNotFoundError:
            if not make:
                raise
        parent, name = split(path)
        above = self.folder(parent, make=True)
        try:
            try:  # noqa: SIM105  contextlib would be one import more
                os.mkdir(name, 0o777, dir_fd=above)
            except FileExistsError:
                pass
            return self.open(path, _FOLDER)
        finally:
            os.close(above)

    def parent(self, path: bytes, *, make: bool = False) -> tuple[int, bytes]:
        """The open folder that holds the last name of a path, and that name."""
        above, name = split(path)
        return self.folder(above, make=make), name

    def target(self, path: bytes, *, make: bool = False) -> tuple[int, bytes, bytes]:
        """The same for what is to be written: a symlink there stands for the file that it names. And its path."""
        for _ in range(_SYMLINKS_MAX):
            folder, name = self.parent(path, make=make)
            try:
                link = os.readlink(name, dir_fd=folder)
            except OSError:
                return folder, name, path
            os.close(folder)
            if self.beneath and link.startswith(b"/"):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            path = os.path.join(split(path)[0], link)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def split(path: bytes) -> tuple[bytes, bytes]:
    """The folder of a path, and the last name in it."""
    bare = path.rstrip(b"/")
    above, slash, name = bare.rpartition(b"/")
    if name in {b"", b".", b".."}:
        raise Refused(
            "bad_request",
            f"{path.decode('utf-8', 'surrogateescape')!r} ends in no name; give the path of what is meant",
            field="path", expected="a path that ends in a name",
        )  # fmt: skip
    return above or (b"/" if slash else b"."), name


def _first_folder(candidates: list[bytes]) -> int:
    first: OSError | None = None
    for each in candidates:
        try:
            return os.open(each, _FOLDER)
        except OSError as error:
            first = first or error
    assert first is not None
    raise refusal(first, candidates[0])


def _has_openat2() -> bool:
    how = (ctypes.c_uint64 * 3)(_FOLDER, 0, 0)
    fd: int = _libc.syscall(_OPENAT2, -100, b"/", how, ctypes.sizeof(how))
    if fd >= 0:
        os.close(fd)
    return fd >= 0


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def describe(status: os.stat_result) -> dict[str, Any]:
    """What is told of a file."""
    return {
        "type": _TYPES.get(stat.S_IFMT(status.st_mode), "unknown"),
        "size": status.st_size,
        "mode": status.st_mode & 0o7777,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "links": status.st_nlink,
        "mtime": status.st_mtime_ns,
        "ctime": status.st_ctime_ns,
        "allocated": status.st_blocks * 512,
        "device": status.st_dev,
        "inode": status.st_ino,
        "version": version(status),
    }


def version(status: os.stat_result) -> str:
    """Another one when the file is another, or has been changed."""
    return f"{status.st_dev:x}-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"
