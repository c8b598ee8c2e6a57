"""Files and trees between here and the guest, whole, also across lost connections.

Promises. A file gets its name when all of it is there and its digest is right; until then it lies beside it, on
either side, and an end in the middle takes it away. After a lost connection a file goes on at the byte it had come
to, and a tree behind the last entry that is there. A file of the guest's that has changed meanwhile is begun anew.

What reads and writes here does so in a thread: a slow disk of this side does not keep the connection from its
heartbeat.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import trio

from guestd.client.backoff import Backoff, Notice
from guestd.client.keeper import is_passing
from guestd.errors import Conflict, Corrupt, FileFailed, GuestdError
from guestd.tree.holes import may_have_holes, pieces_of
from guestd.tree.pack import Packer
from guestd.tree.tarformat import TarError
from guestd.tree.unpack import Unpacker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractAsyncContextManager

    from guestd.client.client import Client
    from guestd.client.files import Digest, Where

    Dial = Callable[[], AbstractAsyncContextManager[Client]]

#: Read here, or gathered for a write here, in one go.
_STEP = 1024 * 1024
_ZEROS = bytes(256 * 1024)
#: A file that changes each time it is read again is not worth more attempts.
_CHANGES_MAX = 5


@dataclass
class Terms:
    """How copies are made."""

    dial: Dial
    where: Where = field(default_factory=dict)  # type: ignore[assignment]
    digest: Digest = "sha256"
    #: Owners, and set-uid and set-gid bits, are kept too.
    archive: bool = False
    #: Seconds without a connection after which it is given up; None never.
    give_up: float | None = None
    backoff: Backoff = field(default_factory=Backoff)
    notice: Callable[[Notice], None] = lambda _: None
    #: Hears of bytes that have come through.
    moved: Callable[[int], None] = lambda _: None


@dataclass
class Copied:
    """What was copied. `named` are the first of those that failed or were skipped."""

    entries: int = 0
    bytes: int = 0
    skipped: int = 0
    failed: int = 0
    named: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    digest: str | None = None
    #: The file changed while it was read.
    changed: bool = False

    def add(self, counts: dict[str, Any]) -> None:
        self.skipped += int(counts.get("skipped", 0))
        self.failed += int(counts.get("failed", 0))
        self.named += counts.get("named", [])


class _Attempt(Protocol):
    """What is tried over one connection after another."""

    @property
    def progress(self) -> object:
        """Another value when a connection has brought anything."""
        ...

    async def over(self, client: Client) -> None: ...


async def _persist(terms: Terms, attempt: _Attempt) -> None:
    """Until it is done, or what is wrong is nothing that another connection would cure."""
    lost_at: float | None = None
    tries, reached = 0, False
    while True:
        before, connected = attempt.progress, False
        try:
            async with terms.dial() as client:
                connected = reached = True
                if lost_at is not None:
                    terms.notice(Notice("again"))
                await attempt.over(client)
                return
        except GuestdError as error:
            now = trio.current_time()
            if attempt.progress != before:
                lost_at, tries = None, 0
            lost_at = now if lost_at is None else lost_at
            left = None if terms.give_up is None else lost_at + terms.give_up - now
            if not reached or not is_passing(error) or (left is not None and left <= 0):
                raise
            delay = terms.backoff.delay(tries)
            if left is not None:
                delay = min(delay, left)
            terms.notice(Notice("lost" if connected else "failed", error, delay))
            tries += 1
        await trio.sleep(delay)


async def _in_thread(step: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever the step gives
    """Waited for also when cancelled: what it writes to is closed by whoever comes next."""
    return await trio.to_thread.run_sync(step)


class _Hash:
    def __init__(self, name: Digest) -> None:
        self._hash = None if name == "none" else hashlib.new(name)

    def add(self, data: bytes | memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def add_zeros(self, size: int) -> None:
        while self._hash is not None and size > 0:
            self._hash.update(_ZEROS[: min(size, len(_ZEROS))])
            size -= len(_ZEROS)

    @property
    def text(self) -> str | None:
        return None if self._hash is None else self._hash.hexdigest()


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
        self._hash = _Hash(terms.digest)
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
                self._hash = _Hash(self._terms.digest)

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
                await _in_thread(self._sink.begin)
            self._version = reader.about.get("version")
            gathered: list[tuple[int, bytes]] = []
            size = 0
            async for offset, data in reader:
                gathered.append((offset, data))
                size += len(data)
                if size >= _STEP:
                    await self._take(gathered, size)
                    gathered, size = [], 0
            await self._take(gathered, size)
            end = int(reader.result.get("size", self._at))
            await _in_thread(lambda: self._hash.add_zeros(end - self._at))
            self._at = end
            self._check(reader.result.get("digest"))
            await _in_thread(lambda: self._sink.end(end, reader.about))
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

        await _in_thread(put)
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
    await _persist(terms, attempt)
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
        self._hash = _Hash(terms.digest)
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
            await _in_thread(lambda: self._go_to(offset))
            pieces = (
                pieces_of(self._fd, offset, self._size)
                if self._sparse
                else iter([(offset, self._size - offset)])
            )
            end = offset
            for start, length in pieces:
                at = start
                while at < start + length:
                    data = await _in_thread(lambda at=at, left=start + length - at: self._read(at, left))
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
            await _in_thread(lambda: self._hash.add_zeros(size - self._hashed))
            self._hashed = size
            del end
            result = await writer.finish(size, self._hash.text)
            self.copied.bytes = int(result.get("size", size))
            self.copied.digest = self._hash.text

    def _go_to(self, offset: int) -> None:
        """Have the digest of what is before an offset."""
        if offset == self._hashed:
            return
        self._hash, self._hashed = _Hash(self._terms.digest), 0
        while self._hashed < offset and self._read(self._hashed, offset - self._hashed):
            pass

    def _read(self, offset: int, most: int) -> bytes:
        data = os.pread(self._fd, min(_STEP, most), offset)
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
    await _persist(terms, attempt)
    return attempt.copied


def _xattrs(fd: int) -> dict[str, bytes] | None:
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if name.startswith("user.")} or None
    except OSError:
        return None


# ---------------------------------------------------------------------------------------------------------------- trees


class _DownloadTree:
    def __init__(
        self, terms: Terms, path: str | bytes, folder: bytes, name: bytes, *, fresh: bool, follow: bool
    ) -> None:
        self._terms = terms
        self._path = path
        self._folder = folder
        self._name = name
        self._fresh = fresh
        self._follow = follow
        self._last = b""
        self.copied = Copied()

    @property
    def progress(self) -> object:
        return self._last

    async def over(self, client: Client) -> None:
        terms = self._terms
        umask = os.umask(0)
        os.umask(umask)
        async with client.files.pack(
            self._path,
            name=self._name,
            after=self._last or None,
            follow=self._follow,
            digest=terms.digest,
            **terms.where,
        ) as reader:
            top = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            unpacker = Unpacker(top, fresh=self._fresh, owners=terms.archive, umask=umask)
            digest = _Hash(terms.digest)

            def feed(gathered: list[bytes]) -> None:
                for data in gathered:
                    digest.add(data)
                    unpacker.feed(data)

            try:
                with _told_as_file_errors(self._folder):
                    gathered: list[bytes] = []
                    size = 0
                    async for _, data in reader:
                        gathered.append(data)
                        size += len(data)
                        if size >= _STEP:
                            await _in_thread(lambda some=gathered: feed(some))
                            terms.moved(size)
                            gathered, size = [], 0
                    await _in_thread(lambda some=gathered: feed(some))
                    terms.moved(size)
                    if digest.text is not None and reader.result.get("digest") not in {None, digest.text}:
                        raise Corrupt("the tree arrived damaged: its digest is another one; copy it again")
                    await _in_thread(unpacker.finish)
                self.copied.add(reader.result)
            finally:
                self._last = unpacker.last or self._last
                self.copied.entries += unpacker.entries
                self.copied.bytes += unpacker.bytes
                self.copied.add(unpacker.told.to_map())
                unpacker.close()


async def download_tree(
    terms: Terms, path: str | bytes, folder: bytes, name: bytes, *, fresh: bool = False, follow: bool = False
) -> Copied:
    """What is at a path of the guest's into a folder here, under that name; `.` for what is in it alone."""
    attempt = _DownloadTree(terms, path, folder, name, fresh=fresh, follow=follow)
    await _persist(terms, attempt)
    return attempt.copied


