"""A file from the guest or to it, whole, also across lost connections.

Promises. A file gets its name when all of it is there and its digest is right; until then it lies beside it, on
either side, and an end in the middle takes it away. After a lost connection it goes on at the byte it had come to. A
file of the guest's that has changed meanwhile is begun anew.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Protocol

from guestd.client.copying import STEP, Copied, Hash, Terms, in_thread, persist
from guestd.errors import Conflict, Corrupt, FileFailed
from guestd.tree.holes import may_have_holes, pieces_of

if TYPE_CHECKING:
    from guestd.client.client import Client

#: A file that changes each time it is read again is not worth more attempts.
_CHANGES_MAX = 5


# ---------------------------------------------------------------------------------------------------- a file from there


class Sink(Protocol):
    """Where the bytes of a file go. Called in a thread."""

    def begin(self) -> None:
        """From its first byte (on)."""
        ...

    def put(self, offset: int, data: bytes) -> None: ...
    def end(self, size: int, about: dict[str, Any]) -> None: ...


class _Download:
    def __init__(self, terms: Terms, path: str | bytes, sink: Sink, *, can_begin_anew: bool) -> None:
        self._terms = terms
        self._path = path
        self._sink = sink
        self._can_begin_anew = can_begin_anew
        self._version: str | None = None
        self._at = 0
        self._begun = 0
        self._hash = Hash(terms.digest)
        self.copied = Copied(entries=1)

    @property
    def progress(self) -> object:
        return self._begun, self._at

    async def over(self, client: Client) -> None:
        while True:
            try:
                await self._read(client)
                return
            except Conflict:
                if not self._can_begin_anew or self._begun >= _CHANGES_MAX:
                    raise
                self._version, self._at = None, 0
                self._hash = Hash(self._terms.digest)

    async def _read(self, client: Client) -> None:
        terms = self._terms
        async with client.files.read(
            self._path,
            offset=self._at,
            version=self._version,
            digest=terms.digest,
            xattrs=True,
            **terms.where,
        ) as reader:
            if self._version is None:
                self._begun += 1
                await in_thread(self._sink.begin)
            self._version = reader.about.get("version")
            gathered: list[tuple[int, bytes]] = []
            size = 0
            async for offset, data in reader:
                gathered.append((offset, data))
                size += len(data)
                if size >= STEP:
                    await self._take(gathered, size)
                    gathered, size = [], 0
            await self._take(gathered, size)
            end = int(reader.result.get("size", self._at))
            await in_thread(lambda: self._hash.add_zeros(end - self._at))
            self._at = end
            self._check(reader.result.get("digest"))
            await in_thread(lambda: self._sink.end(end, reader.about))
            self.copied.bytes = end
            self.copied.digest = self._hash.text
            self.copied.changed = reader.result.get("changed") is True

    async def _take(self, gathered: list[tuple[int, bytes]], size: int) -> None:
        def put() -> None:
            for offset, data in gathered:
                self._hash.add_zeros(offset - self._at)
                self._sink.put(offset, data)
                self._hash.add(data)
                self._at = offset + len(data)

        await in_thread(put)
        self._terms.moved(size)

    def _check(self, digest: object) -> None:
        mine = self._hash.text
        if mine is not None and digest is not None and digest != mine:
            raise Corrupt(
                f"what arrived has the {self._terms.digest} {mine}, and the guest's file has {digest}; copy it again"
            )


async def download(terms: Terms, path: str | bytes, sink: Sink, *, can_begin_anew: bool = True) -> Copied:
    """A file of the guest's into a sink. One that cannot begin anew (a pipe) meets Conflict where it would have to."""
    attempt = _Download(terms, path, sink, can_begin_anew=can_begin_anew)
    await persist(terms, attempt)
    return attempt.copied


