"""What the kernel is told for each type of file system. Pure.

Options are given as in mount(8). Those of the mount itself (`nodev`, `noatime`) are told apart from the file system's
own (`size=1G`), and what guestd adds gives way to what was asked for.
"""

from __future__ import annotations

from typing import NamedTuple

from guestd.storage.plan import BIND, BLOCK, NFS, NINEP, OVERLAY, TMPFS, VIRTIOFS, Wanted, split_nfs

#: Of the mount, as mount_setattr(2) has them.
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
_ATIME, RELATIME, NOATIME, STRICTATIME, NODIRATIME = 0x70, 0x00, 0x10, 0x20, 0x80
NOSYMFOLLOW = 0x200000
_FLAGS = {
    "ro": (RDONLY, 0), "rw": (0, RDONLY), "nosuid": (NOSUID, 0), "suid": (0, NOSUID), "nodev": (NODEV, 0),
    "dev": (0, NODEV), "noexec": (NOEXEC, 0), "exec": (0, NOEXEC), "noatime": (NOATIME, _ATIME),
    "relatime": (RELATIME, _ATIME), "strictatime": (STRICTATIME, _ATIME), "nodiratime": (NODIRATIME, 0),
    "diratime": (0, NODIRATIME), "nosymfollow": (NOSYMFOLLOW, 0), "symfollow": (0, NOSYMFOLLOW),
}  # fmt: skip
#: Words of fstab and of mount(8) that are none of the kernel's.
_FOR_OTHERS = ("_netdev", "nofail", "auto", "noauto", "defaults", "user", "nouser", "x-", "comment=")
_EFS = ".efs."
#: What AWS gives for EFS, which is also right for other servers across a network: large requests, never an error for a
#: server that is merely slow, and after a reconnection a port that the old connection does not hold.
_NFS = ("hard", "timeo=600", "retrans=2", "rsize=1048576", "wsize=1048576", "noresvport", "proto=tcp")


class Told(NamedTuple):
    """For one attempt to mount."""

    type: str
    source: str
    #: Attributes of the mount.
    attributes: int
    #: Of the file system, `name` or `name=value`.
    parameters: tuple[str, ...]
    #: What the kernel cannot find out by itself: the server whose address it needs.
    host: str = ""


def tell(one: Wanted, *, fs_type: str = "", device: str = "") -> list[Told]:
    """What to tell the kernel; where there are several, the next is for when it refuses the one before.

    `fs_type`, `device`: what was found on which disk, for `block`.
    """
    usual = 0 if one.type in {OVERLAY, BIND} else NOSUID | NODEV
    attributes, own = _split(one, usual)
    if one.type == BLOCK:
        if fs_type == "ext4":
            own = _with(own, "errors=remount-ro")
        return [Told(fs_type, device, attributes, own)]
    if one.type == VIRTIOFS:
        return [Told("virtiofs", one.source, attributes, own)]
    if one.type == NINEP:
        own = _with(own, "trans=virtio", "version=9p2000.L", "msize=512000", "access=client")
        return [Told("9p", one.source, attributes, own)]
    if one.type == NFS:
        return _nfs(one, attributes, own)
    if one.type == OVERLAY:
        layers = [f"lowerdir={':'.join(one.layers)}"]
        if one.upper:
            layers += [f"upperdir={one.upper}", f"workdir={one.work}"]
        return [Told("overlay", one.name, attributes, (*layers, *own))]
    if one.type == TMPFS:
        return [Told("tmpfs", one.name, attributes, _with(own, f"mode={one.mode or '0755'}"))]
    return [Told("", one.source, attributes, own)]


def _nfs(one: Wanted, attributes: int, own: tuple[str, ...]) -> list[Told]:
    host, _, path = split_nfs(one.source)
    own = tuple(each.replace("nfsvers=", "vers=", 1) for each in own)
    source = f"[{host}]:{path}" if ":" in host else f"{host}:{path}"
    usual = [each for each in _NFS if not (each == "hard" and {"soft", "softerr"} & set(own))]
    if "resvport" in own:
        usual.remove("noresvport")
    own = _with(own, *usual)
    if any(each.startswith("vers=") for each in own):
        versions = [""]
    elif _EFS in host and host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        # It knows no 4.2, and says so only after a while.
        versions = ["vers=4.1"]
    else:
        versions = ["vers=4.2", "vers=4.1"]
    return [
        Told("nfs", source, attributes, ((version,) if version else ()) + own, host) for version in versions
    ]


def _split(one: Wanted, attributes: int) -> tuple[int, tuple[str, ...]]:
    own: list[str] = []
    for each in one.options:
        if each in _FLAGS:
            on, off = _FLAGS[each]
            attributes = attributes & ~off | on
        elif not each.startswith(_FOR_OTHERS) and not (one.type == BIND and each in {"bind", "rbind"}):
            own.append(each)
    if one.read_only:
        attributes |= RDONLY
    return attributes, tuple(own)


def _with(own: tuple[str, ...], *usual: str) -> tuple[str, ...]:
    """Those of guestd first, but none of which the same name was asked for."""
    names = {each.partition("=")[0] for each in own}
    return (*(each for each in usual if each.partition("=")[0] not in names), *own)
