"""What passes through a terminal passes unchanged, once, and in order, whatever happens to the connection.

`Call` checks the offset of each DATA frame as it comes, so whatever a test reads is known to be without hole and
repetition.
"""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import Kind
from tests.support.commands import serving_commands
from tests.support.peer import Failed, Peer
from tests.support.shells import DIALECTS, KIB, MIB, RAW, TERMINAL, Seat, python, row_of, until_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running


@pytest.fixture(params=DIALECTS)
def peer(request: pytest.FixtureRequest, server: Server) -> Iterator[Peer]:
    with Peer(server.address, dialect=request.param) as connected:
        yield connected


# -------------------------------------------------------------------------------------------------------- any bytes


def test_every_byte_passes_both_ways_through_a_raw_terminal(peer: Peer) -> None:
    every = bytes(range(256)) * 16
    seat = Seat(peer, shell=f"{RAW} printf 'go\\n'; head -c {len(every)}", from_="start")
    seat.read_until(b"go\n")
    seat.type(every)
    assert seat.read_more(len(every)) == every
    assert seat.end()["code"] == 0
    assert seat.rest == b""


@pytest.mark.parametrize(
    "text",
    ["Grüße, 世界 🎉".encode(), b"\xff\xfe\xc3(\xe2\x82\xf0\x9f\x98", bytes(5000), b"\x1b[31;1m\x1b]0;t\x07\x9b"],
    ids=["utf-8", "invalid", "nul", "escapes"],
)  # fmt: skip
def test_what_a_program_writes_comes_as_it_is(peer: Peer, text: bytes) -> None:
    words = "import os,sys; os.write(1, bytes.fromhex(sys.argv[1]))"
    seat = Seat(peer, argv=python(words, text.hex()))
    assert seat.end()["code"] == 0
    assert seat.shown == text


def test_one_line_of_5_mb(peer: Peer) -> None:
    words = "import sys; sys.stdout.write(''.join(f'{n:08}' for n in range(655360))); sys.stdout.write('.')"
    seat = Seat(peer, argv=python(words))
    result = seat.end()
    assert seat.shown == "".join(f"{n:08}" for n in range(655360)).encode() + b"."
    assert result["streams"]["terminal"]["bytes"] == 5 * MIB + 1


def test_a_paste_of_1_mb_reaches_a_raw_program_whole(peer: Peer) -> None:
    paste = random.Random(1).randbytes(MIB)
    seat = Seat(peer, shell=f"{RAW} printf 'go\\n'; head -c {MIB} | sha256sum", from_="start")
    seat.read_until(b"go\n")
    _type_with_credit(seat, paste)
    assert seat.read_until(b" ").decode().strip() == hashlib.sha256(paste).hexdigest()
    assert seat.end()["code"] == 0


def _type_with_credit(seat: Seat, data: bytes, window: int = 256 * KIB) -> None:
    """As a client does that heeds credit."""
    room, at = window, 0
    while at < len(data):
        if not room:
            got = seat.call.step()
            room += got.fields["bytes"] if got.kind is Kind.CREDIT else 0
            continue
        piece = data[at : at + min(room, 30_000)]
        seat.type(piece)
        at += len(piece)
        room -= len(piece)


REOPENS = """
import os
for fd in range(3):
    os.close(fd)
for _ in range(200):
    os.close(os.open("/dev/tty", os.O_RDWR))
tty = os.open("/dev/tty", os.O_RDWR)
os.write(tty, b"here again\\n")
os.read(tty, 100)
os._exit(5)
"""


def test_a_program_that_closes_its_terminal_may_open_it_again(peer: Peer) -> None:
    seat = Seat(peer, argv=python(REOPENS), from_="start")
    seat.read_until(b"here again\r\n")
    seat.line("on it goes")
    assert seat.end()["code"] == 5


# ----------------------------------------------------------------------------------------------------- lost connections

