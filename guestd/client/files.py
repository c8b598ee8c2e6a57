"""The guest's files: `client.files`.

    about = await client.files.stat("/etc/hostname")
    async with client.files.read("/var/log/syslog") as reader:
        async for offset, data in reader:
            ...
    async with client.files.write("notes.txt", mode=0o600) as writer:
        await writer.send(b"hello")
        await writer.finish()

A path that is not absolute begins at the workspace. `root` keeps a path below a folder, symlinks included; `user` is
whose rights count. What outlasts lost connections is in guestd.client.copying_files, copying_trees and watching.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, cast

import msgpack
import trio

from guestd.client.inbox import Inbox, Output
from guestd.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
    from typing import Unpack

    from guestd.client.channel import Channel
    from guestd.client.connection import Connection
    from guestd.wire.messages import Fields

Digest = Literal["sha256", "blake2b", "none"]


class Where(TypedDict, total=False):
    """What every request about a path can say besides."""

    root: str | bytes
    user: str | int


class _FileInbox(Inbox):
    """Data as it comes: a step in the offsets is a hole in a file, and not a loss."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        super().__init__()
        #: What the guest said last of how far it is.
        self.done: dict[str, Any] = {}

    def put(self, number: int, offset: int, data: memoryview) -> int:
        del number
        if self._discarding:
            return len(data)
        self._append("data", offset, data)
        return 0

    def event(self, fields: Fields) -> None:
        if fields.raw("event") == "done":
            self.done = fields.to_map()


class Reader:
    """Bytes from the guest. Iterating gives each piece with its offset; `result` is there behind the last one."""

    def __init__(self, channel: Channel, about: dict[str, Any]) -> None:
        self._channel = channel
        #: What the guest said of the file when it began.
        self.about = about

    @property
    def result(self) -> dict[str, Any]:
        """How it ended: `size`, `digest`, whether it has `changed` meanwhile."""
        return self._channel.final or {}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        while (item := await self._channel.take()) is not None:
            if isinstance(item, Output):
                return item.offset, item.data
        raise StopAsyncIteration


class Writer:
    """Bytes to the guest. `offset` is where the next ones belong."""

    def __init__(self, channel: Channel, inbox: _FileInbox, about: dict[str, Any]) -> None:
        self._channel = channel
        self._inbox = inbox
        self.about = about
        self.offset: int = about.get("offset", 0)

    @property
    def done(self) -> dict[str, Any]:
        """Of a tree: how far the guest said last that it was (`entries`, `bytes`, `last`)."""
        return self._inbox.done

    async def send(self, data: bytes | memoryview, offset: int | None = None) -> None:
        """Send what comes next; at a larger offset, behind a hole. Waits while the guest does not take it."""
        if offset is not None:
            self.offset = offset
        rest = memoryview(data)
        while rest:
            try:
                sent = await self._channel.send(rest, self.offset)
            except trio.BrokenResourceError:
                await self._channel.wait_final()
                return
            self.offset += sent
            rest = rest[sent:]

    async def finish(self, size: int | None = None, digest: str | None = None) -> dict[str, Any]:
        """That was all; wait until it is there. `digest` is checked against what arrived."""
        fields: dict[str, Any] = {"event": "eof", "offset": self.offset if size is None else size}
        if digest is not None:
            fields["digest"] = digest
        self._channel.event(fields)
        return await self._channel.wait_final()


