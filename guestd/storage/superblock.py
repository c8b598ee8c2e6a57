"""What is on a disk, by its first bytes and its last ones. Pure.

Only two file systems are mounted from disks here; everything else is known so that it is never taken for an empty
disk. Offsets and magic numbers are those of the on-disk formats.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

#: How much of the beginning and of the end is looked at.
EDGE = 1 << 20
_EXT_MAGIC = b"\x53\xef"
_EXT_HAS_JOURNAL, _EXT_EXTENTS = 0x4, 0x40
_EXT_64BIT = 0x80
#: Of ext: mounted cleanly; errors were found.
_EXT_VALID, _EXT_ERROR = 0x1, 0x2
_EXT_RECOVER = 0x4


class Signature(NamedTuple):
    """What somebody has put there. `size`: how far it reaches in bytes, where it says so; 0 where it does not."""

    kind: str
    label: str = ""
    uuid: str = ""
    size: int = 0
    #: It was not unmounted, or has noted errors: for `mounts`.
    state: str = ""


#: (offset, magic bytes, what it is), those that need no further look.
_MAGICS = (
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"hsqs", "squashfs"),
    (0x218, b"LVM2 001", "LVM2"),
    (0x018, b"LVM2 001", "LVM2"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "linux_raid"),
    (0, b"\xfc\x4e\x2b\xa9", "linux_raid"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0x8001, b"CD001", "iso9660"),
    (4086, b"SWAPSPACE2", "swap"),
    (4086, b"SWAP-SPACE", "swap"),
    (4086, b"S1SUSPEND", "swap"),
    (65526, b"SWAPSPACE2", "swap"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcachefs"),
    (0x1018, b"\xc6\x85\x73\xf6\xee\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (0x52, b"FAT32   ", "vfat"),
    (0x36, b"FAT16   ", "vfat"),
    (0x36, b"FAT12   ", "vfat"),
    (0, b"bitlocker", "BitLocker"),
    (32768, b"\x0c\xb1\xba\x00", "zfs_member"),
)


def find(head: bytes) -> Signature | None:
    """What the first bytes of a disk say, `EDGE` of them or all there are."""
    for look in (_ext, _xfs):
        found = look(head)
        if found is not None:
            return found
    for offset, magic, kind in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return Signature(kind)
    for sector in (512, 4096):
        if head[sector : sector + 8] == b"EFI PART":
            return Signature("gpt")
    # A boot sector's mark is also on file systems that were named above.
    if head[510:512] == b"\x55\xaa":
        return Signature("dos")
    return None


def is_blank(piece: bytes) -> bool:
    """Nothing but zeros."""
    return not piece.strip(b"\0")


def places(size: int, samples: int = 256, sample: int = 4096) -> list[tuple[int, int]]:
    """What to read of a disk before it is called empty: both ends whole, and samples of what lies between, which
    include where file systems keep the copies of their first block.
    """
    if size <= 2 * EDGE:
        return [(0, size)] if size else []
    found = {0: EDGE, size - EDGE: EDGE}
    for spread in range(1, samples + 1):
        found.setdefault(size * spread // (samples + 1) // sample * sample, sample)
    for copy in (8193 * 1024, 32768 * 4096, 64 << 20):
        if copy + sample <= size:
            found.setdefault(copy, sample)
    return sorted(found.items())


def _ext(head: bytes) -> Signature | None:
    block = head[1024:2048]
    if len(block) < 1024 or block[0x38:0x3A] != _EXT_MAGIC:
        return None
    compat, incompat, _ = (int.from_bytes(block[at : at + 4], "little") for at in (0x5C, 0x60, 0x64))
    count = int.from_bytes(block[4:8], "little")
    if incompat & _EXT_64BIT:
        count |= int.from_bytes(block[0x150:0x154], "little") << 32
    journal = bool(compat & _EXT_HAS_JOURNAL)
    kind = "ext4" if incompat & _EXT_EXTENTS else "ext3" if journal else "ext2"
    noted = int.from_bytes(block[0x3A:0x3C], "little")
    state = ""
    if noted & _EXT_ERROR:
        state = "errors were noted on it"
    elif incompat & _EXT_RECOVER or not noted & _EXT_VALID:
        state = "it was not unmounted"
    size = count * (1024 << int.from_bytes(block[0x18:0x1C], "little"))
    return Signature(kind, _text(block[0x78:0x88]), str(UUID(bytes=block[0x68:0x78])), size, state)


def _xfs(head: bytes) -> Signature | None:
    if head[:4] != b"XFSB" or len(head) < 512:
        return None
    size = int.from_bytes(head[4:8], "big") * int.from_bytes(head[8:16], "big")
    return Signature("xfs", _text(head[108:120]), str(UUID(bytes=head[32:48])), size)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
