"""The session's workspace, which needs no configuration: a disk or a share named `workspace` is found, whatever is
mounted there already is taken, and else it is a directory, which is not persistent.

Nothing here waits: sysfs and the table of mounts are the kernel's own memory. Only labels are on the disks themselves,
and those are looked at by the worker.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from guestd.storage.mountinfo import visible
from guestd.storage.plan import BLOCK, VIRTIOFS, Wanted, is_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from guestd.storage.mountinfo import Mounted

NAME = "workspace"
#: What is gone with the machine.
_VOLATILE = {"tmpfs", "ramfs", "rootfs"}
_VIRTIO_FS = "0x001a"
_NOT_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd")


class Disk(NamedTuple):
    """One of this machine's."""

    name: str
    number: str
    serial: str


def there_already(table: Sequence[Mounted], path: str) -> tuple[bool, str] | None:
    """Something is mounted at exactly that path: is it persistent, and what is it? None where nothing is."""
    found = visible(table, path)
    if found is None:
        return None
    return found.type not in _VOLATILE, f"{found.type} of {found.source or '-'}"


def home(table: Iterable[Mounted], path: str) -> Mounted | None:
    """The mount in which a directory lies."""
    found = None
    for each in table:
        if is_inside(path, each.target) and (found is None or len(each.target) >= len(found.target)):
            found = each
    return found


def candidates(path: str, table: Sequence[Mounted], sys: str = "/sys") -> list[Wanted]:
    """Where it may be, the likeliest first. A disk that nobody uses may have the label, which only a look can tell."""
    found: list[Wanted] = []

    def may_be(type_: str, source: str) -> None:
        fields = {
            "name": NAME,
            "path": path,
            "type": type_,
            "source": source,
            "cover": True,
            "required": True,
        }
        found.append(Wanted(fields))

    disks = list(_disks(sys))
    if any(each.serial == NAME for each in disks):
        may_be(BLOCK, f"serial={NAME}")
        return found
    if has_share(NAME, sys):
        may_be(VIRTIOFS, NAME)
    used = {each.device for each in table}
    if any(each.number not in used and not _has_used_parts(sys, each, used) for each in disks):
        may_be(BLOCK, f"label={NAME}")
    return found


def has_share(tag: str, sys: str = "/sys") -> bool:
    """A virtiofs share of that tag. Kernels before 6.9 do not tell tags: then any share may be it."""
    try:
        shares = os.listdir(f"{sys}/fs/virtiofs")
    except FileNotFoundError:
        return any(_read(f"{sys}/bus/virtio/devices/{each}/device") == _VIRTIO_FS for each in _list(sys))
    return any(_read(f"{sys}/fs/virtiofs/{each}/tag") == tag for each in shares)


def _list(sys: str) -> list[str]:
    try:
        return os.listdir(f"{sys}/bus/virtio/devices")
    except FileNotFoundError:
        return []


def _disks(sys: str) -> Iterable[Disk]:
    try:
        names = sorted(os.listdir(f"{sys}/block"))
    except FileNotFoundError:
        return
    for name in names:
        root = f"{sys}/block/{name}"
        if not name.startswith(_NOT_DISKS) and _read(f"{root}/size") not in {"", "0"}:
            yield Disk(name, _read(f"{root}/dev"), _read(f"{root}/serial") or _read(f"{root}/device/serial"))


def _has_used_parts(sys: str, disk: Disk, used: set[str]) -> bool:
    root = f"{sys}/block/{disk.name}"
    return any(_read(f"{root}/{each}/dev") in used for each in os.listdir(root) if each.startswith(disk.name))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""
