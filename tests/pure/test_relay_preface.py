"""What a relayed connection says first: byte for byte as the page and the vectors have it, and as a reader of the
protocol that was written from its text alone takes it.
"""

from __future__ import annotations

import ipaddress
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.relay.preface import BOOT_ID, GENERATION, RELAY, SESSION_ID, UNIQUE_ID, Identity, preface

ROOT = Path(__file__).resolve().parents[2]
VECTORS: list[dict[str, Any]] = json.loads((ROOT / "tests" / "vectors" / "preface.json").read_text())
PAGE = (ROOT / "docs" / "relays.md").read_text()

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=32)
PLACES = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535)),
    st.tuples(st.ip_addresses(v=6).map(str), st.integers(0, 65535)),
)


class Header(NamedTuple):
    source: tuple[str, int] | None
    target: tuple[str, int] | None
    tlvs: dict[int, bytes]
    rest: bytes


def read(data: bytes) -> Header:
    """As haproxy.org's proxy-protocol.txt, section 2.2, has it."""
    assert data[:12] == b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
    assert data[12] == 0x21, "version 2, PROXY"
    size = struct.unpack("!H", data[14:16])[0]
    body, rest = data[16 : 16 + size], data[16 + size :]
    source = target = None
    if data[13] in {0x11, 0x21}:
        width = 4 if data[13] == 0x11 else 16
        first, second = body[:width], body[width : 2 * width]
        ports = struct.unpack("!HH", body[2 * width : 2 * width + 4])
        source = str(ipaddress.ip_address(first)), ports[0]
        target = str(ipaddress.ip_address(second)), ports[1]
        body = body[2 * width + 4 :]
    else:
        assert data[13] == 0
    tlvs: dict[int, bytes] = {}
    while body:
        kind, length = struct.unpack("!BH", body[:3])
        tlvs[kind] = body[3 : 3 + length]
        assert len(tlvs[kind]) == length
        body = body[3 + length :]
    return Header(source, target, tlvs, rest)


@pytest.mark.parametrize("vector", VECTORS, ids=[str(each["name"]) for each in VECTORS])
def test_the_vectors(vector: dict[str, Any]) -> None:
    source, target = vector["source"], vector["target"]
    made = preface(
        Identity(**vector["identity"]), vector["relay"], vector["number"],
        tuple(source) if source else None, tuple(target) if target else None,
    )  # fmt: skip
    assert made.hex(" ") == vector["bytes"]
    shown = "".join(line.partition("#")[0] for line in PAGE.splitlines(keepends=True))
    assert vector["bytes"].replace(" ", "") in "".join(shown.split()), "docs/relays.md shows other bytes"


@given(
    st.builds(Identity, NAMES, NAMES, st.integers(0, 2**31)), NAMES, st.integers(1, 2**40), PLACES, PLACES,
    st.booleans(),
)  # fmt: skip
def test_whoever_reads_the_protocol_reads_it(
    identity: Identity, relay: str, number: int, source: tuple[str, int], target: tuple[str, int], unix: bool
) -> None:
    if (":" in source[0]) != (":" in target[0]):
        target = (source[0], target[1])
    header = read(
        preface(identity, relay, number, None if unix else source, None if unix else target) + b"first"
    )
    assert header.rest == b"first"
    assert (header.source, header.target) == ((None, None) if unix else (source, target))
    assert header.tlvs == {
        UNIQUE_ID: f"{identity.session_id}-{relay}-{number}".encode(),
        SESSION_ID: identity.session_id.encode(),
        BOOT_ID: identity.boot_id.encode(),
        GENERATION: str(identity.generation).encode(),
        RELAY: relay.encode(),
    }
    assert len(header.tlvs[UNIQUE_ID]) <= 128, "the protocol allows no more"
