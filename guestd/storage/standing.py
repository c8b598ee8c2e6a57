"""How a mount that is wanted stands against what is mounted already. Pure.

It is there and is adopted, something else is there and that is an error, or it is to be mounted.
"""

from __future__ import annotations

from guestd.storage.plan import (
    BIND,
    BLOCK,
    FORMATS,
    FUSE,
    NFS,
    NINEP,
    OVERLAY,
    TMPFS,
    VIRTIOFS,
    is_inside,
    normal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestd.storage.mountinfo import Mounted
    from guestd.storage.plan import Wanted

ADOPT, MOUNT = "adopt", "mount"


def judge(one: Wanted, table: Sequence[Mounted], device: str | None = None) -> tuple[str, str]:
    """What to do about it, and why not: (`adopt`, ""), (`mount`, ""), or ("", what is wrong).

    `device`: the number `major:minor` of the block device that was found for it.
    """
    there = None
    for each in table:
        if each.target == one.path:
            there = each
    if there is None:
        return MOUNT, ""
    other = _difference(one, there, table, device)
    if other:
        return "", (
            f"{one.path} has another mount already: {there.type} of {there.source or '-'}, {other}; unmount that, or"
            " choose another path"
        )
    return ADOPT, ""


def _difference(one: Wanted, there: Mounted, table: Sequence[Mounted], device: str | None) -> str:
    """In what the mount that is there is another than the one that is wanted; nothing where it is the same."""
    expected = {
        BLOCK: FORMATS, VIRTIOFS: ("virtiofs",), NINEP: ("9p",), NFS: ("nfs4", "nfs"), OVERLAY: ("overlay",),
        TMPFS: ("tmpfs",),
    }.get(one.type)  # fmt: skip
    if expected is not None and there.type not in expected:
        return f"not {' or '.join(expected)}"
    if one.type == FUSE and there.type != "fuse" and not there.type.startswith("fuse."):
        return "not a FUSE file system"
    if one.type == BLOCK and device is not None and there.device != device:
        return f"which is device {there.device} and not {device}"
    if one.type in {VIRTIOFS, NINEP, NFS} and there.source.rstrip("/") != one.source.rstrip("/"):
        return f"not of {one.source}"
    if one.type == OVERLAY and there.option("lowerdir") not in {None, ":".join(one.layers)}:
        return f"not of {one.source}"
    if one.type == BIND and (wrong := _bound_elsewhere(one, there, table)):
        return wrong
    if one.read_only and not there.read_only:
        return "which can be written to, and this one was to be read-only"
    return ""


def _bound_elsewhere(one: Wanted, there: Mounted, table: Sequence[Mounted]) -> str:
    """A bind shows a directory of a file system: that of the mount in which its source lies."""
    home: Mounted | None = None
    source = one.layers[0]
    for each in table:
        around = each.target != one.path and is_inside(source, each.target)
        if around and (home is None or len(each.target) >= len(home.target)):
            home = each
    if home is None:
        return ""
    inside = source[len(home.target.rstrip("/")) :]
    root = normal(home.root.rstrip("/") + inside) or "/"
    if there.device != home.device or (there.root.rstrip("/") or "/") != root:
        return f"not {source}"
    return ""
