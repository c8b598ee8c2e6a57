"""The kernel's inotify, by pyinotify's binding and names. Its own loop, threads and processing are not used: parsing
what is read here takes a tenth of the time, and pairing moves and following folders needs every event in its order.
"""

from __future__ import annotations

import ctypes.util
import errno
import os
import struct

import pyinotify

CREATE: int = pyinotify.IN_CREATE
DELETE: int = pyinotify.IN_DELETE
MODIFY: int = pyinotify.IN_MODIFY
ATTRIB: int = pyinotify.IN_ATTRIB
MOVED_FROM: int = pyinotify.IN_MOVED_FROM
MOVED_TO: int = pyinotify.IN_MOVED_TO
DELETE_SELF: int = pyinotify.IN_DELETE_SELF
MOVE_SELF: int = pyinotify.IN_MOVE_SELF
UNMOUNT: int = pyinotify.IN_UNMOUNT
OVERFLOW: int = pyinotify.IN_Q_OVERFLOW
IGNORED: int = pyinotify.IN_IGNORED
ISDIR: int = pyinotify.IN_ISDIR
_ONLYDIR: int = pyinotify.IN_ONLYDIR
_INTERESTING = CREATE | DELETE | MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | DELETE_SELF | MOVE_SELF | _ONLYDIR
_HEAD = struct.Struct("iIII")
_READ = 256 * 1024


class Inotify:
    """One instance. Raises OSError where the kernel refuses."""

    def __init__(self) -> None:
        # It looks for libc by running ldconfig and a compiler, as whoever asks for the watch. It is here already.
        ctypes.util.find_library = _already_here
        binding = pyinotify.INotifyWrapper.create()
        if binding is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._binding = binding
        fd = binding.inotify_init()
        if fd < 0:
            raise self._error()
        self.fd = fd
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)

    def close(self) -> None:
        os.close(self.fd)

    def add(self, folder: int) -> int:
        """Watch an open folder: whatever its path is by now, it is this one."""
        number = self._binding.inotify_add_watch(self.fd, f"/proc/self/fd/{folder}", _INTERESTING)
        if number < 0:
            raise self._error()
        return number

    def remove(self, number: int) -> None:
        """One that is gone already is fine."""
        self._binding.inotify_rm_watch(self.fd, number)

    def read(self) -> list[tuple[int, int, int, bytes]]:
        """What is there: watch, mask, cookie, name. Empty when there is nothing."""
        try:
            data = os.read(self.fd, _READ)
        except BlockingIOError:
            return []
        found: list[tuple[int, int, int, bytes]] = []
        at = 0
        while at < len(data):
            number, mask, cookie, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            found.append((number, mask, cookie, data[at : at + size].rstrip(b"\0")))
            at += size
        return found

    def _error(self) -> OSError:
        number = self._binding.get_errno()
        return OSError(number, os.strerror(number))


def _already_here(name: str) -> None:
    del name
