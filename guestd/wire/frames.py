"""Frames: `u32 length | u8 kind | u32 channel | payload`, little-endian, behind an eight-byte preface.

The decoder owns one buffer. A reader receives straight into it (`writable`, then `wrote`) and takes frames
out with `next`; payloads are views of that buffer, so bulk data is not copied on its way in. A view is good
until the next call of `writable` or `feed`.

Bounds: a frame is at most `limit` bytes long, and the length is checked before a byte of the frame is kept,
so a peer that announces a giant costs the buffer it already had.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from guestd.errors import ProtocolViolation

PREFACE = b"\x00guestd\x01"
VERSION = 1

#: kind + channel: what `length` counts besides the payload.
HEAD = 5
#: u8 stream + u64 offset: what a DATA payload begins with.
DATA_HEAD = 9

#: Before a peer has said who it is. OpenSSH allows 35,000 bytes for its packets, h11 16 KiB for a request head.
HANDSHAKE_FRAME_LIMIT = 64 * 1024
#: After the hello. An OPEN may carry a whole argv (2 MiB on Linux) and an environment beside it.
FRAME_LIMIT = 4 * 1024 * 1024
#: What a sender puts in one DATA frame. Beyond 256 KiB throughput no longer grows, and smaller
#: frames let other channels of the connection in between.
DATA_LIMIT = 256 * 1024
#: Room offered to a read. Grows to the frame that is arriving, and shrinks back behind it.
READ_SIZE = 64 * 1024
#: Room while bulk data arrives: two full DATA frames, so that a read rarely ends in the middle of one.
BULK_READ_SIZE = 2 * DATA_LIMIT + 64


class Kind(IntEnum):
    """What a frame is. Channel 0 carries what concerns the whole connection."""

    HELLO = 0x01
    GOAWAY = 0x02
    PING = 0x03
    PONG = 0x04
    OPEN = 0x10
    ACCEPT = 0x11
    REJECT = 0x12
    DATA = 0x13
    EVENT = 0x14
    CREDIT = 0x15
    END = 0x16
    RESET = 0x17


_KINDS = {int(kind): kind for kind in Kind}
_CONNECTION_KINDS = frozenset({Kind.HELLO, Kind.GOAWAY, Kind.PING, Kind.PONG})
#: What is echoed must stay small, or pings are a way to make the other side buffer.
PING_LIMIT = 64

_PREFIX = struct.Struct("<IBI")
_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<BI")
_DATA = struct.Struct("<BQ")
_DATA_FRAME = struct.Struct("<IBIBQ")
_DATA_MESSAGE = struct.Struct("<BIBQ")


class Frame(NamedTuple):
    """One frame. `payload` is a view of the decoder's buffer."""

    kind: Kind
    channel: int
    payload: memoryview


class Data(NamedTuple):
    """The payload of a DATA frame, taken apart."""

    stream: int
    offset: int
    data: memoryview


def encode(kind: Kind, channel: int, payload: bytes = b"") -> bytes:
    """A whole frame, with its length."""
    return _PREFIX.pack(HEAD + len(payload), kind, channel) + payload


def data_head(channel: int, stream: int, offset: int, size: int) -> bytes:
    """What goes before `size` bytes of data in a DATA frame. The data itself is sent from where it lies."""
    return _DATA_FRAME.pack(HEAD + DATA_HEAD + size, Kind.DATA, channel, stream, offset)


def read_data(payload: memoryview) -> Data:
    """Take a DATA payload apart."""
    if len(payload) < DATA_HEAD:
        raise ProtocolViolation(
            f"a DATA frame of {len(payload)} bytes is too short: it begins with u8 stream, u64 offset",
        )
    stream, offset = _DATA.unpack_from(payload)
    return Data(stream, offset, payload[DATA_HEAD:])


def parse_message(message: memoryview, limit: int) -> Frame:
    """A frame without its length: one binary message of the WebSocket dialect."""
    if len(message) > limit:
        raise _too_long(len(message), limit)
    if len(message) < HEAD:
        raise ProtocolViolation(
            f"a message of {len(message)} bytes is too short: it begins with u8 kind, u32 channel"
        )
    kind, channel = _HEAD.unpack_from(message)
    return _checked(kind, channel, message[HEAD:])


