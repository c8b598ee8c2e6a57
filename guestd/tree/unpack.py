"""A tar stream becomes a tree, as it comes. The stream may be anybody's: nothing is ever made outside of the folder
given.

Promises. Every folder is opened below the one before it, never through a symlink; a name with `..` is refused. A file
has its name when all of it is there: until then it lies beside it as `.guestd-…`, and an end in the middle takes it
away. What one entry meets (no permission, something else in its place) is told, and the rest goes on; a full or
broken disk ends it. Devices are never made. Set-uid and set-gid bits and owners are kept only with `owners`.

A folder gets its mode and times when the stream leaves it. So memory is bounded by the depth of the tree, not by its
size.
"""

from __future__ import annotations

import errno
import os

from guestd.tree.tarformat import FOLDER, Member, TarError
from guestd.tree.tarread import TarReader
from guestd.tree.told import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: The whole transfer ends with these: every other entry would meet them too.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}
_DEPTH_MAX = 2048


class _Level:
    """A folder that is open, and what it is to become."""

    __slots__ = ("fd", "member", "name")

    def __init__(self, name: bytes, fd: int, member: Member | None) -> None:
        self.name = name
        self.fd = fd
        self.member = member


class Unpacker:
    """See the module. `feed` the stream, `finish` at its end; `close` in any case."""

    def __init__(self, top: int, *, fresh: bool = False, owners: bool = False, umask: int = 0o022) -> None:
        """`top`: the open folder, which is closed in the end. `fresh`: it was made for this, so that its mode and times
        are the archive's too.
        """
        self._stack = [_Level(b"", top, None)]
        self._fresh = fresh
        self._owners = owners
        self._umask = umask
        self._reader = TarReader()
        self._member: Member | None = None
        self._fd: int | None = None
        self._name = b""
        self._temporary = b".guestd-" + os.urandom(6).hex().encode()
        self._at = 0
        self._in_piece = 0
        self._left = 0
        self.told = Told()
        self.entries = 0
        self.bytes = 0
        #: The last entry that is there.
        self.last = b""
        #: Called between entries.
        self.step: Callable[[], None] = _nothing

    @property
    def ended(self) -> bool:
        """The archive has come to its end; more may follow, which is not looked at."""
        return self._reader.ended

    def feed(self, data: bytes | memoryview) -> None:
        """More of the stream. Raises TarError, and OSError for what ends all."""
        for each in self._reader.feed(data):
            if isinstance(each, Member):
                self._begin(each)
            else:
                self._take(each)
            self.step()

    def finish(self) -> None:
        """The stream has ended."""
        if self._reader.begun or not self._reader.ended:
            raise TarError("the archive is cut short: its end is missing")
        while self._stack:
            self._leave()

    def close(self) -> None:
        """Nothing half-made stays."""
        self._drop()
        while self._stack:
            os.close(self._stack.pop().fd)

    # --------------------------------------------------------------------------------------------- entries

    def _begin(self, member: Member) -> None:
        self._drop()
        self._member = member
        self._at = self._in_piece = 0
        self._left = member.size if member.pieces is None else sum(size for _, size in member.pieces)
        if member.type in b"123456":
            self._left = 0
        try:
            parts = [part for part in member.name.split(b"/") if part not in {b"", b"."}]
            if b".." in parts or b"\0" in member.name or len(parts) > _DEPTH_MAX:
                raise OSError(errno.EINVAL, "its name leads out of the folder; it is not made")
            if not parts:
                self._top(member)
            else:
                self._make(member, parts)
        except OSError as error:
            self._failed(member, error)

    def _make(self, member: Member, parts: list[bytes]) -> None:
        folder = self._go_to(parts[:-1])
        name = parts[-1]
        match member.type:
            case b"5":
                self._enter(name, member)
            case b"0":
                self._name = name
                mode = self._mode(member) & 0o777
                self._fd = os.open(self._temporary, _NEW, mode, dir_fd=folder)
                if not self._left:
                    self._finish_file()
                return
            case b"2":
                os.symlink(member.link, self._temporary, dir_fd=folder)
                self._place(folder, name)
                self._dress(folder, name, member)
            case b"1":
                self._link(folder, name, member)
            case b"6":
                os.mkfifo(self._temporary, 0o600, dir_fd=folder)
                _chmod(folder, self._temporary, self._mode(member))
                self._place(folder, name)
                self._dress(folder, name, member)
            case b"3" | b"4":
                self.told.skip(member.name, "it is a device, and those are not copied")
                self._member = None
                return
            case _:
                self.told.skip(member.name, f"it is of a kind that is not known ({member.type!r})")
                self._member = None
                return
        self._done(member)

    def _top(self, member: Member) -> None:
        if member.type != FOLDER:
            raise OSError(errno.EINVAL, "it has no name")
        while len(self._stack) > 1:
            self._leave()
        if self._fresh:
            self._stack[0].member = member
        self._done(member)

    def _take(self, data: memoryview) -> None:
        member, fd = self._member, self._fd
        if fd is None or member is None:
            return  # of something that could not be made
        self._left -= len(data)
        try:
            if member.pieces is None:
                _write(fd, data)
            else:
                self._take_pieces(fd, member.pieces, data)
            if not self._left:
                self._finish_file()
        except OSError as error:
            self._failed(member, error)

    def _take_pieces(self, fd: int, pieces: list[tuple[int, int]], data: memoryview) -> None:
        while data:
            offset, length = pieces[self._at]
            size = min(len(data), length - self._in_piece)
            if self._in_piece == 0 and size:
                os.lseek(fd, offset, os.SEEK_SET)
            _write(fd, data[:size])
            data = data[size:]
            self._in_piece += size
            if self._in_piece == length:
                self._at, self._in_piece = self._at + 1, 0

    def _finish_file(self) -> None:
        member, fd = self._member, self._fd
        assert member is not None
        assert fd is not None
        if member.pieces is not None:
            os.truncate(fd, member.real_size)
        mode = self._mode(member)
        if self._owners:
            os.chown(fd, member.uid, member.gid)
        if self._owners or mode & ~0o777 or mode & self._umask:
            os.chmod(fd, mode)
        self._set_xattrs(fd, member)
        os.utime(fd, ns=(member.mtime, member.mtime))
        os.close(fd)
        self._fd = None
        self._place(self._stack[-1].fd, self._name)
        self.bytes += member.real_size
        self._done(member)

    def _link(self, folder: int, name: bytes, member: Member) -> None:
        parts = [part for part in member.link.split(b"/") if part not in {b"", b"."}]
        if not parts or b".." in parts:
            raise OSError(errno.EINVAL, "its link leads out of the folder; it is not made")
        opened: list[int] = []
        try:
            source = self._stack[0].fd
            for part in parts[:-1]:
                source = os.open(part, _FOLDER, dir_fd=source)
                opened.append(source)
            os.link(parts[-1], self._temporary, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            for fd in opened:
                os.close(fd)
        self._place(folder, name)
        # rename(2) does nothing where both are names of the same file already.
        _unlink(self._temporary, folder)

    def _place(self, folder: int, name: bytes) -> None:
        try:
            os.rename(self._temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            _unlink(self._temporary, folder)
            raise

    def _done(self, member: Member) -> None:
        self.entries += 1
        self.last = b"/".join(part for part in member.name.split(b"/") if part not in {b"", b"."})
        self._member = None

    def _drop(self) -> None:
        """Take away a file that is not whole."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            _unlink(self._temporary, self._stack[-1].fd)

    def _failed(self, member: Member, error: OSError) -> None:
        self._drop()
        self._member = None
        if error.errno in _FATAL:
            # With the name that it has in the archive: the temporary one says nothing to anybody.
            raise OSError(error.errno, error.strerror, os.fsdecode(member.name)) from None
        self.told.fail(member.name, error.strerror or str(error))

    # --------------------------------------------------------------------------------------------- folders

    def _go_to(self, parts: list[bytes]) -> int:
        """The open folder of that path; missing ones are made."""
        same = 0
        while same < len(parts) and same + 1 < len(self._stack) and self._stack[same + 1].name == parts[same]:
            same += 1
        while len(self._stack) > same + 1:
            self._leave()
        for part in parts[same:]:
            self._enter(part, None)
        return self._stack[-1].fd

    def _enter(self, name: bytes, member: Member | None) -> None:
        folder = self._stack[-1].fd
        try:  # noqa: SIM105  contextlib would be one import more
            os.mkdir(name, 0o700 if member is not None else 0o777, dir_fd=folder)
        except FileExistsError:
            pass
        try:
            fd = os.open(name, _FOLDER, dir_fd=folder)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise OSError(error.errno, "something that is no folder is in its place") from None
            raise
        self._stack.append(_Level(name, fd, member))

    def _leave(self) -> None:
        level = self._stack.pop()
        try:
            if level.member is not None:
                self._dress_folder(level.fd, level.member)
        except OSError as error:
            self.told.fail(level.member.name if level.member else level.name, error.strerror or str(error))
        finally:
            os.close(level.fd)

    def _dress_folder(self, fd: int, member: Member) -> None:
        if self._owners:
            os.chown(fd, member.uid, member.gid)
        os.chmod(fd, self._mode(member))
        self._set_xattrs(fd, member)
        os.utime(fd, ns=(member.mtime, member.mtime))

    # ------------------------------------------------------------------------------------------ what they have

    def _mode(self, member: Member) -> int:
        return member.mode & (0o7777 if self._owners else 0o777)

    def _dress(self, folder: int, name: bytes, member: Member) -> None:
        """A symlink or a pipe."""
        if self._owners:
            os.chown(name, member.uid, member.gid, dir_fd=folder, follow_symlinks=False)
        os.utime(name, ns=(member.mtime, member.mtime), dir_fd=folder, follow_symlinks=False)

    def _set_xattrs(self, fd: int, member: Member) -> None:
        for name, value in member.xattrs.items():
            # Others are the system's to give, or would give rights.
            if name.startswith(b"user."):
                try:
                    os.setxattr(fd, name, value)
                except OSError as error:
                    if error.errno not in {errno.ENOTSUP, errno.EPERM}:
                        raise


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _chmod(folder: int, name: bytes, mode: int) -> None:
    """Of what is there itself, even if it has become a symlink by now."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _unlink(name: bytes, folder: int) -> None:
    try:  # noqa: SIM105  contextlib would be one import more
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _nothing() -> None:
    pass
