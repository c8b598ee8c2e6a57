"""watch: what happens below a folder, told as it happens. Run in the file process, as the user who asks.

Promises. A folder that comes to be is watched before it is read, and what is in it by then is told: `mkdir -p a/b/c`
with files in it at once loses nothing. Moves within what is watched are one event. What is told is coalesced, and
sent at the client's pace; where more happens than can be told (here, or in the kernel's queue) it is said, `rescan`,
and a listing of all there is follows. Folders beyond the limits are told too, and never dropped in silence.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time

from guestd.storage import inotify
from guestd.storage.coalescing import (
    ATTRIBUTES,
    CHANGED,
    CREATED,
    MOVED,
    REMOVED,
    Coalescing,
    Event,
)
from guestd.storage.globs import Globs
from guestd.storage.line import ACCEPT, DATA, END, Gone, Line, Refused
from guestd.storage.packing import pack
from guestd.storage.places import Places, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How long the second half of a move may take to come; the kernel writes them one behind the other.
_HALF = 0.02
_PIECE = 32 * 1024
#: Reads of the kernel's queue in one go.
_BURST = 16


class _Node:
    """A folder that is watched. Its path follows from where it hangs, so that a move changes one entry."""

    __slots__ = ("below", "name", "number", "parent")

    def __init__(self, number: int, parent: _Node | None, name: bytes) -> None:
        self.number = number
        self.parent = parent
        self.name = name
        self.below: dict[bytes, _Node] = {}

    def path(self, name: bytes = b"") -> bytes:
        parts = [name] if name else []
        node = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))


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
        # Not held open: the kernel tells the end of a folder only when nobody has it open any more.
        self._places = places
        self._path = path
        self._top: tuple[int, int] | None = None
        self._only = only
        self._recursive: bool = ask["recursive"] and only is None
        self._ignored = Globs([] if only is not None else ask["ignore"])
        self._limit: int = ask["limit"]
        try:
            self._inotify = inotify.Inotify()
        except OSError as error:
            raise _refused(error) from None
        self._nodes: dict[int, _Node] = {}
        self._root: _Node | None = None
        self._waiting = Coalescing()
        # First halves of moves: where, what, until when; by the kernel's cookie.
        self._halves: dict[int, tuple[_Node, bytes, bool, float]] = {}
        # Names that were told because their folder was read, until what was queued by then is through.
        self._seen: dict[int, set[bytes]] = {}
        self._out: list[bytes] = []
        self._offset = 0
        self._listing: Iterator[dict[str, Any]] | None = None
        self._notes: list[dict[str, Any]] = []
        self._limited = False
        self._gone = False

    def close(self) -> None:
        self._inotify.close()

    def run(self) -> None:
        for _ in self._walk():
            self._line.alive()
        if self._limited:
            raise Refused(
                "limit",
                f"there are more than {len(self._nodes)} folders below it, and that is the limit: --ignore some, watch"
                " less, or raise files.watches and fs.inotify.max_user_watches",
                limit=len(self._nodes), setting="files.watches",
            )  # fmt: skip
        self._line.say(ACCEPT, {"watches": len(self._nodes), "limit": self._limit})
        poll = select.poll()
        poll.register(self._inotify.fd, select.POLLIN)
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
        if self._listing is not None or self._notes or self._gone or self._waiting.overflow:
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
        if self._waiting.overflow:
            self._waiting.overflow = False
            self._waiting.forget()
            self._halves.clear()
            self._listing = self._walk(tell=True)
            return pack({"event": "rescan"})
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
            events = self._inotify.read()
            if not events:
                self._seen.clear()
                return
            now = time.monotonic()
            for event in events:
                self._take(*event, now)

    def _take(self, number: int, mask: int, cookie: int, name: bytes, now: float) -> None:
        if mask & inotify.OVERFLOW:
            self._waiting.overflow = True
            return
        node = self._nodes.get(number)
        if node is None:
            return
        if mask & (inotify.IGNORED | inotify.UNMOUNT | inotify.DELETE_SELF | inotify.MOVE_SELF):
            if node is self._root:
                self._end(now)
            elif mask & inotify.IGNORED:
                self._forget(node)
            return
        path = node.path(name)
        if not name or self._is_ignored(name, path):
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

    def _is_ignored(self, name: bytes, path: bytes) -> bool:
        return name != self._only if self._only is not None else self._ignored.match(name, path)

    def _settle(self, node: _Node, name: bytes, mask: int, cookie: int, now: float) -> None:
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
        self, node: _Node, name: bytes, path: bytes, now: float, *, is_folder: bool, fresh: bool
    ) -> None:
        seen = self._seen.get(node.number)
        if fresh and seen is not None and name in seen:
            seen.discard(name)
            return
        self._waiting.add(Event(CREATED, path, is_folder=is_folder, fresh=fresh), now)
        if is_folder and self._recursive:
            for each, each_is_folder in self._adopt(node, name):
                self._waiting.add(Event(CREATED, each, is_folder=each_is_folder, fresh=True), now)

    def _removed(self, node: _Node, name: bytes, now: float, *, is_folder: bool) -> None:
        seen = self._seen.get(node.number)
        if seen is not None:
            seen.discard(name)
        self._waiting.add(Event(REMOVED, node.path(name), is_folder=is_folder), now)
        below = node.below.get(name)
        if is_folder and below is not None:
            # One that was moved away is still watched by the kernel, with all below it.
            self._forget(below, watched=True)

    def _moved_to(
        self, node: _Node, name: bytes, path: bytes, cookie: int, now: float, *, is_folder: bool
    ) -> None:
        half = self._halves.pop(cookie, None)
        if half is None:
            self._created(node, name, path, now, is_folder=is_folder, fresh=False)
            return
        parent, old, _, _ = half
        self._waiting.add(Event(MOVED, parent.path(old), to=path, is_folder=is_folder), now)
        replaced = node.below.get(name)
        if replaced is not None:
            self._forget(replaced, watched=True)
        moved = parent.below.pop(old, None)
        if moved is not None:
            moved.parent, moved.name = node, name
            node.below[name] = moved
        elif is_folder and self._recursive:
            # It was not watched yet, or could not be.
            for each, each_is_folder in self._adopt(node, name):
                self._waiting.add(Event(CREATED, each, is_folder=each_is_folder), now)

    def _end(self, now: float) -> None:
        if not self._gone:
            self._gone = True
            for cookie in list(self._halves):
                node, name, is_folder, _ = self._halves.pop(cookie)
                self._removed(node, name, now, is_folder=is_folder)
            self._notes.append({"event": "gone"})

    # --------------------------------------------------------------------------------------------------- folders

    def _walk(self, *, tell: bool = False) -> Iterator[dict[str, Any]]:
        """Watch all there is, each folder before it is read. Gives every entry that there is."""
        stale, self._nodes, self._root = self._nodes, {}, None
        self._seen.clear()
        self._limited = False
        try:
            fd = self._at(b"")
        except FileNotFoundError:
            if self._top is None:
                raise
            return  # gone, and the kernel tells
        try:
            root = self._watch(fd, None, b"")
        finally:
            os.close(fd)
        if root is None:
            return
        self._root = root
        stack = [root]
        while stack:
            node = stack.pop()
            for name, is_folder in self._entries(node):
                if tell:
                    yield self._describe(node, name, is_folder=is_folder)
                if is_folder and self._recursive:
                    below = self._open(node, name)
                    if below is not None:
                        stack.append(below)
            if not tell:
                yield {}
        for number in stale.keys() - self._nodes.keys():
            self._inotify.remove(number)

    def _adopt(self, parent: _Node, name: bytes) -> Iterator[tuple[bytes, bool]]:
        """A folder that has come to be, and what is in it."""
        first = self._open(parent, name)
        stack = [] if first is None else [first]
        while stack:
            node = stack.pop()
            seen = self._seen.setdefault(node.number, set())
            for each, is_folder in self._entries(node):
                seen.add(each)
                yield node.path(each), is_folder
                if is_folder:
                    below = self._open(node, each)
                    if below is not None:
                        stack.append(below)

    def _open(self, parent: _Node, name: bytes) -> _Node | None:
        try:
            fd = self._at(parent.path(name))
        except OSError as error:
            self._cannot(parent.path(name), error)
            return None
        try:
            return self._watch(fd, parent, name)
        finally:
            os.close(fd)

    def _at(self, path: bytes) -> int:
        """Open a folder below the top; no symlink is followed on the way."""
        fd = self._places.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        status = os.fstat(fd)
        self._top = self._top or (status.st_dev, status.st_ino)
        if self._top != (status.st_dev, status.st_ino):
            os.close(fd)
            raise OSError(errno.ENOENT, "another folder has taken the place of the one that was watched")
        for part in path.split(b"/") if path else ():
            try:
                below = os.open(part, _FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _watch(self, fd: int, parent: _Node | None, name: bytes) -> _Node | None:
        path = b"" if parent is None else parent.path(name)
        if len(self._nodes) >= self._limit:
            self._limit_met(path, f"files.watches is {self._limit}")
            return None
        try:
            number = self._inotify.add(fd)
        except OSError as error:
            if parent is None:
                raise _refused(error) from None
            if error.errno == errno.ENOSPC:
                self._limit_met(path, "fs.inotify.max_user_watches of the guest's kernel is used up")
            else:
                self._cannot(path, error)
            return None
        known = self._nodes.get(number)
        if known is not None and known.parent is not None:
            known.parent.below.pop(known.name, None)
        node = self._nodes[number] = _Node(number, parent, name)
        if parent is not None:
            parent.below[name] = node
        return node

    def _limit_met(self, path: bytes, why: str) -> None:
        if self._limited:
            return
        self._limited = True
        shown = path.decode("utf-8", "surrogateescape")
        self._notes.append({
            "event": "limit", "path": shown, "watches": len(self._nodes),
            "message": f"{shown!r}, and what else comes to be, is not watched: {why}",
        })  # fmt: skip

    def _cannot(self, path: bytes, error: OSError) -> None:
        if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:  # gone, or replaced, meanwhile
            shown = path.decode("utf-8", "surrogateescape")
            self._notes.append(
                {"event": "unreadable", "path": shown, "message": error.strerror or str(error)}
            )

    def _entries(self, node: _Node) -> Iterator[tuple[bytes, bool]]:
        path = node.path()
        try:
            fd = self._at(path)
        except OSError as error:
            self._cannot(path, error)
            return
        try:
            with os.scandir(fd) as listing:
                for entry in listing:
                    name = os.fsencode(entry.name)
                    if not self._is_ignored(name, node.path(name)):
                        yield name, entry.is_dir(follow_symlinks=False)
        finally:
            os.close(fd)

    def _describe(self, node: _Node, name: bytes, *, is_folder: bool) -> dict[str, Any]:
        path = node.path(name)
        return {"event": "entry", "path": path.decode("utf-8", "surrogateescape"), "dir": is_folder}

    def _forget(self, node: _Node, *, watched: bool = False) -> None:
        """A folder that is no longer there, with all that hung below it."""
        if node.parent is not None and node.parent.below.get(node.name) is node:
            del node.parent.below[node.name]
        stack = [node]
        while stack:
            each = stack.pop()
            stack += each.below.values()
            if self._nodes.get(each.number) is each:
                del self._nodes[each.number]
                self._seen.pop(each.number, None)
                if watched:
                    self._inotify.remove(each.number)


def _refused(error: OSError) -> Refused:
    if error.errno == errno.EMFILE:
        return Refused(
            "limit",
            "this user has as many watchers as the guest's kernel allows: end some, or raise"
            " fs.inotify.max_user_instances",
        )
    if error.errno == errno.ENOSPC:
        return Refused(
            "limit",
            "this user watches as many folders as the guest's kernel allows: end some watchers, or raise"
            " fs.inotify.max_user_watches",
        )
    return Refused("file", f"nothing can be watched there: {error.strerror}", errno=error.errno)


_DONTWAIT = 0x40