#: Numbered lines, a few each millisecond, until something is typed.
NUMBERS = """
import select, sys
number = 0
while not select.select([0], [], [], 0.001)[0]:
    for _ in range(300):
        number += 1
        sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
sys.stdout.write("over\\n")
"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_thousand_lost_connections_lose_no_line_and_repeat_none(server: Server, dialect: str) -> None:
    """Each is dropped after some number of bytes: in the handshake, between two frames, in the middle of one. The next
    asks for what comes after the last byte that was whole; sometimes it is there before the other has gone.
    """
    draw = random.Random(dialect)
    job_id = f"thousand-{dialect}"
    got = bytearray()
    program: dict[str, Any] = {
        "argv": python(f"import os; os.system('{RAW}')\n{NUMBERS}"),
        "id": job_id,
        "tape": 64 * MIB,
    }
    with Peer(server.address, dialect=dialect) as first:
        Seat(first, **program, detach=True).end()
    cut_in_data, progressed, others = 0, 0, list[Peer]()
    for _ in range(1000):
        how = draw.random()
        left = draw.randrange(700) if how < 0.1 else draw.randrange(600, 12_000)
        with suppress(EOFError):
            window = draw.randrange(1, 6000)
            peer = Peer(server.address, dialect=dialect, bytes_left=left, window=window)
            others.append(peer)
            op, fields = draw.choice([("shell", program), ("attach", {"id": job_id, "role": "owner"})])
            seat = Seat(peer, op, **fields, from_={"terminal": len(got)}, hold=True)
            output = seat.call.output[TERMINAL]
            try:
                while True:
                    seat.call.step()
            except EOFError:
                assert not seat.call.gaps
                got += output
                progressed += bool(output)
                cut_in_data += peer.cut_in_a_frame
        # Mostly gone before the next comes; else it is deposed.
        while others and (how > 0.3 or len(others) > 3):
            others.pop(0).close()
    for other in others:
        other.close()
    with Peer(server.address, dialect=dialect) as last:
        seat = Seat(last, **program, from_={"terminal": len(got)})
        assert seat.accepted()["created"] is False
        seat.type("stop")
        result = seat.end()
        assert not seat.call.gaps
        got += seat.shown
    lines = bytes(got).split(b"\n")
    assert lines[-2:] == [b"over", b""]
    assert lines[:-2] == [b"%d" % number for number in range(1, len(lines) - 1)]
    assert len(got) == result["streams"]["terminal"]["bytes"]
    assert progressed > 400
    assert cut_in_data > 200


#: Says each line that is typed.
ECHO = """
import sys
print("go")
for line in sys.stdin:
    print("got", line, end="", flush=True)
    if line == "end\\n":
        break
"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_typed_across_lost_connections_arrives_once(server: Server, dialect: str) -> None:
    """Each connection is dropped in the middle of what was being typed; the next goes on from where guestd says."""
    draw = random.Random(dialect)
    wanted = b"".join(b"%d\n" % number for number in range(12_000)) + b"end\n"
    job_id = f"typed-{dialect}"
    program: dict[str, Any] = {
        "argv": python(f"import os; os.system('stty -echo')\n{ECHO}"),
        "id": job_id,
        "client": "the same person",
    }
    back = {"id": job_id, "role": "owner", "client": "the same person"}
    connections, shown, offsets = 0, bytearray(), [0]
    with Peer(server.address, dialect=dialect) as peer:
        Seat(peer, **program, from_="start").read_until(b"go\r\n")
    while offsets[-1] < len(wanted):
        connections += 1
        with Peer(server.address, dialect=dialect) as peer, suppress(BrokenPipeError):
            seat = Seat(peer, "attach", **back, from_={"terminal": len(shown)})
            at = seat.accepted()["input"]["offset"]
            assert offsets[-1] <= at <= len(wanted)
            offsets.append(at)
            for _ in range(draw.randrange(4)):
                # Begin again before what is known, too.
                begin = max(0, at - draw.randrange(50))
                piece = wanted[begin : begin + draw.randrange(1, 500)]
                seat.call.data(begin, piece)
                at = max(at, begin + len(piece))
            piece = wanted[at : at + 300]
            seat.call.data(at, piece, most=draw.randrange(0, 320))
            if draw.random() < 0.5:
                with suppress(EOFError):
                    while peer.has_input(0):
                        # A word of ours would be taken for the rest of what was cut off.
                        seat.call.step(credit=False)
                shown += seat.shown
    with Peer(server.address, dialect=dialect) as peer:
        seat = Seat(peer, "attach", **back, from_={"terminal": len(shown)})
        assert seat.end()["code"] == 0
        shown += seat.shown
    assert bytes(shown) == b"go\r\n" + b"".join(b"got %s\r\n" % line for line in wanted.splitlines())
    assert connections > 50


