"""What a relayed connection says of the session before its first byte: PROXY protocol v2 with TLVs. Pure.

Chosen over a line of JSON because what stands on a host already reads it, and takes it off before TLS begins: HAProxy,
Envoy and nginx by one word of their configuration, Go and Rust by a library; and whoever has nothing reads 16 bytes,
then as many as the last two of them say. docs/relays.md has the table; tests/vectors/preface.json the bytes.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import NamedTuple

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXIED = 0x21
_TCP4, _TCP6, _UNSPECIFIED = 0x11, 0x21, 0x00

#: Of the protocol itself: an id of this one connection, unlike any other's.
UNIQUE_ID = 0x05
#: Of those that the protocol leaves to its users.
SESSION_ID, BOOT_ID, GENERATION, RELAY = 0xE0, 0xE1, 0xE2, 0xE3


class Identity(NamedTuple):
    """Whose connection it is."""

    session_id: str
    boot_id: str
    generation: int


def preface(
    identity: Identity,
    relay: str,
    number: int,
    source: tuple[str, int] | None,
    target: tuple[str, int] | None,
) -> bytes:
    """`source` and `target`: the two ends of the connection in the guest, where they are TCP."""
    body = b""
    family = _UNSPECIFIED
    if source is not None and target is not None:
        family = _TCP6 if ":" in source[0] else _TCP4
        body = ip_address(source[0]).packed + ip_address(target[0]).packed
        body += struct.pack("!HH", source[1], target[1])
    for type_, text in (
        (UNIQUE_ID, f"{identity.session_id}-{relay}-{number}"),
        (SESSION_ID, identity.session_id),
        (BOOT_ID, identity.boot_id),
        (GENERATION, str(identity.generation)),
        (RELAY, relay),
    ):
        value = text.encode()
        body += struct.pack("!BH", type_, len(value)) + value
    return SIGNATURE + struct.pack("!BBH", _PROXIED, family, len(body)) + body
