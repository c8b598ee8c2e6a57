"""What is in one file: read, write, hash. Run in the file process, as the user who asks.

Memory is one chunk, whatever the size. What is written lies beside its name until all of it is there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time

from guestd.storage.file_digest import Digest
from guestd.storage.file_line import (
    ACCEPT,
    DATA,
    DATA_AT,
    END,
    EVENT,
    SYNC_PATIENCE,
    Gone,
    Line,
    Refused,
    read_message,
)
from guestd.storage.file_places import Places, describe, version
from guestd.tree.holes import CHUNK, may_have_holes, pieces_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
#: How long another process, of a connection that was lost, may hold a file that is being sent.
_LOCK_PATIENCE = 5.0


# ------------------------------------------------------------------------------------------------------------- reading


def _open_file(places: Places, path: bytes) -> tuple[int, os.stat_result]:
    # Looked at before it is opened: to open a device may do something.
    place = places.open(path, os.O_PATH)
    try:
        status = os.fstat(place)
        if stat.S_ISREG(status.st_mode):
            return os.open(f"/proc/self/fd/{place}", _READ | os.O_CLOEXEC), status
    finally:
        os.close(place)
    shown = path.decode("utf-8", "surrogateescape")
    if stat.S_ISDIR(status.st_mode):
        raise Refused(
            "file", f"{shown!r} is a directory; `pack` reads those (EISDIR)", path=shown, errno=errno.EISDIR,
            errno_name="EISDIR",
        )  # fmt: skip
    raise Refused(
        "file", f"{shown!r} is no file with a content of its own (a pipe, socket or device)", path=shown
    )


def read(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """A file, or a stretch of it, on stream 1; a hole is a step in the offsets."""
    path: bytes = ask["path"]
    fd, status = _open_file(places, path)
    try:
        begun = version(status)
        if ask["version"] is not None and ask["version"] != begun:
            raise Refused(
                "conflict",
                f"{path.decode('utf-8', 'surrogateescape')!r} has changed; begin again",
                version=begun,
            )
        start, size = ask["offset"], status.st_size
        if start > size:
            raise Refused("bad_offset", f"the file has {size} bytes; offset {start} is beyond its end")
        end = size if ask["length"] is None else min(size, start + ask["length"])
        accepted = describe(status)
        if ask["xattrs"]:
            accepted["xattrs"] = _xattrs(fd)
        line.say(ACCEPT, accepted)
        digest = Digest(ask["digest"])
        digest.add_file(line, fd, 0, start)
        if size == 0 and not start:
            at = _endless(line, fd, digest, ask["length"])
        else:
            at = _stretches(line, fd, status, start, end, digest)
        now = version(os.fstat(fd))
        line.say(END, {"size": at, "changed": now != begun, "version": now, **digest.told()})
    finally:
        os.close(fd)


def _stretches(line: Line, fd: int, status: os.stat_result, start: int, end: int, digest: Digest) -> int:
    """Send from one offset to another. Returns how far it came: less where the file became shorter."""
    room = line.room()
    at = start
    for offset, length in pieces_of(fd, start, end) if may_have_holes(status) else ((start, end - start),):
        digest.add_zeros(line, offset - at)
        at, stop = offset, offset + length
        while at < stop:
            size = os.preadv(fd, [room[DATA_AT : DATA_AT + min(CHUNK, stop - at)]], at)
            if not size:
                return at
            line.data(room, 1, at, size)
            digest.add(room[DATA_AT : DATA_AT + size])
            at += size
    digest.add_zeros(line, end - at)
    return end


def _endless(line: Line, fd: int, digest: Digest, most: int | None) -> int:
    """A file that says that it is empty, as those of /proc do: what can be read of it."""
    at = 0
    while most is None or at < most:
        data = os.read(fd, CHUNK if most is None else min(CHUNK, most - at))
        if not data:
            break
        line.bytes(1, at, data)
        digest.add(data)
        at += len(data)
    return at


def hash_(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """The digest of a whole file."""
    fd, status = _open_file(places, ask["path"])
    try:
        digest = Digest(ask["digest"])
        digest.add_file(line, fd, 0, 2**63 - 1 if not status.st_size else status.st_size)
        line.say(END, {"size": status.st_size, "version": version(status), **digest.told()})
    finally:
        os.close(fd)


def _xattrs(fd: int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if name.startswith("user.")}
    except OSError:
        return {}


# ------------------------------------------------------------------------------------------------------------- writing


class _Upload:
    """A file on its way to its name: it lies beside it until all of it is there."""

    def __init__(self, folder: int, name: bytes, key: bytes | None) -> None:
        self._folder = folder
        self.name = name
        self.temporary = temporary_name(name, key)
        self._resumable = key is not None
        self._placed = False
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if key is not None else os.O_EXCL)
        self.fd = os.open(self.temporary, flags, 0o600, dir_fd=folder)
        try:
            self._take()
        except BaseException:
            os.close(self.fd)
            raise

    def _take(self) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    break  # a file system without locks
                if time.monotonic() > deadline:
                    raise Refused("conflict", "this upload goes on over another connection") from None
                time.sleep(0.02)
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode) or (status.st_size and status.st_uid != os.geteuid()):
            raise Refused("conflict", "what lies where this upload began is not what it left there")
        self.size = status.st_size

    def place(self, *, exclusive: bool) -> None:
        if exclusive:
            os.link(self.temporary, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        else:
            os.rename(self.temporary, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._placed = True

    def close(self, *, keep: bool) -> None:
        try:
            if keep and self._resumable and not self._placed:
                os.truncate(self.fd, self.size)  # a hole at its end counts as sent
            elif not self._placed:
                os.unlink(self.temporary, dir_fd=self._folder)
        finally:
            os.close(self.fd)


def temporary_name(name: bytes, key: bytes | None) -> bytes:
    """Of its own for each upload; the same for one that goes on. Not longer than a name may be."""
    mark = (
        os.urandom(6)
        if key is None
        else hashlib.blake2b(key, digest_size=6, person=b"guestd-upload").digest()
    )
    return b".guestd-" + mark.hex().encode() + b"-" + name[:200]


def write(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """A file that is there when all of it is: written beside its name, synced, renamed."""
    folder, name, path = places.target(ask["path"], make=ask["parents"])
    try:
        before = _before(folder, name, path, exclusive=ask["exclusive"])
        upload = _Upload(folder, name, ask["upload"])
        keep = False
        try:
            digest = Digest(ask["digest"])
            digest.add_file(line, upload.fd, 0, upload.size)
            line.say(ACCEPT, {"offset": upload.size, "existed": before is not None})
            _receive(line, upload, digest)
            line.patience(SYNC_PATIENCE)
            _dress(upload.fd, ask, before)
            if ask["sync"]:
                os.fsync(upload.fd)
            upload.place(exclusive=ask["exclusive"])
            if ask["sync"]:
                _sync_folder(folder)
            told = describe(os.fstat(upload.fd))
        except Gone as gone:
            keep = gone.kept
            raise
        finally:
            upload.close(keep=keep)
        line.say(END, {"path": path.decode("utf-8", "surrogateescape"), **told, **digest.told()})
    finally:
        os.close(folder)


def _before(folder: int, name: bytes, path: bytes, *, exclusive: bool) -> os.stat_result | None:
    """What has the name now, if it may give way."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    shown = path.decode("utf-8", "surrogateescape")
    if exclusive:
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "no file (a pipe, socket or device)"
        raise Refused("file", f"{shown!r} is {what}, which is not replaced by a file", path=shown)
    return status


