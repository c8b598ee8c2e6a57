"""Members of a tar stream as bytes: POSIX.1-2001 (pax), with GNU's extension for holes. Pure.

What is written any tar of the last twenty years reads: names and numbers that fit are in the plain header, the rest
(times in nanoseconds, long names, extended attributes, holes) in the records before it. Names are the system's own
bytes. What is read may be anybody's: `TarError` says what is wrong with it, and no length that it names is believed
before it is checked.
"""

from __future__ import annotations

import struct

BLOCK = 512
FILE, HARD_LINK, SYMLINK, CHARACTER, DEVICE, FOLDER, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
#: Two empty blocks are the end. GNU tar pads to this.
END = bytes(2 * BLOCK)

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_BLANK_SUM = b"        "
_MAGIC = b"ustar\00000"
_MOST_ID = 0o7777777
_MOST_SIZE = 0o77777777777
_XATTR = b"SCHILY.xattr."
_BILLION = 1_000_000_000
#: Of one member's records together. An extended attribute has at most 64 KiB, and so many files have.
RECORDS_MAX = 1024 * 1024
#: Pieces of one file between its holes; a file in more is stored with its last holes filled.
PIECES_MAX = 8192


class TarError(ValueError):
    """The bytes are no tar stream that can be read, and why."""


class Member:
    """One entry. `size` is of what follows in the stream; `pieces` and `real_size` are of a file with holes."""

    __slots__ = (
        "gid", "link", "mode", "mtime", "name", "pieces", "real_size", "size", "sparse", "type", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, name: bytes, type: bytes, size: int = 0) -> None:
        self.name = name
        self.type = type
        self.size = size
        self.mode = 0o644
        self.uid = self.gid = 0
        #: Nanoseconds since 1970.
        self.mtime = 0
        self.link = b""
        self.xattrs: dict[bytes, bytes] = {}
        #: Its data begins with a map of its pieces, which is still to be read.
        self.sparse = False
        self.pieces: list[tuple[int, int]] | None = None
        self.real_size = size


def padding(size: int) -> int:
    """Bytes behind so many, up to a whole block."""
    return -size % BLOCK


def encode(member: Member) -> bytes:
    """The header, its records before it, and the map of a file with holes behind it. Its data comes next."""
    records = b""
    name, size = member.name, member.size
    seconds, part = divmod(member.mtime, _BILLION)
    if part or not 0 <= seconds <= _MOST_SIZE:
        records += _record(b"mtime", _time(member.mtime))
    prefix = b""
    map_bytes = b""
    if member.pieces is not None:
        map_bytes = _map(member.pieces)
        size = len(map_bytes) + sum(length for _, length in member.pieces)
        records += _record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.minor", b"0")
        records += _record(b"GNU.sparse.name", name)
        records += _record(b"GNU.sparse.realsize", b"%d" % member.real_size)
        name = (b"GNUSparseFile.0/" + name.rpartition(b"/")[2])[:100]
    elif len(name) > 100:
        prefix, name = _split(name)
        if not name:
            records += _record(b"path", member.name)
            name = member.name[-100:]
    if len(member.link) > 100:
        records += _record(b"linkpath", member.link)
    for key, value in member.xattrs.items():
        records += _record(_XATTR + key, value)
    if size > _MOST_SIZE:
        records += _record(b"size", b"%d" % size)
    for key, number in ((b"uid", member.uid), (b"gid", member.gid)):
        if number > _MOST_ID:
            records += _record(key, b"%d" % number)
    head = _header(
        name, member.type, size, member.mode, member.uid, member.gid, seconds, member.link[:100], prefix
    )
    if not records:
        return head + map_bytes
    before = _header(b"./PaxHeaders/" + name[-86:], b"x", len(records), 0o644, 0, 0, seconds, b"", b"")
    return before + records + bytes(padding(len(records))) + head + map_bytes


def _header(
    name: bytes, type: bytes, size: int, mode: int, uid: int, gid: int, mtime: int, link: bytes, prefix: bytes
) -> bytes:
    fields = [
        name, b"%07o\0" % mode, b"%07o\0" % min(uid, _MOST_ID), b"%07o\0" % min(gid, _MOST_ID),
        b"%011o\0" % min(size, _MOST_SIZE), b"%011o\0" % min(max(mtime, 0), _MOST_SIZE), _BLANK_SUM, type, link, _MAGIC,
        b"", b"", b"0000000\0", b"0000000\0", prefix,
    ]  # fmt: skip
    fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """As prefix and name, if it can be cut at a slash so that both fit."""
    at = name.find(b"/", max(0, len(name) - 101), 156)
    if at > 0 and len(name) - at - 1 <= 100 and at <= 155 and name[at + 1 :]:
        return name[:at], name[at + 1 :]
    return b"", b""


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size = len(b"%d" % size) + len(rest)
    return b"%d" % size + rest


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, part = divmod(abs(nanoseconds), _BILLION)
    return sign + b"%d.%09d" % (seconds, part)


