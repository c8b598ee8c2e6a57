"""watch: what happens below a folder, told as it happens. Run in the file process, as the user who asks.

The kernel's events come in here and go out to the client; which folders are watched is in file_watched.

Promises. A folder that comes to be is watched before it is read, and what is in it by then is told: `mkdir -p a/b/c`
with files in it at once loses nothing. Moves within what is watched are one event. What is told is coalesced, and
sent at the client's pace; where more happens than can be told (here, or in the kernel's queue) it is said, `rescan`,
and a listing of all there is follows. Folders beyond the limits are told too, and never dropped in silence.
"""

from __future__ import annotations

import os
import select
import stat
import time

from guestd.storage import file_inotify as inotify
from guestd.storage.file_coalescing import (
    ATTRIBUTES,
    CHANGED,
    CREATED,
    MOVED,
    REMOVED,
    Coalescing,
    Event,
)
from guestd.storage.file_line import ACCEPT, DATA, END, Gone, Line, Refused
from guestd.storage.file_packing import pack
from guestd.storage.file_places import Places, split
from guestd.storage.file_watched import WatchedFolders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from guestd.storage.file_watched import Folder

#: How long the second half of a move may take to come; the kernel writes them one behind the other.
_HALF = 0.02
_PIECE = 32 * 1024
#: Reads of the kernel's queue in one go.
_BURST = 16
_DONTWAIT = 0x40


