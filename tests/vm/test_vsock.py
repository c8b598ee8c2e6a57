"""Native and WebSocket over real vsock, and only for the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guestd.wire.frames import Decoder, Kind
from guestd.wire.messages import unpack

if TYPE_CHECKING:
    from tests.support.vm import Guest

#: What connects to itself: through CID 1, within the machine, and through the guest's own.
LOOP_BACK = """
import os, socket
for cid in (1, 3):
    with socket.socket(socket.AF_VSOCK) as sock:
        sock.settimeout(20)
        sock.connect((cid, 1024))
        said = b""
        while piece := sock.recv(4096):
            said += piece
        print(cid, said.hex())
"""


@pytest.mark.parametrize("dialect", ["native", "websocket"])
def test_a_command_over_vsock(guest: Guest, dialect: str) -> None:
    with guest.peer(dialect=dialect) as peer:
        call = peer.open("exec", shell="head -c 3000000 /dev/zero | tr '\\0' x; echo done >&2", user="root")
        end = call.end()
    assert end["code"] == 0
    assert call.stdout == b"x" * 3_000_000
    assert call.stderr == b"done\n"


def test_a_program_of_the_guest_is_refused_over_vsock(guest: Guest) -> None:
    assert guest.run("grep -c '^vsock_loopback ' /proc/modules") == "1"
    with guest.peer() as peer:
        call = peer.open("exec", argv=["/opt/guestd/bin/python", "-c", LOOP_BACK], user="root")
        assert call.end()["code"] == 0
    told = dict(line.split() for line in call.stdout.decode().splitlines())
    assert set(told) == {"1", "3"}
    for said in told.values():
        # It is told why before it has said a word, and the connection is closed.
        decoder = Decoder()
        decoder.feed(bytes.fromhex(said))
        frame = decoder.next()
        assert frame is not None
        assert frame.kind is Kind.GOAWAY
        assert "vsock" in unpack(frame)["message"]
        assert decoder.next() is None


def test_a_connection_that_is_pulled_out_in_mid_stream_is_taken_up_where_it_was(guest: Guest) -> None:
    """The host's socket is closed while 20 MB are on their way. vhost-device-vsock does not tell the guest of that, so
    the command's caller seems to be there, and slow; `resume` finds out that it is not, and then nothing holds it up.
    """
    count = 20_000_000
    peer = guest.peer(bytes_left=3_000_000)
    call = peer.open("exec", shell=f"yes 0123456 | head -c {count}", id="pulled", tape=1 << 20, user="root")
    with peer, pytest.raises(EOFError):
        call.end()
    had = bytes(call.stdout)
    assert 0 < len(had) < count
    with guest.peer() as peer:
        again = peer.open("attach", id="pulled", from_={"stdout": len(had)}, hold=True)
        again.accepted()
        dropped = peer.ask("resume")["connections"]["dropped"]
        assert len(dropped) <= 1
        assert again.end()["code"] == 0
    # What was on its way to the connection that is gone, and is no longer kept, is told as a gap; nothing comes twice.
    assert len(had) + len(again.stdout) + sum(end - start for _, start, end in again.gaps) == count