class _UploadTree:
    def __init__(
        self,
        terms: Terms,
        make: Callable[[Packer], Iterator[bytes]],
        folder: str | bytes,
        options: dict[str, Any],
    ) -> None:
        self._terms = terms
        self._make = make
        self._folder = folder
        self._options = options
        self._last = b""
        self.copied = Copied()

    @property
    def progress(self) -> object:
        return self._last

    async def over(self, client: Client) -> None:
        terms = self._terms
        async with client.files.unpack(
            self._folder, owners=terms.archive, digest=terms.digest, **self._options, **terms.where
        ) as writer:
            if writer.about.get("fresh"):
                self._options["fresh"] = True
            packer = Packer(after=self._last or None)
            digest = _Hash(terms.digest)
            chunks = self._make(packer)

            def some() -> list[bytes]:
                found: list[bytes] = []
                size = 0
                while size < _STEP and (data := next(chunks, b"")):
                    found.append(data)
                    size += len(data)
                    digest.add(data)
                return found

            try:
                while found := await _in_thread(some):
                    for data in found:
                        await writer.send(data)
                        terms.moved(len(data))
                    self._note(writer.done)
                result = await writer.finish(digest=digest.text)
            finally:
                self._note(writer.done)
                close = getattr(chunks, "close", None)
                if close is not None:
                    await _in_thread(close)
            self.copied.entries = max(self.copied.entries, packer.entries)
            self.copied.bytes += int(result.get("bytes", 0))
            self.copied.add(result)
            self.copied.add(packer.told.to_map())

    def _note(self, done: dict[str, Any]) -> None:
        last = done.get("last")
        if isinstance(last, str) and last:
            self._last = last.encode("utf-8", "surrogateescape")


async def upload_tree(
    terms: Terms,
    source: bytes,
    name: bytes,
    folder: str | bytes,
    *,
    follow: bool = False,
    **options: Any,  # noqa: ANN401  as `files.unpack` has them
) -> Copied:
    """What is at a path here into a folder of the guest's, under that name; `.` for what is in it alone."""
    attempt = _UploadTree(
        terms, lambda packer: _chunks(packer, source, name, follow=follow), folder, dict(options)
    )
    await _persist(terms, attempt)
    return attempt.copied


def _chunks(packer: Packer, source: bytes, name: bytes, *, follow: bool) -> Iterator[bytes]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    above, last = os.path.split(source.rstrip(b"/") or b"/")
    if follow or last in {b"", b".", b".."} or name == b".":
        yield from packer.open_folder(os.open(source, flags), name)
        return
    parent = os.open(above or b".", flags)
    try:
        yield from packer.chunks(parent, last, name)
    finally:
        os.close(parent)


@contextmanager
def _told_as_file_errors(path: bytes) -> Generator[None]:
    try:
        yield
    except TarError as error:
        raise FileFailed(f"the guest sent what is no tree: {error}") from None
    except OSError as error:
        at = os.fsdecode(error.filename or path)
        raise FileFailed(f"cannot write {at!r} here: {error.strerror or error}", path=at) from error
