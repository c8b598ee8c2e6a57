"""A tree from the guest or to it, as a tar stream, also across lost connections.

Promises. After a lost connection it goes on behind the last entry that is there. What fails or is skipped on either
side is counted and named, and the rest is copied all the same.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from guestd.client.copying import STEP, Copied, Hash, Terms, in_thread, persist
from guestd.errors import Corrupt, FileFailed
from guestd.tree.pack import Packer
from guestd.tree.tarformat import TarError
from guestd.tree.unpack import Unpacker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from guestd.client.client import Client


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
            digest = Hash(terms.digest)

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
                        if size >= STEP:
                            await in_thread(lambda some=gathered: feed(some))
                            terms.moved(size)
                            gathered, size = [], 0
                    await in_thread(lambda some=gathered: feed(some))
                    terms.moved(size)
                    if digest.text is not None and reader.result.get("digest") not in {None, digest.text}:
                        raise Corrupt("the tree arrived damaged: its digest is another one; copy it again")
                    await in_thread(unpacker.finish)
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
    await persist(terms, attempt)
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
            digest = Hash(terms.digest)
            chunks = self._make(packer)

            def some() -> list[bytes]:
                found: list[bytes] = []
                size = 0
                while size < STEP and (data := next(chunks, b"")):
                    found.append(data)
                    size += len(data)
                    digest.add(data)
                return found

            try:
                while found := await in_thread(some):
                    for data in found:
                        await writer.send(data)
                        terms.moved(len(data))
                    self._note(writer.done)
                result = await writer.finish(digest=digest.text)
            finally:
                self._note(writer.done)
                close = getattr(chunks, "close", None)
                if close is not None:
                    await in_thread(close)
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
    await persist(terms, attempt)
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
