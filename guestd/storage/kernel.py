"""The kernel's calls for mounts, for the worker alone: any of them may wait for a disk or a server, for ever.

File systems are made and configured step by step (fsopen and the calls around it), because then the kernel says in
words what it does not like. Where a kernel has none of that, mount(2) is used.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from guestd.storage.options import NODEV, NODIRATIME, NOEXEC, NOSUID, RDONLY

# The same on every architecture that Linux has got since: they were added for all at once.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2, _MOUNT_SETATTR = (
    428,
    429,
    430,
    431,
    432,
    437,
    442,
)
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOEXEC = 1
_MOVE_EMPTY_PATHS = 0x4 | 0x40
_OPEN_TREE_CLONE = 1
_AT_FDCWD, _AT_RECURSIVE, _AT_EMPTY_PATH = -100, 0x8000, 0x1000
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 0x2, 0x4
#: A longer value does not go through fsconfig.
_STRING_MAX = 255
_MS = {RDONLY: 1, NOSUID: 2, NODEV: 4, NOEXEC: 8, NODIRATIME: 2048}
_MS_REMOUNT, _MS_BIND, _MS_REC = 32, 4096, 16384
_MS_NOATIME, _MS_STRICTATIME = 1024, 1 << 24
MNT_FORCE, MNT_DETACH = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Refused(Exception):
    """The kernel did not want to. `said`: its own words, if it had any."""

    def __init__(self, step: str, number: int, said: list[str]) -> None:
        super().__init__(f"{step}: {os.strerror(number)}")
        self.step = step
        self.errno = number
        self.said = said


def mount_new(
    type_: str, source: str, parameters: list[str], attributes: int, target: int, root: object = None
) -> list[str]:
    """Mount a file system at the directory `target` (a descriptor). `root` is called with the directory that it shows
    before anybody can see it. Returns what the kernel had to say. Raises Refused.
    """
    if any(len(each.partition("=")[2]) > _STRING_MAX for each in parameters):
        return _mount_old(type_, source, parameters, attributes, target, root)
    try:
        context = _call("fsopen", _FSOPEN, os.fsencode(type_), _CLOEXEC)
    except Refused as error:
        if error.errno == errno.ENOSYS:
            return _mount_old(type_, source, parameters, attributes, target, root)
        raise
    try:
        try:
            if source:
                _set(context, f"source={source}")
            if attributes & RDONLY:
                _set(context, "ro")
            for each in parameters:
                _set(context, each)
            _call("mount", _FSCONFIG, context, _CREATE, None, None, 0)
            made = _call("fsmount", _FSMOUNT, context, _CLOEXEC, attributes)
        except Refused as error:
            error.said += _words(context)
            raise
        try:
            _prepare(made, root)
            _move(made, target)
        finally:
            os.close(made)
        return _words(context)
    finally:
        os.close(context)


def bind(source: int, attributes: int, target: int, *, recursive: bool, root: object = None) -> None:
    """Show the directory `source` at the directory `target`."""
    deep = _AT_RECURSIVE if recursive else 0
    try:
        made = _call(
            "open_tree", _OPEN_TREE, source, b"", _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | deep
        )
    except Refused as error:
        if error.errno != errno.ENOSYS:
            raise
        _bind_old(source, attributes, target, recursive=recursive, root=root)
        return
    try:
        _prepare(made, root)
        if attributes:
            wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
            flags = _AT_EMPTY_PATH | deep
            _call("mount_setattr", _MOUNT_SETATTR, made, b"", flags, wanted, len(wanted))
        _move(made, target)
    finally:
        os.close(made)


def unmount(path: str, flags: int = 0) -> None:
    """Raises OSError. Without MNT_DETACH this waits until all is written. Never follows a link at the end."""
    nofollow = 8
    if _libc.umount2(os.fsencode(path), flags | nofollow):
        raise _error()


def make_read_only(path: str) -> None:
    """The file system as a whole: whatever is written first reaches its disk. Raises OSError."""
    if _libc.mount(b"none", os.fsencode(path), None, _MS_REMOUNT | 1, None):
        raise _error()


def open_directory(path: str) -> int:
    """A descriptor of a directory to which no part of the path is a symbolic link. Raises OSError."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    how = struct.pack("QQQ", flags, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    fd = _libc.syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how))
    if fd >= 0:
        return int(fd)
    if ctypes.get_errno() != errno.ENOSYS:
        raise _error()
    return _open_by_parts(path, flags)