class LocalFile:
    """A file here that is to be: it has its name when it is whole."""

    def __init__(self, path: bytes, *, archive: bool) -> None:
        # A symlink there stands for the file that it names.
        self._path = os.path.realpath(path)
        self._archive = archive
        folder, name = os.path.split(self._path)
        self._temporary = os.path.join(folder, b".guestd-" + os.urandom(6).hex().encode() + b"-" + name[:200])
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd: int | None = os.open(self._temporary, flags, 0o600)

    def begin(self) -> None:
        os.truncate(self._open, 0)

    @property
    def _open(self) -> int:
        assert self._fd is not None
        return self._fd

    def put(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            size = os.pwrite(self._open, view, offset)
            offset += size
            view = view[size:]

    def end(self, size: int, about: dict[str, Any]) -> None:
        fd = self._open
        os.truncate(fd, size)
        if self._archive:
            os.chown(fd, about["uid"], about["gid"])
        os.chmod(fd, about["mode"] & (0o7777 if self._archive else 0o777))
        for name, value in about.get("xattrs", {}).items():
            if name.startswith("user."):
                try:
                    os.setxattr(fd, name, value)
                except OSError:
                    break  # this file system has none
        os.utime(fd, ns=(about["mtime"], about["mtime"]))
        os.rename(self._temporary, self._path)
        self._temporary = b""

    def close(self) -> None:
        """A half of it does not stay."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            if self._temporary:
                os.unlink(self._temporary)


# ------------------------------------------------------------------------------------------------------ a file to there


class _Upload:
    def __init__(self, terms: Terms, fd: int, path: str | bytes, options: dict[str, Any]) -> None:
        self._terms = terms
        self._fd = fd
        self._path = path
        self._options = options
        self._size = os.fstat(fd).st_size
        self._sparse = may_have_holes(os.fstat(fd))
        self._upload = os.urandom(12).hex()
        self._hash = Hash(terms.digest)
        self._hashed = 0
        self._sent = 0
        self.copied = Copied(entries=1)

    @property
    def progress(self) -> object:
        return self._sent

    async def over(self, client: Client) -> None:
        terms = self._terms
        async with client.files.write(
            self._path, upload=self._upload, digest=terms.digest, **self._options, **terms.where
        ) as writer:
            offset = writer.offset
            await in_thread(lambda: self._go_to(offset))
            pieces = (
                pieces_of(self._fd, offset, self._size)
                if self._sparse
                else iter([(offset, self._size - offset)])
            )
            end = offset
            for start, length in pieces:
                at = start
                while at < start + length:
                    data = await in_thread(lambda at=at, left=start + length - at: self._read(at, left))
                    if not data:
                        self._size = at  # it became shorter
                        break
                    await writer.send(data, at)
                    at += len(data)
                    self._sent = max(self._sent, at)
                    terms.moved(len(data))
                end = at
                if at < start + length:
                    break
            size = self._size
            await in_thread(lambda: self._hash.add_zeros(size - self._hashed))
            self._hashed = size
            del end
            result = await writer.finish(size, self._hash.text)
            self.copied.bytes = int(result.get("size", size))
            self.copied.digest = self._hash.text

    def _go_to(self, offset: int) -> None:
        """Have the digest of what is before an offset."""
        if offset == self._hashed:
            return
        self._hash, self._hashed = Hash(self._terms.digest), 0
        while self._hashed < offset and self._read(self._hashed, offset - self._hashed):
            pass

    def _read(self, offset: int, most: int) -> bytes:
        data = os.pread(self._fd, min(STEP, most), offset)
        self._hash.add_zeros(offset - self._hashed)
        self._hash.add(data)
        self._hashed = offset + len(data)
        return data


async def upload(terms: Terms, fd: int, path: str | bytes, **options: Any) -> Copied:  # noqa: ANN401  as `files.write` has them
    """An open file of this side to the guest. Its mode and times go with it, unless said otherwise."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise FileFailed("what is to be sent is no file")
    found: dict[str, Any] = {
        "mode": status.st_mode & (0o7777 if terms.archive else 0o777),
        "mtime": status.st_mtime_ns,
        "xattrs": _xattrs(fd),
        **options,
    }
    if terms.archive:
        found.update(owner=status.st_uid, group=status.st_gid)
    attempt = _Upload(terms, fd, path, found)
    await persist(terms, attempt)
    return attempt.copied


def _xattrs(fd: int) -> dict[str, bytes] | None:
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if name.startswith("user.")} or None
    except OSError:
        return None