def _map(pieces: list[tuple[int, int]]) -> bytes:
    text = b"%d\n" % len(pieces) + b"".join(b"%d\n%d\n" % piece for piece in pieces)
    return text + bytes(padding(len(text)))


def decode(block: bytes, records: dict[bytes, bytes]) -> Member:
    """The member of a header, under the records that came before it."""
    fields = _HEADER.unpack(block)
    if fields[6] != _BLANK_SUM and _number(fields[6], "checksum") != sum(block) - sum(fields[6]) + 8 * 0x20:
        raise TarError("this is no tar stream, or a damaged one: the checksum of a header is wrong")
    name = _text(fields[0])
    if fields[9][:6] == b"ustar\0" and _text(fields[14]):
        name = _text(fields[14]) + b"/" + name
    kind = fields[7]
    member = Member(name, FILE if kind in {b"\0", b"7"} else kind, _number(fields[4], "size"))
    if kind == b"\0" and name.endswith(b"/"):
        member.type = FOLDER  # as tar had it before there was a type for it
    member.mode = _number(fields[1], "mode") & 0o7777
    member.uid, member.gid = _number(fields[2], "uid"), _number(fields[3], "gid")
    member.mtime = _number(fields[5], "mtime") * _BILLION
    member.link = _text(fields[8])
    member.real_size = member.size
    if records:
        _apply(member, records)
    if member.size < 0 or member.real_size < 0:
        raise TarError(f"a member of {member.size} bytes")
    return member


def _apply(member: Member, records: dict[bytes, bytes]) -> None:
    for key, value in records.items():
        match key:
            case b"path":
                member.name = value
            case b"linkpath":
                member.link = value
            case b"size":
                member.size = member.real_size = _decimal(value, "size")
            case b"uid":
                member.uid = _decimal(value, "uid")
            case b"gid":
                member.gid = _decimal(value, "gid")
            case b"mtime":
                member.mtime = _read_time(value)
            case _ if key.startswith(_XATTR):
                member.xattrs[key[len(_XATTR) :]] = value
            case _:
                pass
    if b"GNU.sparse.major" in records:
        member.name = records.get(b"GNU.sparse.name", member.name)
        member.real_size = _decimal(records.get(b"GNU.sparse.realsize", b""), "realsize")
        if records[b"GNU.sparse.major"] != b"1":
            raise TarError(f"holes of member {_shown(member.name)} are written in a way that is not known")
        member.sparse = True
    elif b"GNU.sparse.size" in records:
        raise TarError(
            f"holes of member {_shown(member.name)} are written in an old way; make the archive with"
            " --sparse-version=1.0"
        )


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 20)
        size = _decimal(data[at:space] if space > 0 else b"", "length of a record")
        record = data[space + 1 : at + size]
        key, equals, value = record.partition(b"=")
        if size <= space - at or at + size > len(data) or not equals or not record.endswith(b"\n"):
            raise TarError("a record of an extended header is cut short")
        found[key] = value[:-1]
        at += size
    return found


def parse_map(data: bytes) -> tuple[list[tuple[int, int]], int] | None:
    """The pieces of a file with holes, and how many bytes the map takes; None while it is not whole."""
    lines = data.split(b"\n", 2 * PIECES_MAX + 2)
    if len(lines) < 2:
        if len(data) > 20:
            raise TarError("the map of a file with holes does not begin with a number")
        return None
    count = _decimal(lines[0], "number of pieces")
    if count > PIECES_MAX:
        raise TarError(f"a file in {count} pieces; at most {PIECES_MAX} are read")
    if len(lines) < 2 * count + 2:
        return None
    numbers = [_decimal(line, "piece") for line in lines[1 : 2 * count + 1]]
    size = sum(len(line) + 1 for line in lines[: 2 * count + 1])
    return list(zip(numbers[::2], numbers[1::2], strict=True)), size + padding(size)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, what: str) -> int:
    if field[0] & 0x80:  # GNU: too large for digits
        value = int.from_bytes(field, "big")
        return (
            value - (1 << (8 * len(field))) if field[0] & 0x40 else value - (0x80 << (8 * (len(field) - 1)))
        )
    digits = field.replace(b"\0", b" ").strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TarError(f"this is no tar stream, or a damaged one: {digits!r} is no {what}") from None


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"{text[:40]!r} is no {what}")
    return int(text)


def _read_time(text: bytes) -> int:
    negative = text.startswith(b"-")
    whole, _, part = text.lstrip(b"-").partition(b".")
    nanoseconds = _decimal(whole, "time") * _BILLION + (
        _decimal(part[:9].ljust(9, b"0"), "time") if part else 0
    )
    return -nanoseconds if negative else nanoseconds


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "surrogateescape"))
