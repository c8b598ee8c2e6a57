"""The folders that a watcher of files watches: where each hangs, and how one comes to be watched or no longer is.

Promises. A folder is watched before it is read, so nothing comes to be in it unnoticed. No symlink is followed on the
way to one. A move changes one entry, whatever hangs below it. What cannot be watched, or is too much for a limit, is
noted for the client.
"""

from __future__ import annotations

import errno
import os

from guestd.storage import file_inotify as inotify
from guestd.storage.file_globs import Globs
from guestd.storage.file_line import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from guestd.storage.file_places import Places

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """One that is watched. Its path follows from where it hangs, so that a move changes one entry."""

    __slots__ = ("below", "name", "number", "parent")

    def __init__(self, number: int, parent: Folder | None, name: bytes) -> None:
        self.number = number
        self.parent = parent
        self.name = name
        self.below: dict[bytes, Folder] = {}

    def path(self, name: bytes = b"") -> bytes:
        parts = [name] if name else []
        node = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))


class WatchedFolders:
    """See the module. `notes` takes what the client is to be told of them; `only`: one name of the top alone counts."""

    def __init__(
        self,
        places: Places,
        path: bytes,
        ask: dict[str, Any],
        only: bytes | None,
        notes: list[dict[str, Any]],
    ) -> None:
        # Not held open: the kernel tells the end of a folder only when nobody has it open any more.
        self._places = places
        self._path = path
        self._top: tuple[int, int] | None = None
        self._only = only
        self.recursive: bool = ask["recursive"] and only is None
        self._ignored = Globs([] if only is not None else ask["ignore"])
        self.limit: int = ask["limit"]
        try:
            self.inotify = inotify.Inotify()
        except OSError as error:
            raise _refused(error) from None
        #: By the kernel's number of the watch.
        self.by_number: dict[int, Folder] = {}
        self.root: Folder | None = None
        #: Names that were told because their folder was read, until what was queued by then is through.
        self.seen: dict[int, set[bytes]] = {}
        self._notes = notes
        #: A limit was met, and that was noted.
        self.limited = False

    def close(self) -> None:
        self.inotify.close()

    def is_ignored(self, name: bytes, path: bytes) -> bool:
        return name != self._only if self._only is not None else self._ignored.match(name, path)

    def walk(self, *, tell: bool = False) -> Iterator[dict[str, Any]]:
        """Watch all there is, each folder before it is read. Gives every entry that there is."""
        stale, self.by_number, self.root = self.by_number, {}, None
        self.seen.clear()
        self.limited = False
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
        self.root = root
        stack = [root]
        while stack:
            node = stack.pop()
            for name, is_folder in self._entries(node):
                if tell:
                    yield self._describe(node, name, is_folder=is_folder)
                if is_folder and self.recursive:
                    below = self._open(node, name)
                    if below is not None:
                        stack.append(below)
            if not tell:
                yield {}
        for number in stale.keys() - self.by_number.keys():
            self.inotify.remove(number)

    def adopt(self, parent: Folder, name: bytes) -> Iterator[tuple[bytes, bool]]:
        """A folder that has come to be, and what is in it."""
        first = self._open(parent, name)
        stack = [] if first is None else [first]
        while stack:
            node = stack.pop()
            seen = self.seen.setdefault(node.number, set())
            for each, is_folder in self._entries(node):
                seen.add(each)
                yield node.path(each), is_folder
                if is_folder:
                    below = self._open(node, each)
                    if below is not None:
                        stack.append(below)

    def _open(self, parent: Folder, name: bytes) -> Folder | None:
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

    def _watch(self, fd: int, parent: Folder | None, name: bytes) -> Folder | None:
        path = b"" if parent is None else parent.path(name)
        if len(self.by_number) >= self.limit:
            self._limit_met(path, f"files.watches is {self.limit}")
            return None
        try:
            number = self.inotify.add(fd)
        except OSError as error:
            if parent is None:
                raise _refused(error) from None
            if error.errno == errno.ENOSPC:
                self._limit_met(path, "fs.inotify.max_user_watches of the guest's kernel is used up")
            else:
                self._cannot(path, error)
            return None
        known = self.by_number.get(number)
        if known is not None and known.parent is not None:
            known.parent.below.pop(known.name, None)
        node = self.by_number[number] = Folder(number, parent, name)
        if parent is not None:
            parent.below[name] = node
        return node

    def _limit_met(self, path: bytes, why: str) -> None:
        if self.limited:
            return
        self.limited = True
        shown = path.decode("utf-8", "surrogateescape")
        self._notes.append({
            "event": "limit", "path": shown, "watches": len(self.by_number),
            "message": f"{shown!r}, and what else comes to be, is not watched: {why}",
        })  # fmt: skip

    def _cannot(self, path: bytes, error: OSError) -> None:
        if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:  # gone, or replaced, meanwhile
            shown = path.decode("utf-8", "surrogateescape")
            self._notes.append(
                {"event": "unreadable", "path": shown, "message": error.strerror or str(error)}
            )

    def _entries(self, node: Folder) -> Iterator[tuple[bytes, bool]]:
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
                    if not self.is_ignored(name, node.path(name)):
                        yield name, entry.is_dir(follow_symlinks=False)
        finally:
            os.close(fd)

    def _describe(self, node: Folder, name: bytes, *, is_folder: bool) -> dict[str, Any]:
        path = node.path(name)
        return {"event": "entry", "path": path.decode("utf-8", "surrogateescape"), "dir": is_folder}

    def forget(self, node: Folder, *, watched: bool = False) -> None:
        """A folder that is no longer there, with all that hung below it."""
        if node.parent is not None and node.parent.below.get(node.name) is node:
            del node.parent.below[node.name]
        stack = [node]
        while stack:
            each = stack.pop()
            stack += each.below.values()
            if self.by_number.get(each.number) is each:
                del self.by_number[each.number]
                self.seen.pop(each.number, None)
                if watched:
                    self.inotify.remove(each.number)


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
