"""A tar stream as it comes, at any split: members, each with its data behind it. Pure.

Memory is bounded by the largest piece given and by `RECORDS_MAX`: data is handed on as it is, never gathered.
"""

from __future__ import annotations

from guestd.tree.tarformat import (
    BLOCK,
    RECORDS_MAX,
    Member,
    TarError,
    decode,
    padding,
    parse_map,
    parse_records,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_EMPTY = bytes(BLOCK)


class TarReader:
    """`feed` gives what came: a Member, then its data as views, which are good until the next is asked for."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._skip = 0
        self._records: dict[bytes, bytes] = {}
        self._mapped: Member | None = None
        self._empty = 0
        #: The end of the archive has come; what may be behind it is not looked at.
        self.ended = False

    @property
    def begun(self) -> bool:
        """Is it in the middle of a member?"""
        return bool(self._rest or self._left or self._skip or self._records)

    def feed(self, data: bytes | memoryview) -> Iterator[Member | memoryview]:
        """Everything must be taken from the iterator before the next call."""
        if self.ended:
            return
        view = memoryview(self._rest + bytes(data) if self._rest else data)
        at, end = 0, len(view)
        self._rest = b""
        while True:
            if self._left and self._mapped is None:
                size = min(self._left, end - at)
                if size:
                    self._left -= size
                    yield view[at : at + size]
                    at += size
                if self._left:
                    return
            if self._skip and self._mapped is None:
                size = min(self._skip, end - at)
                self._skip -= size
                at += size
                if self._skip:
                    return
            size, member = self._next(view[at:])
            if not size:
                self._rest = bytes(view[at:])
                return
            at += size
            if self.ended:
                return
            if member is not None:
                yield member

    def _next(self, view: memoryview) -> tuple[int, Member | None]:
        """How many bytes a header, with what belongs to it, takes; 0 while it is not whole."""
        if self._mapped is not None:
            return self._read_map(view)
        if len(view) < BLOCK:
            return 0, None
        block = bytes(view[:BLOCK])
        if block == _EMPTY:
            self._empty += 1
            self.ended = self._empty == 2
            return BLOCK, None
        self._empty = 0
        kind = block[156:157]
        if kind not in b"xgLK":
            return BLOCK, self._begin(decode(block, self._records))
        header = decode(block, {})
        if header.size > RECORDS_MAX:
            raise TarError(f"an extended header of {header.size} bytes; at most {RECORDS_MAX} are read")
        whole = BLOCK + header.size + padding(header.size)
        if len(view) < whole:
            return 0, None
        content = bytes(view[BLOCK : BLOCK + header.size])
        if kind == b"x":
            self._records.update(parse_records(content))
        elif kind in b"LK":  # GNU's older way for long names
            self._records[b"path" if kind == b"L" else b"linkpath"] = content.partition(b"\0")[0]
        return whole, None

    def _begin(self, member: Member) -> Member | None:
        self._records = {}
        if member.type == b"S":
            raise TarError(
                "holes are written in GNU's oldest way; make the archive with --format=posix --sparse"
            )
        # Links and folders have none, whatever their headers say.
        self._left = 0 if member.type in b"123456" else member.size
        self._skip = padding(self._left)
        if not member.sparse:
            return member
        self._mapped = member
        return None

    def _read_map(self, view: memoryview) -> tuple[int, Member | None]:
        member = self._mapped
        assert member is not None
        found = parse_map(bytes(view[: min(len(view), self._left)]))
        if found is None:
            if len(view) >= self._left or len(view) > RECORDS_MAX:
                raise TarError("the map of a file with holes is cut short")
            return 0, None
        pieces, size = found
        if size > len(view):
            return 0, None
        position = 0
        for offset, length in pieces:
            if offset < position or offset + length > member.real_size:
                raise TarError("the pieces of a file with holes overlap, or are beyond its end")
            position = offset + length
        if sum(length for _, length in pieces) != self._left - size:
            raise TarError("the pieces of a file with holes are not as long as the file is stored")
        member.pieces = pieces
        self._mapped = None
        self._left -= size
        return size, member