class Decoder:
    """Bytes in, frames out, at any split."""

    def __init__(self, *, limit: int = HANDSHAKE_FRAME_LIMIT, preface: bool = True) -> None:
        self.limit = limit
        self._preface = preface
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        # How much room the frame now arriving needs, from `_start` on; 0 when that is not known yet.
        self._wanted = 0

    @property
    def pending(self) -> int:
        """Bytes received that are not yet part of a frame handed out."""
        return self._end - self._start

    def writable(self) -> memoryview:
        """Where the next bytes go. Never empty. Views handed out before are no longer good."""
        held = self._end - self._start
        size = len(self._buffer)
        needed = self._wanted or READ_SIZE
        if held == 0:
            self._start = self._end = 0
            if size > BULK_READ_SIZE:
                self._replace(READ_SIZE)
        elif size - self._start < needed or self._end == size:
            if needed > size or held == size:
                self._replace(max(needed, BULK_READ_SIZE, 2 * held))
            else:
                # Old views may still look at this memory, but they are no longer good by contract.
                self._view[:held] = self._view[self._start : self._end]
                self._start, self._end = 0, held
        return self._view[self._end :]

    def wrote(self, size: int) -> None:
        """`size` bytes were put at the front of what `writable` offered."""
        self._end += size

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """For those who already hold the bytes."""
        rest = memoryview(data)
        while rest:
            room = self.writable()
            size = min(len(room), len(rest))
            room[:size] = rest[:size]
            self.wrote(size)
            rest = rest[size:]
            if rest and not self._wanted:
                # Learn how long the frame is before more is kept, so that the limit holds here too.
                self._measure()

    def next(self) -> Frame | None:
        """The next whole frame, or None until more bytes have come."""
        if self._preface and not self._take_preface():
            return None
        if not self._measure():
            return None
        start, wanted = self._start, self._wanted
        if self._end - start < wanted:
            return None
        self._start = start + wanted
        self._wanted = 0
        kind, channel = _HEAD.unpack_from(self._buffer, start + 4)
        return _checked(kind, channel, self._view[start + 4 + HEAD : start + wanted])

    def _measure(self) -> bool:
        if self._wanted:
            return True
        if self._preface or self._end - self._start < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if length < HEAD:
            raise ProtocolViolation(
                f"a frame length of {length} is too short: kind and channel alone are {HEAD}"
            )
        if length > self.limit:
            raise _too_long(length, self.limit)
        self._wanted = _LENGTH.size + length
        return True

    def _take_preface(self) -> bool:
        seen = bytes(self._view[self._start : min(self._end, self._start + len(PREFACE))])
        if not PREFACE.startswith(seen):
            raise ProtocolViolation(f"the connection began with {seen!r}, not with the preface {PREFACE!r}")
        if len(seen) < len(PREFACE):
            return False
        self._start += len(PREFACE)
        self._preface = False
        return True

    def _replace(self, size: int) -> None:
        held = self._end - self._start
        buffer = bytearray(size)
        view = memoryview(buffer)
        view[:held] = self._view[self._start : self._end]
        self._buffer, self._view = buffer, view
        self._start, self._end = 0, held


def _checked(kind_byte: int, channel: int, payload: memoryview) -> Frame:
    kind = _KINDS.get(kind_byte)
    if kind is None:
        raise ProtocolViolation(f"frame kind 0x{kind_byte:02x} is not one of this protocol version")
    if (channel == 0) != (kind in _CONNECTION_KINDS):
        raise ProtocolViolation(f"{kind.name} does not belong on channel {channel}")
    if len(payload) > PING_LIMIT and (kind is Kind.PING or kind is Kind.PONG):
        raise ProtocolViolation(f"{kind.name} carries {len(payload)} bytes; at most {PING_LIMIT} are allowed")
    return Frame(kind, channel, payload)


def _too_long(length: int, limit: int) -> ProtocolViolation:
    return ProtocolViolation(f"a frame of {length} bytes is over the limit of {limit}")
