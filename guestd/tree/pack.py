"""A tree as a tar stream, made while it is read.

Promises. No symlink is followed: each folder is opened below the one before it, so a folder that is replaced by a
symlink while it is read leads nowhere else. What cannot be read is left out and told, and the rest goes on. Hard
links inside the tree stay hard links. Entries come in one order (by name, a folder before what is in it), so that a
stream that was cut can be continued behind an entry: see `after`. Memory is bounded by the names of the largest
folder, and for one of more than SORTED_MAX not even by those; such a folder is sent again from its beginning.
"""

from __future__ import annotations

import errno
import os
import stat

from guestd.tree.holes import CHUNK, may_have_holes, pieces_of
from guestd.tree.tarformat import (
    END,
    FIFO,
    FILE,
    FOLDER,
    HARD_LINK,
    PIECES_MAX,
    SYMLINK,
    Member,
    encode,
    padding,
)
from guestd.tree.told import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: A name in a folder, and whether it is a folder or a file itself.
    _Name = tuple[bytes, bool, bool]

SORTED_MAX = 200_000
#: Files with several names that are remembered. What comes beyond is sent as a file of its own.
LINKS_MAX = 100_000
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = _FLAGS | os.O_DIRECTORY


class Packer:
    """See the module. `chunks` gives the stream; the counts are right at any time."""

    def __init__(self, *, after: bytes | None = None, xattrs: bool = True) -> None:
        #: The last entry that the other side has; what comes up to there is passed over.
        self._after = after.split(b"/") if after else None
        self._xattrs = xattrs
        self._out = bytearray()
        self._links: dict[tuple[int, int], bytes] = {}
        self.told = Told()
        self.entries = 0
        self.bytes = 0
        #: Called between entries, for whoever has to say that this goes on.
        self.step: Callable[[], None] = _nothing

    def chunks(self, folder: int, name: bytes, as_name: bytes) -> Iterator[bytes]:
        """The entry `name` of an open folder, with all below it, under another name. Raises OSError for that one."""
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from self._tree(os.open(name, _FOLDER, dir_fd=folder), as_name)
        else:
            yield from self._entry(folder, name, as_name, is_file=stat.S_ISREG(status.st_mode))
        yield from self._end()

    def open_folder(self, folder: int, as_name: bytes) -> Iterator[bytes]:
        """An open folder, with all below it. It is closed."""
        yield from self._tree(folder, as_name)
        yield from self._end()

    def _end(self) -> Iterator[bytes]:
        self._out += END
        yield bytes(self._out)
        self._out.clear()

    # ------------------------------------------------------------------------------------------- folders

    def _tree(self, top: int, as_name: bytes) -> Iterator[bytes]:
        stack: list[tuple[int, bytes, Iterator[_Name]]] = []
        try:
            self._enter(stack, top, as_name)
            while stack:
                fd, path, names = stack[-1]
                for name, is_folder, is_file in names:
                    full = name if path == b"." else path + b"/" + name
                    try:
                        if is_folder:
                            self._enter(stack, os.open(name, _FOLDER, dir_fd=fd), full)
                            break
                        yield from self._entry(fd, name, full, is_file=is_file)
                    except OSError as error:
                        self._failed(full, error)
                    if len(self._out) >= CHUNK:
                        yield bytes(self._out)
                        self._out.clear()
                else:
                    os.close(fd)
                    stack.pop()
                self.step()
        finally:
            for fd, _, names in stack:
                _close(names)
                os.close(fd)

    def _enter(self, stack: list[tuple[int, bytes, Iterator[_Name]]], fd: int, path: bytes) -> None:
        try:
            status = os.fstat(fd)
            # Sent again where the stream goes on below it: whoever unpacks needs its mode and times at its end.
            member = self._member(path, FOLDER, status)
            if self._xattrs:
                member.xattrs = _read_xattrs(fd)
            names = self._names(fd)
        except BaseException:
            os.close(fd)
            raise
        if self._wanted(path, folder=True):
            member.name = path + b"/"
            self._out += encode(member)
            self.entries += 1
        stack.append((fd, path, names))

    def _names(self, fd: int) -> Iterator[_Name]:
        found: list[_Name] = []
        listing = os.scandir(fd)
        for entry in listing:  # closed by its end; and one that is left, with its iterator
            found.append(_read_name(entry))
            if len(found) > SORTED_MAX:
                self._after = None
                return _rest(found, listing)
        listing.close()
        found.sort()
        return iter(found)

    def _wanted(self, path: bytes, *, folder: bool = False) -> bool:
        """Does it come behind what the other side has?"""
        after = self._after
        if after is None:
            return True
        if path == b".":
            return True
        parts = path.split(b"/")
        if folder and parts == after[: len(parts)]:
            return True
        return parts > after

    # ------------------------------------------------------------------------------------------- the others

    def _entry(self, folder: int, name: bytes, path: bytes, *, is_file: bool) -> Iterator[bytes]:
        wanted = self._wanted(path)
        if not is_file or not wanted:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                # Never opened: to open a device may do something, and a pipe has another end that would notice.
                if wanted:
                    self._special(folder, name, path, status)
                return
            if not wanted and status.st_nlink == 1:
                return
        fd = os.open(name, _FLAGS, dir_fd=folder)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ESTALE, "it became something else while its folder was read")
            if status.st_nlink > 1 and self._link(path, status, wanted=wanted):
                return
            if wanted:
                yield from self._file(fd, path, status)
        finally:
            os.close(fd)

    def _link(self, path: bytes, status: os.stat_result, *, wanted: bool) -> bool:
        """Is it another name of a file that was sent before?"""
        key = (status.st_dev, status.st_ino)
        first = self._links.get(key)
        if first is None:
            if len(self._links) < LINKS_MAX:
                self._links[key] = path
            return not wanted
        if wanted:
            member = self._member(path, HARD_LINK, status)
            member.link = first
            self._out += encode(member)
            self.entries += 1
        return True

    def _special(self, folder: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        mode = status.st_mode
        if stat.S_ISLNK(mode):
            member = self._member(path, SYMLINK, status)
            member.link = os.readlink(name, dir_fd=folder)
        elif stat.S_ISFIFO(mode):
            member = self._member(path, FIFO, status)
        else:
            what = "a socket" if stat.S_ISSOCK(mode) else "a device"
            self.told.skip(path, f"it is {what}, and those are not copied")
            return
        self._out += encode(member)
        self.entries += 1

    def _file(self, fd: int, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        size = status.st_size
        member = self._member(path, FILE, status)
        if self._xattrs:
            member.xattrs = _read_xattrs(fd)
        self.entries += 1
        self.bytes += size
        if size <= CHUNK and not may_have_holes(status):
            member.size = size
            data = os.read(fd, size) if size else b""
            self._out += encode(member)
            self._out += data
            if len(data) != size:
                self._out += self._rest_of(fd, path, data, size)
            self._out += bytes(padding(size))
            return
        pieces = [(0, size)] if size else []
        if may_have_holes(status):
            pieces = _few(list(pieces_of(fd, 0, size)), size)
            if not pieces or sum(pieces[-1]) < size:
                pieces.append((size, 0))  # without which GNU tar would leave out a hole at the end
            member.pieces, member.real_size = pieces, size
        member.size = size
        self._out += encode(member)
        yield bytes(self._out)
        self._out.clear()
        stored = 0
        for offset, length in pieces:
            stored += length
            yield from self._piece(fd, path, offset, length)
        self._out += bytes(padding(stored))

    def _piece(self, fd: int, path: bytes, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        while offset < end:
            data = os.pread(fd, min(CHUNK, end - offset), offset)
            if not data:
                # The header has promised so many; the archive stays whole.
                self.told.fail(path, "it became shorter while it was read; its end is filled with zeros")
                while offset < end:
                    data = bytes(min(CHUNK, end - offset))
                    offset += len(data)
                    yield data
                return
            offset += len(data)
            yield data
            self.step()

    def _rest_of(self, fd: int, path: bytes, data: bytes, size: int) -> bytes:
        return b"".join(self._piece(fd, path, len(data), size - len(data)))

    def _member(self, path: bytes, type: bytes, status: os.stat_result) -> Member:
        member = Member(path, type)
        member.mode = status.st_mode & 0o7777
        member.uid, member.gid = status.st_uid, status.st_gid
        member.mtime = status.st_mtime_ns
        return member

    def _failed(self, path: bytes, error: OSError) -> None:
        if error.errno != errno.ENOENT:  # gone since its folder was read: nobody can want it
            self.told.fail(path, error.strerror or str(error))


def _read_name(entry: os.DirEntry[str]) -> _Name:
    return (
        os.fsencode(entry.name),
        entry.is_dir(follow_symlinks=False),
        entry.is_file(follow_symlinks=False),
    )


def _rest(found: list[_Name], listing: Iterator[os.DirEntry[str]]) -> Iterator[_Name]:
    yield from found
    for entry in listing:
        yield _read_name(entry)


def _close(names: Iterator[_Name]) -> None:
    close = getattr(names, "close", None)
    if close is not None:
        close()


def _few(pieces: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    if len(pieces) <= PIECES_MAX:
        return pieces
    kept = pieces[: PIECES_MAX - 1]
    begin = pieces[PIECES_MAX - 1][0]
    return [*kept, (begin, size - begin)]


def _read_xattrs(fd: int) -> dict[bytes, bytes]:
    """Those that users may set. A file system without them has none."""
    try:
        names = os.listxattr(fd)
    except OSError:
        return {}
    return {os.fsencode(name): os.getxattr(fd, name) for name in names if name.startswith("user.")}


def _nothing() -> None:
    pass
