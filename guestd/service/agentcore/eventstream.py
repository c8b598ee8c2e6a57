"""The frames of application/vnd.amazon.eventstream. Pure.

    u32 length of all | u32 length of the headers | u32 CRC of these two | headers | payload | u32 CRC of all before

Big-endian; a header is its name, a type and a value, and only text is needed here.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTENT_TYPE = b"application/vnd.amazon.eventstream"
#: Of one message's payload, as AWS documents it.
PAYLOAD_MAX = 64 * 1024
_PRELUDE = struct.Struct(">II")
_CRC = struct.Struct(">I")
_NAME = struct.Struct(">B")
_TEXT = struct.Struct(">BH")
_TEXT_TYPE = 7


def encode(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message."""
    head = b"".join(_header(name, value) for name, value in headers.items())
    prelude = _PRELUDE.pack(_PRELUDE.size + 2 * _CRC.size + len(head) + len(payload), len(head))
    crc = crc32(prelude)
    message = b"".join((prelude, _CRC.pack(crc), head, payload))
    return message + _CRC.pack(crc32(message))


def _header(name: str, value: str) -> bytes:
    said, text = name.encode(), value.encode()
    return b"".join((_NAME.pack(len(said)), said, _TEXT.pack(_TEXT_TYPE, len(text)), text))


_CHUNK = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}


def chunk(content: Mapping[str, object]) -> bytes:
    """An event of a command's stream."""
    return encode(_CHUNK, as_json(content))


def exception(name: str, message: str) -> bytes:
    """What went wrong in mid-stream; nothing comes after it."""
    # A member of the stream's shape, so it begins small: InternalServerException is internalServerException there.
    headers = {
        ":exception-type": name[:1].lower() + name[1:],
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return encode(headers, as_json({"message": message}))


def deltas(stream: str, text: str) -> Iterator[bytes]:
    """Events that carry that text: as few as it fits into."""
    payload = as_json({"contentDelta": {stream: text}})
    if len(payload) <= PAYLOAD_MAX:
        yield encode(_CHUNK, payload)
        return
    # JSON writes a control character as six, so how much fits is known only afterwards.
    half = len(text) // 2
    yield from deltas(stream, text[:half])
    yield from deltas(stream, text[half:])


def as_json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
