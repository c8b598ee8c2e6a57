"""Block devices: finding the one that is meant, and looking at what is on it. For the worker: a dead disk may wait."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from guestd.storage import superblock

if TYPE_CHECKING:
    from collections.abc import Iterator

SYS, DEV = "/sys", "/dev"
_SECTOR = 512


class Device(NamedTuple):
    """A disk or a partition of one."""

    name: str
    #: `major:minor`.
    number: str
    size: int
    serial: str

    @property
    def path(self) -> str:
        return f"{DEV}/{self.name.replace('!', '/')}"


class NoDevice(Exception):
    """None is meant, or more than one."""


def every(sys: str = SYS) -> Iterator[Device]:
    """All that the kernel knows and that have a size, by name. Reading sysfs waits for nobody."""
    root = f"{sys}/class/block"
    for name in sorted(os.listdir(root)):
        size = _read(f"{root}/{name}/size")
        if not size.isdecimal() or size == "0":
            continue
        # virtio has it with the disk, NVMe and SCSI with the device behind it; a partition is its disk's.
        disk = os.path.realpath(f"{root}/{name}")
        if os.path.exists(f"{disk}/partition"):
            disk = os.path.dirname(disk)
            serial = ""
        else:
            serial = (
                _read(f"{disk}/serial") or _read(f"{disk}/device/serial") or _page(f"{disk}/device/vpd_pg80")
            )
        yield Device(name, _read(f"{root}/{name}/dev"), int(size) * _SECTOR, serial)


def by_serial(serial: str, sys: str = SYS) -> list[Device]:
    """All of that serial number, which virtio cuts after 20 characters."""
    return [each for each in every(sys) if each.serial and each.serial in {serial, serial[:20]}]


def find(source: str, sys: str = SYS) -> Device:
    """The device of `serial=…`, `label=…`, `uuid=…` or a path. Raises NoDevice or OSError."""
    if source.startswith("/"):
        number = os.stat(source).st_rdev
        if not number:
            raise NoDevice(f"{source} is no device; a file with an image of a disk needs a loop device")
        wanted = f"{os.major(number)}:{os.minor(number)}"
        found = [each for each in every(sys) if each.number == wanted]
        if not found:
            raise NoDevice(f"{source} is a device without a disk: it is empty, or was taken away")
        return found[0]
    how, _, what = source.partition("=")
    how = how.lower()
    found = by_serial(what, sys) if how == "serial" else list(_signed(how, what, sys))
    if not found:
        there = ", ".join(
            _described(each) for each in every(sys) if not each.name.startswith(("loop", "ram", "zram"))
        )
        raise NoDevice(f"no disk has {source}; there are: {there or 'none'}")
    if len(found) > 1:
        raise NoDevice(
            f"{source} is of {len(found)} disks: {', '.join(each.path for each in found)}; name one of them"
        )
    return found[0]


def head(device: Device) -> bytes:
    """Its first bytes."""
    fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_at(fd, 0, min(superblock.EDGE, device.size))
    finally:
        os.close(fd)


def not_blank(device: Device) -> str:
    """Why it must not be formatted; nothing when it is empty as far as anybody can tell without reading all of it.

    Raises OSError: EBUSY when somebody has it mounted, or uses it in some other way.
    """
    fd = os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        found = superblock.find(_read_at(fd, 0, min(superblock.EDGE, device.size)))
        if found is not None:
            label = f" labelled {found.label}" if found.label else ""
            return f"there is {found.kind}{label} on it"
        for offset, length in superblock.places(device.size):
            if not superblock.is_blank(_read_at(fd, offset, length)):
                return f"there is something on it, at byte {offset} or soon after, that is not zero"
    finally:
        os.close(fd)
    return ""


def _signed(how: str, what: str, sys: str) -> Iterator[Device]:
    for each in every(sys):
        try:
            found = superblock.find(head(each))
        except OSError:
            continue
        if found is None:
            continue
        if (found.label if how == "label" else found.uuid.lower()) == (
            what if how == "label" else what.lower()
        ):
            yield each


def _described(device: Device) -> str:
    return f"{device.path} (serial {device.serial})" if device.serial else device.path


def _read_at(fd: int, offset: int, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        piece = os.pread(fd, length - len(found), offset + len(found))
        if not piece:
            break
        found += piece
    return bytes(found)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""


def _page(path: str) -> str:
    """A SCSI disk's own page of its serial number: four bytes in front."""
    try:
        with open(path, "rb") as file:
            return file.read()[4:].decode("ascii", "replace").strip("\0 ")
    except OSError:
        return ""
