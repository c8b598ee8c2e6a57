"""An archive that a kernel unpacks into its first root (cpio, newc), the same bytes for the same content.

What makes such archives differ is left out: the order is that of the names, times are one time, inodes are counted,
owners are root.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_END = "TRAILER!!!"


class Directory:
    """An empty one, mode 0755."""


class Device:
    """A character device."""

    def __init__(self, major: int, minor: int, mode: int = 0o600) -> None:
        self.major, self.minor, self.mode = major, minor, mode


class Link:
    """A symbolic link."""

    def __init__(self, target: str) -> None:
        self.target = target


class Program(bytes):
    """A file that can be executed; plain bytes are one that cannot."""

    __slots__ = ()


Entry = Directory | Device | Link | bytes


def archive(entries: Mapping[str, Entry], time: int) -> bytes:
    """`entries` by their names without a leading slash; directories above them are made."""
    whole = dict(entries)
    for name in entries:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            whole.setdefault("/".join(parts[:depth]), Directory())
    return b"".join(_pieces(whole, time))


def _pieces(entries: Mapping[str, Entry], time: int) -> Iterator[bytes]:
    # A directory's name sorts before those of what is in it.
    for inode, name in enumerate(sorted(entries), 1):
        match entries[name]:
            case Directory():
                yield from _member(name, inode, stat.S_IFDIR | 0o755, b"", time, links=2)
            case Device() as device:
                yield from _member(
                    name, inode, stat.S_IFCHR | device.mode, b"", time, device=(device.major, device.minor)
                )
            case Link() as link:
                yield from _member(name, inode, stat.S_IFLNK | 0o777, link.target.encode(), time)
            case Program() as data:
                yield from _member(name, inode, stat.S_IFREG | 0o755, data, time)
            case data:
                yield from _member(name, inode, stat.S_IFREG | 0o644, data, time)
    yield from _member(_END, 0, 0, b"", 0)


def _member(
    name: str,
    inode: int,
    mode: int,
    data: bytes,
    time: int,
    *,
    links: int = 1,
    device: tuple[int, int] = (0, 0),
) -> Iterator[bytes]:
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, time, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    yield head + bytes(-len(head) % 4)
    yield data + bytes(-len(data) % 4)
