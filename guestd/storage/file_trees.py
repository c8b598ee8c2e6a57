"""Trees of files as tar streams: pack and unpack. Run in the file process, as the user who asks.

Memory is one chunk, whatever the size. What of a tree fails or is skipped is counted and named; the rest goes on.
"""

from __future__ import annotations

import os
import time

from guestd.storage.file_digest import Digest
from guestd.storage.file_line import ACCEPT, DATA, END, EVENT, SYNC_PATIENCE, Line, Refused, read_message
from guestd.tree.holes import CHUNK
from guestd.tree.pack import Packer
from guestd.tree.tarformat import TarError
from guestd.tree.unpack import Unpacker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from guestd.storage.file_places import Places
    from guestd.tree.told import Told

_FOLDER = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_DIRECTORY
#: How often a client hears how far its tree has come.
_PROGRESS = 0.25


def pack(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """A tree as a tar stream on stream 1."""
    path: bytes = ask["path"]
    packer = Packer(after=ask["after"])
    packer.step = line.alive
    chunks = _chunks(packer, places, path, ask["name"], follow=ask["follow"])
    # The first of it is made before anything is promised: what is not there is refused.
    first = next(chunks, b"")
    line.say(ACCEPT, {})
    digest, offset = Digest(ask["digest"]), 0
    while first:
        for at in range(0, len(first), CHUNK):
            piece = first[at : at + CHUNK]
            line.bytes(1, offset, piece)
            digest.add(piece)
            offset += len(piece)
        first = next(chunks, b"")
    line.say(END, {**_counts(packer.entries, packer.bytes, packer.told), "size": offset, **digest.told()})


def _chunks(
    packer: Packer, places: Places, path: bytes, name: bytes | None, *, follow: bool
) -> Iterator[bytes]:
    last = path.rstrip(b"/").rpartition(b"/")[2]
    if last in {b"", b".", b".."} or path.endswith(b"/") or follow:
        try:
            return packer.open_folder(places.open(path, _FOLDER), name or last or b".")
        except NotADirectoryError:
            pass
    folder, last = places.target(path)[:2] if follow else places.parent(path)
    return _closing(folder, packer.chunks(folder, last, name or last))


def _closing(folder: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    finally:
        os.close(folder)


def _counts(entries: int, size: int, told: Told) -> dict[str, Any]:
    return {"entries": entries, "bytes": size, **told.to_map()}


def unpack(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """A tar stream becomes what is in a folder. It says now and then how far it has come."""
    path: bytes = ask["path"]
    fresh = False
    if ask["make"]:
        try:
            os.close(places.open(path, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            folder, name = places.parent(path, make=ask["parents"])
            try:
                os.mkdir(name, 0o777, dir_fd=folder)
                fresh = True
            finally:
                os.close(folder)
    top = places.open(path, os.O_RDONLY | os.O_DIRECTORY)
    unpacker = Unpacker(top, fresh=fresh or ask["fresh"], owners=ask["owners"], umask=ask["umask"])
    unpacker.step = line.alive
    try:
        line.say(ACCEPT, {"fresh": fresh})
        _feed(line, unpacker, Digest(ask["digest"]))
        line.patience(SYNC_PATIENCE)
        unpacker.finish()
        line.say(END, _counts(unpacker.entries, unpacker.bytes, unpacker.told))
    except TarError as error:
        raise Refused("bad_request", f"{error}", field="data") from None
    finally:
        unpacker.close()


def _feed(line: Line, unpacker: Unpacker, digest: Digest) -> None:
    said = time.monotonic()
    while True:
        kind, payload = line.receive()
        if kind == EVENT:
            digest.check(read_message(payload)["digest"])
            return
        if kind != DATA:
            continue
        data = payload[9:]
        digest.add(data)
        unpacker.feed(data)
        if time.monotonic() - said > _PROGRESS:
            said = time.monotonic()
            last = unpacker.last.decode("utf-8", "surrogateescape")
            line.say(
                EVENT, {"event": "done", "entries": unpacker.entries, "bytes": unpacker.bytes, "last": last}
            )
