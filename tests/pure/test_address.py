"""One notation for every way to reach a guest; a wrong one is told what would be right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.errors import BadRequest
from guestd.wire.address import FORMS, VSOCK_ANY, Address, parse_address

GOOD = [
    ("unix:/run/guestd/guestd.sock", Address("unix", path="/run/guestd/guestd.sock")),
    ("unix:relative.sock", Address("unix", path="relative.sock")),
    ("unix:/a:b/c d", Address("unix", path="/a:b/c d")),
    ("unix:" + "x" * 107, Address("unix", path="x" * 107)),
    ("unix:/caf\udcff", Address("unix", path="/caf\udcff")),
    ("ws+unix:/s", Address("ws+unix", path="/s")),
    ("vsock:3:5000", Address("vsock", cid=3, port=5000)),
    ("vsock:3", Address("vsock", cid=3, port=1024)),
    ("vsock:3:", Address("vsock", cid=3, port=1024)),
    ("vsock:any:1024", Address("vsock", cid=VSOCK_ANY, port=1024)),
    ("vsock:any", Address("vsock", cid=VSOCK_ANY, port=1024)),
    ("vsock:-1:1", Address("vsock", cid=VSOCK_ANY, port=1)),
    ("vsock:4294967295:4294967295", Address("vsock", cid=VSOCK_ANY, port=4294967295)),
    ("hybrid:/vm/v.sock:1024", Address("hybrid", path="/vm/v.sock", port=1024)),
    ("hybrid:/vm/v.sock", Address("hybrid", path="/vm/v.sock", port=1024)),
    ("hybrid:/vm/a:b:7", Address("hybrid", path="/vm/a:b", port=7)),
    ("hybrid:/vm/a:b", Address("hybrid", path="/vm/a:b", port=1024)),
    ("hybrid:/v:4294967295", Address("hybrid", path="/v", port=4294967295)),
    ("tcp:localhost:80", Address("tcp", host="localhost", port=80)),
    ("tcp:127.0.0.1", Address("tcp", host="127.0.0.1", port=1024)),
    ("tcp:[::1]:80", Address("tcp", host="::1", port=80)),
    ("tcp:[::1]", Address("tcp", host="::1", port=1024)),
    ("tcp:h:0", Address("tcp", host="h", port=0)),
    ("ws://h:80/a/b?c", Address("ws", host="h", port=80, path="/a/b?c")),
    ("ws://h", Address("ws", host="h", port=1024, path="/")),
    ("wss://[::1]:443", Address("wss", host="::1", port=443, path="/")),
]

BAD = [
    ("", "no scheme"),
    ("guestd", "no scheme"),
    ("/run/guestd.sock", "no scheme"),
    ("http://h", "'http' is no scheme"),
    ("UNIX:/a", "'UNIX' is no scheme"),
    (":1", "'' is no scheme"),
    ("unix:", "the path is missing"),
    ("unix:" + "x" * 108, "108 bytes; a socket's path can have 107"),
    ("unix:" + "é" * 54, "108 bytes"),
    ("unix:/a\0b", "a NUL"),
    ("ws+unix:", "the path is missing"),
    ("hybrid:", "the path is missing"),
    ("hybrid::5", "the path is missing"),
    ("hybrid:/v:4294967296", "the port '4294967296' is not a number from 0 to 4294967295"),
    ("vsock:", "the CID ''"),
    ("vsock:host:1", "the CID 'host'"),
    ("vsock:4294967296", "the CID '4294967296'"),
    ("vsock:" + "9" * 5000, "the CID"),
    ("vsock:٣:1", "the CID"),
    ("vsock:3:x", "the port 'x' is not a number from 0 to 4294967295"),
    ("vsock:3:1:2", "the port '1:2'"),
    ("tcp:", "the host is missing"),
    ("tcp::80", "the host is missing"),
    ("tcp:h:65536", "the port '65536' is not a number from 0 to 65535"),
    ("tcp:h:-1", "the port '-1'"),
    ("tcp:h:²", "the port"),
    ("tcp:h:" + "9" * 5000, "the port"),
    ("tcp:::1:80", "an IPv6 address goes in brackets"),
    ("tcp:fe80::1", "an IPv6 address goes in brackets"),
    ("tcp:[::1", "the bracket"),
    ("tcp:[::1]80", "the bracket"),
    ("ws:h:80", "after ws: comes //"),
    ("ws:/h", "after ws: comes //"),
    ("wss://", "the host is missing"),
    ("wss://:443/", "the host is missing"),
    ("ws://h:x/", "the port 'x'"),
]


@pytest.mark.parametrize(("text", "address"), GOOD, ids=[repr(text[:40]) for text, _ in GOOD])
def test_taken(text: str, address: Address) -> None:
    assert parse_address(text) == address
    # Written out, with the port it has got by default, it means the same.
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(("text", "what"), BAD, ids=[repr(text[:40]) for text, _ in BAD])
def test_refused(text: str, what: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_address(text)
    assert what in raised.value.message
    assert raised.value.details == {"field": "address", "expected": FORMS}


@given(
    text=st.text()
    | st.builds(str.__add__, st.sampled_from(["unix:", "vsock:", "hybrid:", "tcp:", "ws://"]), st.text())
)
def test_any_text_is_an_address_or_a_bad_request(text: str) -> None:
    try:
        address = parse_address(text)
    except BadRequest:
        return
    assert parse_address(str(address)) == address
