"""MessagePack, as much as the file process says of it: it does without packages, and what it says goes out as it is."""

from __future__ import annotations

import struct

_INT64 = struct.Struct(">Bq")
_UINT64 = struct.Struct(">BQ")
_DOUBLE = struct.Struct(">Bd")
_NIL, _FALSE, _TRUE = b"\xc0", b"\xc2", b"\xc3"


def pack(value: object) -> bytes:
    """Text that came from the system with undecodable bytes keeps them."""
    out = bytearray()
    _add(out, value)
    return bytes(out)


def _add(out: bytearray, value: object) -> None:
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        _head(out, len(data), 0xA0, 32, (0xD9, 0xDA, 0xDB))
        out += data
    elif value is None:
        out += _NIL
    elif isinstance(value, bool):
        out += _TRUE if value else _FALSE
    elif isinstance(value, int):
        if 0 <= value < 128:
            out.append(value)
        else:
            out += _UINT64.pack(0xCF, value) if value >= 0 else _INT64.pack(0xD3, value)
    elif isinstance(value, float):
        out += _DOUBLE.pack(0xCB, value)
    elif isinstance(value, (bytes, bytearray)):
        _head(out, len(value), 0, 0, (0xC4, 0xC5, 0xC6))
        out += value
    elif isinstance(value, dict):
        pairs: list[tuple[object, object]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType]  whatever is in it is looked at below
        _head(out, len(pairs), 0x80, 16, (0, 0xDE, 0xDF))
        for key, item in pairs:
            _add(out, key)
            _add(out, item)
    elif isinstance(value, (list, tuple)):
        items: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]  see above
        _head(out, len(items), 0x90, 16, (0, 0xDC, 0xDD))
        for item in items:
            _add(out, item)
    else:
        raise TypeError(f"{type(value).__name__} has no place in a message")


def _head(out: bytearray, size: int, fixed: int, below: int, kinds: tuple[int, int, int]) -> None:
    """The shortest form; of `kinds` those for one, two and four bytes of length, 0 where there is none."""
    if size < below:
        out.append(fixed | size)
    elif size < 2**8 and kinds[0]:
        out += bytes((kinds[0], size))
    elif size < 2**16:
        out += bytes((kinds[1],)) + size.to_bytes(2, "big")
    else:
        out += bytes((kinds[2],)) + size.to_bytes(4, "big")
