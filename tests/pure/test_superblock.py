"""What is on a disk is known by its first bytes; and only what is blank is blank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.storage.superblock import EDGE, find, is_blank, places

U = bytes(range(16))
UUID = "00010203-0405-0607-0809-0a0b0c0d0e0f"


def disk(*pieces: tuple[int, bytes], size: int = EDGE) -> bytes:
    data = bytearray(size)
    for offset, piece in pieces:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def ext(compat: int, incompat: int, state: int = 1) -> bytes:
    at = 1024
    return disk(
        (at + 4, (1000).to_bytes(4, "little")), (at + 0x18, (2).to_bytes(4, "little")), (at + 0x38, b"\x53\xef"),
        (at + 0x3A, state.to_bytes(2, "little")), (at + 0x5C, compat.to_bytes(4, "little")),
        (at + 0x60, incompat.to_bytes(4, "little")), (at + 0x68, U), (at + 0x78, b"label"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("compat", "incompat", "kind"), [(0, 0, "ext2"), (4, 0, "ext3"), (4, 0x40, "ext4"), (0, 0x40, "ext4")]
)
def test_the_family_of_ext(compat: int, incompat: int, kind: str) -> None:
    found = find(ext(compat, incompat))
    assert found is not None
    assert (found.kind, found.label, found.uuid, found.size, found.state) == (
        kind,
        "label",
        UUID,
        4096000,
        "",
    )


def test_ext_says_how_it_was_left() -> None:
    left, marred = find(ext(4, 0x44)), find(ext(4, 0x40, 3))
    assert left is not None
    assert marred is not None
    assert (left.state, marred.state) == ("it was not unmounted", "errors were noted on it")


def test_xfs() -> None:
    found = find(
        disk(
            (0, b"XFSB"), (4, (4096).to_bytes(4, "big")), (8, (77).to_bytes(8, "big")), (32, U), (108, b"lab")
        )
    )
    assert found is not None
    assert found[:4] == ("xfs", "lab", UUID, 4096 * 77)


@pytest.mark.parametrize(
    ("offset", "magic", "kind"),
    [
        (0, b"LUKS\xba\xbe", "LUKS"), (0x10040, b"_BHRfS_M", "btrfs"), (4086, b"SWAPSPACE2", "swap"),
        (512, b"EFI PART", "gpt"), (4096, b"EFI PART", "gpt"), (510, b"\x55\xaa", "dos"), (0x8001, b"CD001", "iso9660"),
        (0x218, b"LVM2 001", "LVM2"), (0x52, b"FAT32   ", "vfat"), (0x1000, b"\xfc\x4e\x2b\xa9", "linux_raid"),
        (0, b"hsqs", "squashfs"), (1024, b"\xe2\xe1\xf5\xe0", "erofs"), (3, b"NTFS    ", "ntfs"),
    ],
)  # fmt: skip
def test_others_are_known_too(offset: int, magic: bytes, kind: str) -> None:
    found = find(disk((offset, magic)))
    assert found is not None
    assert found.kind == kind


@given(st.binary(max_size=3000))
def test_any_beginning_can_be_looked_at(head: bytes) -> None:
    find(head)
    find(head + bytes(EDGE))


def test_one_byte_is_enough_not_to_be_blank() -> None:
    assert is_blank(bytes(4096))
    assert is_blank(b"")
    assert not is_blank(bytes(4095) + b"\1")


@given(st.integers(0, 1 << 45))
def test_what_is_read_of_a_disk_is_bounded_inside_it_and_has_both_ends(size: int) -> None:
    found = places(size)
    assert sum(length for _, length in found) <= 2 * EDGE + 260 * 4096
    assert all(offset >= 0 and offset + length <= size for offset, length in found)
    if size > 2 * EDGE:
        assert {(0, EDGE), (size - EDGE, EDGE)} <= set(found)
    if size:
        assert found[0][0] == 0
        assert max(offset + length for offset, length in found) == size