def _receive(line: Line, upload: _Upload, digest: Digest) -> None:
    """Everything up to the client's word that this was all."""
    fd = upload.fd
    os.lseek(fd, upload.size, os.SEEK_SET)
    while True:
        kind, payload = line.receive()
        if kind == DATA:
            offset, data = int.from_bytes(payload[1:9], "little"), payload[9:]
            if offset < upload.size:
                raise Refused("bad_offset", f"data of offset {offset} came where {upload.size} was next")
            if offset > upload.size:
                digest.add_zeros(line, offset - upload.size)
                os.lseek(fd, offset, os.SEEK_SET)
                upload.size = offset
            digest.add(data)
            while data:
                size = os.write(fd, data)
                upload.size += size
                data = data[size:]
        elif kind == EVENT:
            last = read_message(payload)
            if last["offset"] != upload.size:
                digest.add_zeros(line, last["offset"] - upload.size)
                upload.size = last["offset"]
                os.truncate(fd, upload.size)
            digest.check(last["digest"])
            return


def _dress(fd: int, ask: dict[str, Any], before: os.stat_result | None) -> None:
    """Owner first: giving a file away takes bits of its mode."""
    uid, gid = ask["owner"], ask["group"]
    if uid is not None or gid is not None:
        os.chown(fd, -1 if uid is None else uid, -1 if gid is None else gid)
    elif before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
        try:  # noqa: SIM105  contextlib would be one import more
            os.chown(fd, before.st_uid, before.st_gid)
        except PermissionError:
            pass  # it becomes this user's, as with any program that replaces a file
    mode = ask["mode"]
    if mode is None:
        mode = 0o666 & ~ask["umask"] if before is None else before.st_mode & 0o777
    os.chmod(fd, mode)
    for name, value in ask["xattrs"].items():
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
    if ask["mtime"] is not None:
        os.utime(fd, ns=(ask["mtime"], ask["mtime"]))


def _sync_folder(folder: int) -> None:
    """The name is to last too. Who may write in a folder and not read it cannot have that."""
    try:
        fd = os.open(f"/proc/self/fd/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """Take away what an upload left behind that nobody came back for."""
    folder, name, _ = places.target(ask["path"])
    try:
        os.unlink(temporary_name(name, ask["upload"]), dir_fd=folder)
    finally:
        os.close(folder)
    line.say(END, {})