class Files:
    """See the module."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def stat(self, path: str | bytes, *, follow: bool = True, **where: Unpack[Where]) -> dict[str, Any]:
        """Type, size, mode, owner, times. Without `follow`, of a symlink itself."""
        return await self._ask(op="stat", path=path, follow=follow, **where)

    async def list(self, path: str | bytes, **where: Unpack[Where]) -> AsyncGenerator[dict[str, Any]]:
        """What is in a folder, one entry after another, in no order."""
        async with self._reading(op="list", path=path, **where) as reader:
            maps = _Maps()
            async for _, data in reader:
                for entry in maps.feed(data):
                    yield entry

    async def make(
        self, path: str | bytes, *, parents: bool = False, mode: int | None = None, **where: Unpack[Where]
    ) -> dict[str, Any]:
        """Make a folder."""
        return await self._ask(op="make", path=path, parents=parents, mode=mode, **where)

    async def remove(
        self, path: str | bytes, *, recursive: bool = False, **where: Unpack[Where]
    ) -> dict[str, Any]:
        """Remove a file or an empty folder; with `recursive` a folder and all in it."""
        return await self._ask(op="remove", path=path, recursive=recursive, **where)

    async def move(
        self, path: str | bytes, to: str | bytes, *, replace: bool = True, **where: Unpack[Where]
    ) -> dict[str, Any]:
        """Give it another name on the same file system, in one step."""
        return await self._ask(op="move", path=path, to=to, replace=replace, **where)

    async def hash(
        self, path: str | bytes, digest: Digest = "sha256", **where: Unpack[Where]
    ) -> dict[str, Any]:
        """The digest of a file."""
        return await self._ask(op="hash", path=path, digest=digest, **where)

    def read(
        self,
        path: str | bytes,
        *,
        offset: int = 0,
        length: int | None = None,
        version: str | None = None,
        digest: Digest = "none",
        xattrs: bool = False,
        **where: Unpack[Where],
    ) -> _Reading:
        """A file from an offset on. `version`: only if it is still that one (Conflict)."""
        return self._reading(
            op="read", path=path, offset=offset, length=length, version=version, digest=digest, xattrs=xattrs,
            **where,
        )  # fmt: skip

    def write(
        self,
        path: str | bytes,
        *,
        upload: str | None = None,
        mode: int | None = None,
        owner: str | int | None = None,
        group: str | int | None = None,
        mtime: int | None = None,
        xattrs: Mapping[str, bytes] | None = None,
        parents: bool = False,
        exclusive: bool = False,
        sync: bool = True,
        digest: Digest = "none",
        **where: Unpack[Where],
    ) -> _Writing:
        """A file that is there when it is whole. With an `upload` of your own, what has arrived waits for you when the
        connection is lost: ask again, and go on at the writer's `offset`.
        """
        return self._writing(
            op="write", path=path, upload=upload, mode=mode, owner=owner, group=group, mtime=mtime, xattrs=xattrs,
            parents=parents, exclusive=exclusive, sync=sync, digest=digest, **where,
        )  # fmt: skip

    def pack(
        self,
        path: str | bytes,
        *,
        name: str | bytes | None = None,
        after: str | bytes | None = None,
        follow: bool = False,
        digest: Digest = "none",
        **where: Unpack[Where],
    ) -> _Reading:
        """A tree as a tar stream. `name`: what it is called there. `after`: the last entry you have."""
        return self._reading(
            op="pack", path=path, name=name, after=after, follow=follow, digest=digest, **where
        )

    def unpack(
        self,
        path: str | bytes,
        *,
        make: bool = True,
        parents: bool = False,
        fresh: bool = False,
        owners: bool = False,
        digest: Digest = "none",
        **where: Unpack[Where],
    ) -> _Writing:
        """A tar stream becomes what is in a folder."""
        return self._writing(
            op="unpack",
            path=path,
            make=make,
            parents=parents,
            fresh=fresh,
            owners=owners,
            digest=digest,
            **where,
        )

    async def watch(
        self,
        path: str | bytes,
        *,
        recursive: bool = True,
        ignore: Sequence[str] | None = None,
        listing: bool = False,
        **where: Unpack[Where],
    ) -> AsyncGenerator[dict[str, Any]]:
        """What happens below a folder, from now on; the first one is `watching`. With `listing`, what is there comes
        before it, behind a `rescan`. Across lost connections: `guestd.client.watching.watch`.
        """
        given = None if ignore is None else list(ignore)
        async with self._reading(
            op="watch", path=path, recursive=recursive, ignore=given, listing=listing or None, **where
        ) as reader:
            yield {"event": "watching", **reader.about}
            maps = _Maps()
            async for _, data in reader:
                for event in maps.feed(data):
                    yield event

    # ------------------------------------------------------------------------------------------------------------

    async def _ask(self, **fields: object) -> dict[str, Any]:
        channel = self._connection.open(_given(fields))
        try:
            return await channel.wait_final()
        except trio.Cancelled:
            channel.reset(ConnectionLost("the request was given up on this side"))
            raise

    @asynccontextmanager
    async def _opened(self, inbox: _FileInbox, fields: dict[str, object]) -> AsyncGenerator[Channel]:
        channel = self._connection.open(_given(fields), inbox)
        try:
            await channel.wait_accepted()
            yield channel
        finally:
            if not channel.over:
                channel.reset(ConnectionLost("the transfer was given up on this side"))

    @asynccontextmanager
    async def _reading(self, **fields: object) -> AsyncGenerator[Reader]:
        async with self._opened(_FileInbox(), fields) as channel:
            yield Reader(channel, channel.accepted or {})

    @asynccontextmanager
    async def _writing(self, **fields: object) -> AsyncGenerator[Writer]:
        inbox = _FileInbox()
        async with self._opened(inbox, fields) as channel:
            yield Writer(channel, inbox, channel.accepted or {})


if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    _Reading = AbstractAsyncContextManager[Reader]
    _Writing = AbstractAsyncContextManager[Writer]


class _Maps:
    """Maps that come one behind another, cut anywhere."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="surrogateescape")

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        self._unpacker.feed(data)
        for each in self._unpacker:
            yield cast("dict[str, Any]", each)


def _given(fields: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