def watch(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """Until the client has enough, or what is watched is gone."""
    path: bytes = ask["path"]
    only = None
    fd = places.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        # Its folder is watched: a file that is replaced is another one under the same name.
        folder, only, path = places.target(path)
        os.close(folder)
        path = split(path)[0]
    os.close(fd)
    watching = _Watching(line, places, path, ask, only)
    try:
        watching.run()
    finally:
        watching.close()


class _Watching:
    def __init__(
        self, line: Line, places: Places, path: bytes, ask: dict[str, Any], only: bytes | None
    ) -> None:
        self._line = line
        self._notes: list[dict[str, Any]] = []
        self._folders = WatchedFolders(places, path, ask, only, self._notes)
        self._waiting = Coalescing()
        # First halves of moves: where, what, until when; by the kernel's cookie.
        self._halves: dict[int, tuple[Folder, bytes, bool, float]] = {}
        self._out: list[bytes] = []
        self._offset = 0
        self._listing: Iterator[dict[str, Any]] | None = None
        # Somebody comes back, and knows nothing of the time between: what is there is listed, and then told of.
        self._listing_asked: bool = ask["listing"]
        self._gone = False

    def close(self) -> None:
        self._folders.close()

    def run(self) -> None:
        folders = self._folders
        for _ in folders.walk():
            self._line.alive()
        watched = len(folders.by_number)
        if folders.limited:
            raise Refused(
                "limit",
                f"there are more than {watched} folders below it, and that is the limit: --ignore some, watch less, or"
                " raise files.watches and fs.inotify.max_user_watches",
                limit=watched, setting="files.watches",
            )  # fmt: skip
        self._line.say(ACCEPT, {"watches": watched, "limit": folders.limit})
        poll = select.poll()
        poll.register(folders.inotify.fd, select.POLLIN)
        line = self._line.socket.fileno()
        while not (self._gone and not self._out and self._waiting.due is None):
            poll.register(line, select.POLLIN | (select.POLLOUT if self._out else 0))
            for fd, events in poll.poll(self._timeout()):
                if fd == line and events & ~select.POLLOUT:
                    self._line.receive()  # it ends this: nothing else is sent here
            self._read()
            self._expire(time.monotonic())
            self._send()
        self._line.say(END, {"gone": True})

    def _timeout(self) -> float | None:
        """In milliseconds, for poll."""
        if self._out:
            return None
        if self._listing is not None or self._listing_asked:
            return 0
        if self._notes or self._gone or self._waiting.overflow:
            return 0
        times = [until for _, _, _, until in self._halves.values()]
        if self._waiting.due is not None:
            times.append(self._waiting.due)
        return max(0.0, (min(times) - time.monotonic()) * 1000 + 1) if times else None

    # ------------------------------------------------------------------------------------------------ to the client

    def _send(self) -> None:
        while True:
            while self._out:
                head = bytes((DATA, 1)) + self._offset.to_bytes(8, "little")
                try:
                    self._line.socket.sendmsg([head, self._out[0]], [], _DONTWAIT)
                except BlockingIOError:
                    return
                except OSError:
                    raise Gone(kept=False) from None
                self._offset += len(self._out.pop(0))
            told = self._next()
            if not told:
                return
            self._out = [told[at : at + _PIECE] for at in range(0, len(told), _PIECE)]

    def _next(self) -> bytes:
        """What is to be said next, if anything."""
        if self._listing is not None:
            return self._list_on(self._listing)
        found = bytearray()
        if self._waiting.overflow or self._listing_asked:
            reason = "asked" if self._listing_asked else "overflow"
            self._waiting.overflow = self._listing_asked = False
            self._waiting.forget()
            self._halves.clear()
            self._listing = self._folders.walk(tell=True)
            return pack({"event": "rescan", "reason": reason})
        due = self._waiting.due
        if due is not None and (self._gone or due <= time.monotonic()):
            for event in self._waiting.take():
                found += pack(event.to_map())
        for note in self._notes:
            found += pack(note)
        self._notes.clear()
        return bytes(found)

    def _list_on(self, listing: Iterator[dict[str, Any]]) -> bytes:
        found = bytearray()
        for entry in listing:
            found += pack(entry)
            if len(found) >= _PIECE:
                return bytes(found)
        self._listing = None
        return bytes(found) + pack({"event": "listed"})

    # ----------------------------------------------------------------------------------------------- from the kernel

    def _read(self) -> None:
        for _ in range(_BURST):
            events = self._folders.inotify.read()
            if not events:
                self._folders.seen.clear()
                return
            now = time.monotonic()
            for event in events:
                self._take(*event, now)

    def _take(self, number: int, mask: int, cookie: int, name: bytes, now: float) -> None:
        if mask & inotify.OVERFLOW:
            self._waiting.overflow = True
            return
        node = self._folders.by_number.get(number)
        if node is None:
            return
        if mask & (inotify.IGNORED | inotify.UNMOUNT | inotify.DELETE_SELF | inotify.MOVE_SELF):
            if node is self._folders.root:
                self._end(now)
            elif mask & inotify.IGNORED:
                self._folders.forget(node)
            return
        path = node.path(name)
        if not name or self._folders.is_ignored(name, path):
            return
        if self._halves:
            self._settle(node, name, mask, cookie, now)
        is_folder = bool(mask & inotify.ISDIR)
        if mask & inotify.CREATE:
            self._created(node, name, path, now, is_folder=is_folder, fresh=True)
        elif mask & inotify.MODIFY:
            self._waiting.add(Event(CHANGED, path), now)
        elif mask & inotify.ATTRIB:
            self._waiting.add(Event(ATTRIBUTES, path, is_folder=is_folder), now)
        elif mask & inotify.DELETE:
            self._removed(node, name, now, is_folder=is_folder)
        elif mask & inotify.MOVED_FROM:
            self._halves[cookie] = node, name, is_folder, now + _HALF
        elif mask & inotify.MOVED_TO:
            self._moved_to(node, name, path, cookie, now, is_folder=is_folder)

    def _settle(self, node: Folder, name: bytes, mask: int, cookie: int, now: float) -> None:
        """A name is used again of which half a move is known: what had it has left."""
        for number, (half, half_name, is_folder, _) in list(self._halves.items()):
            if half is node and half_name == name and not (mask & inotify.MOVED_TO and number == cookie):
                del self._halves[number]
                self._removed(half, half_name, now, is_folder=is_folder)

    def _expire(self, now: float) -> None:
        for cookie, (node, name, is_folder, until) in list(self._halves.items()):
            if until <= now:
                del self._halves[cookie]
                self._removed(node, name, now, is_folder=is_folder)

    def _created(
        self, node: Folder, name: bytes, path: bytes, now: float, *, is_folder: bool, fresh: bool
    ) -> None:
        seen = self._folders.seen.get(node.number)
        if fresh and seen is not None and name in seen:
            seen.discard(name)
            return
        self._waiting.add(Event(CREATED, path, is_folder=is_folder, fresh=fresh), now)
        if is_folder and self._folders.recursive:
            for each, each_is_folder in self._folders.adopt(node, name):
                self._waiting.add(Event(CREATED, each, is_folder=each_is_folder, fresh=True), now)

    def _removed(self, node: Folder, name: bytes, now: float, *, is_folder: bool) -> None:
        seen = self._folders.seen.get(node.number)
        if seen is not None:
            seen.discard(name)
        self._waiting.add(Event(REMOVED, node.path(name), is_folder=is_folder), now)
        below = node.below.get(name)
        if is_folder and below is not None:
            # One that was moved away is still watched by the kernel, with all below it.
            self._folders.forget(below, watched=True)

    def _moved_to(
        self, node: Folder, name: bytes, path: bytes, cookie: int, now: float, *, is_folder: bool
    ) -> None:
        half = self._halves.pop(cookie, None)
        if half is None:
            self._created(node, name, path, now, is_folder=is_folder, fresh=False)
            return
        parent, old, _, _ = half
        self._waiting.add(Event(MOVED, parent.path(old), to=path, is_folder=is_folder), now)
        replaced = node.below.get(name)
        if replaced is not None:
            self._folders.forget(replaced, watched=True)
        moved = parent.below.pop(old, None)
        if moved is not None:
            moved.parent, moved.name = node, name
            node.below[name] = moved
        elif is_folder and self._folders.recursive:
            # It was not watched yet, or could not be.
            for each, each_is_folder in self._folders.adopt(node, name):
                self._waiting.add(Event(CREATED, each, is_folder=each_is_folder), now)

    def _end(self, now: float) -> None:
        if not self._gone:
            self._gone = True
            for cookie in list(self._halves):
                node, name, is_folder, _ = self._halves.pop(cookie)
                self._removed(node, name, now, is_folder=is_folder)
            self._notes.append({"event": "gone"})
