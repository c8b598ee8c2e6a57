"""Tar streams: what is written is read again, here and by Python's own reader, at any split; a lie is told."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.tree.tarformat import (
    END,
    FIFO,
    FILE,
    FOLDER,
    HARD_LINK,
    PIECES_MAX,
    RECORDS_MAX,
    SYMLINK,
    Member,
    TarError,
    encode,
    padding,
)
from guestd.tree.tarread import TarReader

Entry = tuple[Member, bytes]

names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and name.strip(b"/") != b"")
times = st.integers(-(2**60), 2**62)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    type_ = draw(st.sampled_from([FILE, FOLDER, SYMLINK, HARD_LINK, FIFO]))
    member = Member(draw(names).strip(b"/") or b"x", type_)
    member.mode = draw(st.integers(0, 0o7777))
    member.uid, member.gid = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
    member.mtime = draw(times)
    data = b""
    if type_ in {SYMLINK, HARD_LINK}:
        member.link = draw(names)
    if type_ == FILE:
        data = draw(st.binary(max_size=2000))
        member.size = member.real_size = len(data)
        member.xattrs = draw(
            st.dictionaries(st.just(b"user.a") | st.just(b"user.b c"), st.binary(max_size=50), max_size=2)
        )
    return member, data


def stream(found: list[Entry]) -> bytes:
    return b"".join(encode(member) + data + bytes(padding(len(data))) for member, data in found) + END


def read(data: bytes, step: int) -> list[Entry]:
    reader = TarReader()
    found: list[Entry] = []
    for at in range(0, len(data), step):
        for each in reader.feed(data[at : at + step]):
            if isinstance(each, Member):
                found.append((each, b""))
            else:
                found[-1] = found[-1][0], found[-1][1] + bytes(each)
    assert reader.ended
    assert not reader.begun
    return found


def said(member: Member) -> tuple[object, ...]:
    return (
        member.name, member.type, member.mode, member.uid, member.gid, member.mtime, member.link, member.xattrs,
        member.real_size, member.pieces,
    )  # fmt: skip


@given(st.lists(entries(), max_size=5), st.sampled_from([1, 511, 512, 513, 100_000]))
def test_what_is_written_is_read(found: list[Entry], step: int) -> None:
    again = read(stream(found) + b"trailing", step)
    assert [(said(member), data) for member, data in again] == [
        (said(member), data) for member, data in found
    ]


@given(st.lists(entries(), max_size=5))
def test_python_reads_it_too(found: list[Entry]) -> None:
    with tarfile.open(
        fileobj=io.BytesIO(stream(found)), encoding="utf-8", errors="surrogateescape"
    ) as archive:
        again = archive.getmembers()
        assert [member.name.encode("utf-8", "surrogateescape") for member in again] == [
            member.name for member, _ in found
        ]
        for theirs, (member, data) in zip(again, found, strict=True):
            assert theirs.mode == member.mode
            assert (theirs.uid, theirs.gid) == (member.uid, member.gid)
            assert abs(theirs.mtime - member.mtime / 1e9) <= abs(member.mtime / 1e9) * 1e-9 + 1e-6
            if member.type == FILE:
                file = archive.extractfile(theirs)
                assert file is not None
                assert file.read() == data


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("step", [1, 10_000])
def test_it_reads_pythons(format_: int, step: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for name, data in (("a/" + "x" * 90, b"1" * 700), ("b" * 99, b""), ("dir/" * 20 + "f", b"2")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 12345, 0o640
            archive.addfile(info, io.BytesIO(data))
    found = read(out.getvalue(), step)
    assert [(member.name.decode(), data) for member, data in found] == [
        ("a/" + "x" * 90, b"1" * 700), ("b" * 99, b""), ("dir/" * 20 + "f", b"2"),
    ]  # fmt: skip
    assert {member.mtime for member, _ in found} == {12345 * 10**9}


def sparse(pieces: list[tuple[int, int]], size: int) -> Entry:
    member = Member(b"holes/" + b"n" * 250, FILE)
    member.pieces, member.real_size = pieces, size
    return member, b"d" * sum(length for _, length in pieces)


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000)), max_size=30),
    st.sampled_from([1, 512, 10_000]),
)
def test_holes_are_kept(steps: list[tuple[int, int]], step: int) -> None:
    pieces: list[tuple[int, int]] = []
    at = 0
    for gap, length in steps:
        pieces.append((at + gap, length))
        at += gap + length
    pieces.append((at + 77, 0))
    entry = sparse(pieces, at + 77)
    after = Member(b"after", FOLDER)
    found = read(stream([entry, (after, b"")]), step)
    assert [(said(member), data) for member, data in found] == [
        (said(entry[0]), entry[1]),
        (said(after), b""),
    ]
    with tarfile.open(fileobj=io.BytesIO(stream([entry]))) as archive:
        (theirs,) = archive.getmembers()
        assert theirs.size == at + 77
        file = archive.extractfile(theirs)
        assert file is not None
        content = file.read()
        assert all(content[offset : offset + length] == b"d" * length for offset, length in pieces)


def lie(member: Member, **changes: bytes) -> bytes:
    """A header with some fields as they should not be, and the checksum right."""
    block = bytearray(encode(member)[-512:])
    places = {"size": (124, 12), "mode": (100, 8), "type": (156, 1)}
    for name, value in changes.items():
        at, size = places[name]
        block[at : at + size] = value.ljust(size, b"\0")
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x01" * 512, "checksum"),
        (b"PK\x03\x04" + bytes(600), "no tar stream"),
        (lie(Member(b"a", FILE), size=b"9x9"), "no size"),
        (lie(Member(b"a", FILE), size=b"\xff" * 12), "-1 bytes"),
        (lie(Member(b"a", FILE), type=b"x", size=b"%o" % (RECORDS_MAX + 1)), "extended header"),
        (lie(Member(b"a", FILE), type=b"S"), "oldest way"),
        (lie(Member(b"a", FILE), type=b"x", size=b"5") + b"99 a=".ljust(512, b"\0"), "cut short"),
        (lie(Member(b"a", FILE), type=b"x", size=b"5") + b"nope\n".ljust(512, b"\0"), "length of a record"),
        (encode(sparse([(5, 5), (2, 2)], 100)[0]), "overlap"),
        (encode(sparse([(95, 10)], 100)[0]), "beyond its end"),
    ],
)
def test_lies_are_told(data: bytes, why: str) -> None:
    with pytest.raises(TarError, match=why):
        list(TarReader().feed(data + bytes(1024)))


def test_a_map_of_too_many_pieces_is_refused() -> None:
    pieces = [(2 * at, 1) for at in range(PIECES_MAX + 1)]
    with pytest.raises(TarError, match="pieces"):
        list(TarReader().feed(stream([sparse(pieces, 2 * PIECES_MAX + 2)])))


@given(st.binary(max_size=3000))
def test_noise_ends_in_a_word_or_in_silence(data: bytes) -> None:
    with contextlib.suppress(TarError):
        list(TarReader().feed(data))