def test_two_who_type_count_each_their_own(server: Server, peer: Peer) -> None:
    first = Seat(peer, shell="stty -echo; echo go; exec cat", client="one", from_="start")
    first.read_until(b"go\r\n")
    with Peer(server.address) as another:
        second = Seat(another, id=first.id, role="writer", client="two", from_="end")
        third = Seat(another, "attach", id=first.id, input=True, from_="end")
        for number in range(5):
            for seat, name in ((first, "one"), (second, "two"), (third, "three")):
                seat.line(f"{name} {number}")
                first.read_until(f"{name} {number}\r\n".encode())
        typed = second.typed
        assert typed == 5 * len("two 0\r")
        with Peer(server.address) as back:
            again = Seat(back, id=first.id, role="writer", client="two", from_="end")
            assert again.accepted()["input"] == {"offset": typed}
            # Somebody of another name, and somebody without one, begin at 0.
            for client in ("four", None):
                known = Seat(back, "attach", id=first.id, client=client).accepted()
                assert known["input"] == {"offset": 0}
            again.call.data(typed - 3, b" 4\ragain\r")
            first.read_until(b"again\r\n")
            assert b"two" not in first.rest
    peer.ask("kill", id=first.id, grace=0)


def test_a_hole_in_what_is_typed_is_refused(peer: Peer) -> None:
    seat = Seat(peer, argv=["cat"])
    seat.accepted()
    seat.call.data(1, b"x")
    with pytest.raises(Failed) as refused:
        seat.end()
    assert refused.value.code == "bad_offset"
    peer.ask("kill", id=seat.id, grace=0)


def test_256_typists_are_remembered_and_the_one_longest_away_is_not(server: Server) -> None:
    with Peer(server.address) as peer:
        job_id = Seat(peer, shell=f"{RAW} exec cat > /dev/null").id
        for number in range(257):
            seat = Seat(peer, "attach", id=job_id, client=f"c{number}", input=True, from_="end")
            seat.type("four")
            seat.call.reset()
        offsets = {
            number: Seat(peer, "attach", id=job_id, client=f"c{number}").accepted()["input"]["offset"]
            for number in (256, 1, 0)
        }
        assert offsets == {256: 4, 1: 4, 0: 0}
        peer.ask("kill", id=job_id, grace=0)


def test_an_offset_beyond_the_end_is_refused(peer: Peer) -> None:
    job_id = f"beyond-{os.urandom(4).hex()}"
    peer.ask("shell", id=job_id, shell="printf four", retain=100)
    with pytest.raises(Failed) as refused:
        peer.open("attach", id=job_id, from_={"terminal": 5}).end()
    assert refused.value.code == "bad_offset"
    seat = Seat(peer, "attach", id=job_id, from_={"terminal": 2})
    seat.end()
    assert seat.shown == b"ur"
    late = Seat(peer, "attach", id=job_id, from_="end")
    late.end()
    assert late.shown == b""


def test_nothing_is_started_for_who_wants_to_continue_another(peer: Peer) -> None:
    """A shell was begun once under the id, and left there, before its opener was refused."""
    job_id = f"continues-{os.urandom(4).hex()}"
    for before in ("unknown", "ended"):
        with pytest.raises(Failed) as refused:
            Seat(peer, id=job_id, argv=["cat"], from_={"terminal": 1}).end()
        assert refused.value.code == "bad_offset"
        if before == "unknown":
            assert job_id not in {row["id"] for row in peer.ask("ps")["jobs"]}
            assert Seat(peer, id=job_id, argv=["echo"], from_={"terminal": 0}).end()["code"] == 0
    assert row_of(peer, job_id)["state"] == "ended"


def test_bytes_that_are_no_longer_kept_are_a_gap(peer: Peer) -> None:
    job_id = f"gap-{os.urandom(4).hex()}"
    # 200,000 bytes through a tape of 64 KiB, and nobody holds.
    opened = peer.open(
        "shell",
        id=job_id,
        shell=f"{RAW} seq -w 0 39999 | tr -d '\\n'; exec sleep 1000",
        tape=64 * KIB,
        detach=True,
    )
    opened.end()
    start = until_row(peer, job_id, bytes=200_000)["streams"]["terminal"]["start"]
    assert 200_000 - 80 * KIB <= start <= 200_000 - 64 * KIB
    seat = Seat(peer, "attach", id=job_id, from_={"terminal": 1000})
    whole = "".join(f"{n:05}" for n in range(40_000)).encode()
    seat.read_more(200_000 - start)
    assert seat.shown == whole[start:]
    assert seat.call.gaps == [(TERMINAL, 1000, start)]
    peer.ask("kill", id=job_id, grace=0)
    assert seat.end()["gaps"] == {"terminal": start - 1000}