def _open_by_parts(path: str, flags: int) -> int:
    at = os.open("/", flags)
    for part in path.split("/"):
        if part:
            try:
                below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=at)
            finally:
                os.close(at)
            at = below
    return at


# ------------------------------------------------------------------------------------------------------------- growing

_BLKGETSIZE64 = 0x80081272
_EXT4_RESIZE = 0x40086610
_XFS_GEOMETRY, _XFS_GROW = 0x80705864, 0x4010586E


def device_size(fd: int) -> int:
    """Of a block device."""
    return struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]


def grow_ext4(directory: int, size: int) -> None:
    """To as many blocks as the device has, while it is in use, as resize2fs(8) asks for it. Raises OSError."""
    block = os.fstatvfs(directory).f_bsize
    fcntl.ioctl(directory, _EXT4_RESIZE, struct.pack("Q", size // block))


def grow_xfs(directory: int, size: int) -> None:
    """The same for XFS, as xfs_growfs(8) asks for it. Raises OSError."""
    geometry = fcntl.ioctl(directory, _XFS_GEOMETRY, bytes(112))
    block, most_inodes = struct.unpack_from("I24xI", geometry)
    (blocks,) = struct.unpack_from("Q", geometry, 32)
    if size // block > blocks:
        fcntl.ioctl(directory, _XFS_GROW, struct.pack("QII", size // block, most_inodes, 0))


# -------------------------------------------------------------------------------------------------------------- pieces


def _set(context: int, parameter: str) -> None:
    name, equals, value = parameter.partition("=")
    if equals:
        _call(name, _FSCONFIG, context, _SET_STRING, os.fsencode(name), os.fsencode(value), 0)
    else:
        _call(name, _FSCONFIG, context, _SET_FLAG, os.fsencode(name), None, 0)


def _prepare(made: int, root: object) -> None:
    if callable(root):
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=made)
        try:
            root(directory)
        finally:
            os.close(directory)


def _move(made: int, target: int) -> None:
    _call("move_mount", _MOVE_MOUNT, made, b"", target, b"", _MOVE_EMPTY_PATHS)


def _words(context: int) -> list[str]:
    """What the kernel has noted for whoever configures this file system: `e ext4: Unknown parameter`."""
    found: list[str] = []
    while True:
        try:
            line = os.read(context, 4096)
        except OSError:
            return found
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return found
        found.append(text[2:] if text[1:2] == " " else text)


def _call(step: str, number: int, *arguments: object) -> int:
    found = _libc.syscall(ctypes.c_long(number), *(_argument(each) for each in arguments))
    if found < 0:
        raise Refused(step, ctypes.get_errno(), [])
    return int(found)


def _argument(value: object) -> object:
    # The variadic call takes whole registers; a Python int would be passed as a C int.
    return ctypes.c_long(value) if isinstance(value, int) else value


def _mount_old(
    type_: str, source: str, parameters: list[str], attributes: int, target: int, root: object
) -> list[str]:
    """mount(2). What `root` does happens in sight of everybody here."""
    place = f"/proc/self/fd/{target}"
    data = ",".join(parameters).encode()
    if _libc.mount(os.fsencode(source or "none"), place.encode(), type_.encode(), _ms(attributes), data):
        raise Refused("mount", ctypes.get_errno(), [])
    _prepare_at(place, root)
    return []


def _bind_old(source: int, attributes: int, target: int, *, recursive: bool, root: object) -> None:
    place = f"/proc/self/fd/{target}"
    flags = _MS_BIND | (_MS_REC if recursive else 0)
    if _libc.mount(f"/proc/self/fd/{source}".encode(), place.encode(), None, flags, None):
        raise Refused("mount", ctypes.get_errno(), [])
    path = os.readlink(place)
    if attributes and _libc.mount(
        None, os.fsencode(path), None, _MS_REMOUNT | _MS_BIND | _ms(attributes), None
    ):
        number = ctypes.get_errno()
        unmount(path, MNT_DETACH)
        raise Refused("remount", number, [])
    _prepare_at(place, root)


def _prepare_at(place: str, root: object) -> None:
    # The descriptor is of the directory below; its name leads to what is mounted now.
    directory = os.open(os.readlink(place), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if callable(root):
            root(directory)
    finally:
        os.close(directory)


def _ms(attributes: int) -> int:
    flags = sum(flag for attribute, flag in _MS.items() if attributes & attribute)
    return flags | (_MS_NOATIME if attributes & 0x10 else _MS_STRICTATIME if attributes & 0x20 else 0)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
