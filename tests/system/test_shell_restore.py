"""A picture of the screen for who comes later: announced, whole, and followed by the terminal from exactly there.

That a picture is right is another file's. `Call` checks here that nothing of the terminal comes before a picture is
whole, and that the terminal goes on at the offset that was announced.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import Kind
from tests.support.commands import serving_commands
from tests.support.peer import Peer
from tests.support.shells import (
    DIALECTS,
    KIB,
    LEAD,
    MIB,
    RAW,
    TERMINAL,
    Seat,
    bash,
    python,
    row_of,
    until_row,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import Server

#: Draws a full screen with its own size, again whenever that changes.
DRAWS = """
import os, signal, sys
os.system("stty raw -echo")
def draw():
    size = os.get_terminal_size()
    os.write(1, b"\\033[?1049h\\033[2J\\033[H\\033[1;31mscreen of %d by %d" % (size.columns, size.lines))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
draw()
while True:
    signal.sigwait([signal.SIGWINCH])
    draw()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running
        assert "cannot be modelled" not in running.log


@pytest.fixture(params=DIALECTS)
def peer(request: pytest.FixtureRequest, server: Server) -> Iterator[Peer]:
    with Peer(server.address, dialect=request.param) as connected:
        yield connected


@pytest.fixture
def other(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


def _size(columns: int, rows: int) -> dict[str, int]:
    return {"columns": columns, "rows": rows}


def _restored(seat: Seat) -> dict[str, Any]:
    """Its next picture, whole."""
    event = seat.event("restore")
    before = len(seat.picture)
    while seat.call.picture_left:
        seat.call.step()
    assert len(seat.picture) - before <= event["bytes"]
    return event


def test_a_picture_and_then_the_terminal_from_there(peer: Peer, other: Peer) -> None:
    first = bash(peer, size=_size(90, 20))
    first.run("printf 'some \\033[31mred\\033[0m text\\n'")
    # The default is to restore.
    second = Seat(other, id=first.id)
    known = second.accepted()
    assert known["streams"]["terminal"] == {"start": 0, "end": len(first.shown)}
    event = _restored(second)
    assert {**event, "bytes": None} == {
        "event": "restore", "offset": len(first.shown), "bytes": None, **_size(90, 20), "exact": True,
    }  # fmt: skip
    assert event["bytes"] == len(second.picture) > 0
    assert b"red" in second.picture
    assert second.shown == b""
    second.line("echo li''ve")
    second.read_until(b"live\r\n")
    first.read_until(b"live\r\n")
    other.ask("kill", id=first.id, grace=0)
    first.end()
    second.end()
    assert first.shown[event["offset"] :] == second.shown


def test_a_new_shell_has_no_picture_even_if_it_speaks_at_once(peer: Peer) -> None:
    """What it had said before its start was known came as a picture once."""
    # Many at once, so that some speak before guestd hears that they run.
    seats = [Seat(peer, argv=["echo", "hello"], from_="restore", tape=64 * KIB, retain=0) for _ in range(60)]
    for seat in seats:
        seat.end()
        assert seat.shown == b"hello\r\n"
        assert not seat.call.events


def test_a_shell_that_has_shown_nothing_has_no_picture(peer: Peer, other: Peer, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    first = Seat(peer, shell=f"{RAW} read x < {fifo}; printf here; exec sleep 1000")
    second = Seat(other, id=first.id)
    second.accepted()
    fifo.write_text("go on\n")
    assert second.read_more(4) == b"here"
    assert not second.call.events
    other.ask("kill", id=first.id, grace=0)


def test_an_owner_of_another_size_gets_a_picture_of_that_and_then_what_is_drawn_for_it(
    peer: Peer, other: Peer
) -> None:
    first = Seat(peer, argv=python(DRAWS), size=_size(90, 20), from_="start")
    first.read_until(b"screen of 90 by 20")
    second = Seat(other, id=first.id, size=_size(60, 15))
    event = _restored(second)
    assert (event["columns"], event["rows"]) == (60, 15)
    assert b"screen of 90 by 20" in second.picture
    second.read_until(b"screen of 60 by 15")
    assert event["offset"] + len(second.shown) == row_of(other, first.id)["bytes"]
    assert first.event("size") == {"event": "size", **_size(60, 15)}
    first.read_until(b"screen of 60 by 15")
    other.ask("kill", id=first.id, grace=0)


def test_of_an_ended_shell_too(peer: Peer) -> None:
    seat = Seat(peer, shell="echo the end; exit 3")
    seat.end()
    late = Seat(peer, "attach", id=seat.id, from_="restore")
    result = late.end()
    assert b"the end" in late.picture
    assert (late.shown, result["code"], result["gaps"]) == (b"", 3, {})


def test_offsets_are_exact_as_long_as_they_are_kept(peer: Peer, other: Peer) -> None:
    """With `or_restore` a picture comes in place of what is no longer there, and only then."""
    job_id = f"or-{os.urandom(4).hex()}"
    program = f"{RAW} seq -w 0 39999; printf over; exec sleep 1000"
    other.open("shell", id=job_id, shell=program, tape=64 * KIB, detach=True).end()
    start = until_row(other, job_id, bytes=240_004)["streams"]["terminal"]["start"]
    whole = b"".join(b"%05d\n" % number for number in range(40_000)) + b"over"
    kept = Seat(peer, "attach", id=job_id, from_={"terminal": start}, or_restore=True)
    kept.read_until(b"over")
    assert kept.shown == whole[start:]
    assert not kept.call.events
    lost = Seat(peer, "attach", id=job_id, from_={"terminal": start - 1}, or_restore=True)
    assert _restored(lost)["offset"] == 240_004
    assert b"39999" in lost.picture
    plain = Seat(peer, "attach", id=job_id, from_={"terminal": start - 1})
    plain.read_until(b"over")
    assert plain.call.gaps == [(TERMINAL, start - 1, start)]
    other.ask("kill", id=job_id, grace=0)
    assert lost.end()["gaps"] == {}
    assert lost.shown == b""


def test_a_slow_viewer_of_pictures_gets_a_new_one_behind_a_gap(peer: Peer, other: Peer) -> None:
    """And neither the program nor its owner waits for it."""
    seat = Seat(peer, shell=f"{RAW} seq -w 0 199999; read x; printf over; exec sleep 1000", tape=64 * KIB)
    slow = Seat(other, "attach", id=seat.id, from_="start", or_restore=True, window=100)
    slow.accepted()
    seat.read_until(b"199999\n")
    slow.call.credit(MIB)
    event = _restored(slow)
    ((_, lost_from, lost_to),) = slow.call.gaps
    assert lost_from == 100
    assert lost_to <= event["offset"] <= 1_400_000
    seat.type("\n")
    slow.read_until(b"over")
    assert slow.call.at[TERMINAL] == 1_400_004
    other.ask("kill", id=seat.id, grace=0)


def test_pictures_in_the_middle_of_a_flood(peer: Peer, other: Peer) -> None:
    """Whoever waits for one holds the program for so long as that takes."""
    flood = f"{RAW} exec seq -w 0 99999999"
    job_id = f"flood-{os.urandom(4).hex()}"
    other.open("shell", id=job_id, shell=flood, tape=256 * KIB, detach=True).end()
    while row_of(other, job_id)["bytes"] < MIB:
        pass
    for number in range(10):
        seat = Seat(peer, id=job_id, role="owner" if number % 2 else "watcher")
        event = _restored(seat)
        if number % 2:
            text = seat.read_more(20_000)
            # Nine bytes a line.
            line = event["offset"] // 9 + 1
            begin = line * 9 - event["offset"]
            assert text[begin : begin + 9] == b"%08d\n" % line
            # The program is shown another size for a moment, to draw anew; nobody else is.
            assert [each["event"] for each in seat.call.events] == ["restore"]
            assert row_of(other, job_id)["size"] == _size(80, 24)
        seat.call.reset()
    other.ask("kill", id=job_id, grace=0)


def test_a_program_cannot_run_away_from_its_own_picture(peer: Peer, other: Peer) -> None:
    """Nobody holds this one, and its screen takes longer to follow than to write."""
    flood = f"{RAW} exec yes \"$(printf '\\033[31mr\\033[0m\\033[1mb\\033[7;9H')\""
    job_id = f"away-{os.urandom(4).hex()}"
    other.open("shell", id=job_id, shell=flood, detach=True).end()
    while row_of(other, job_id)["bytes"] < MIB:
        pass
    for _ in range(3):
        seat = Seat(peer, "attach", id=job_id, from_="restore")
        _restored(seat)
        seat.call.reset()
    other.ask("kill", id=job_id, grace=0)


def test_a_picture_that_nobody_takes_stalls_nobody(peer: Peer, other: Peer) -> None:
    seat = bash(peer)
    seat.run("seq 100")
    stuck = Seat(other, "attach", id=seat.id, from_="restore", window=1, role="writer", hold=False)
    event = stuck.event("restore")
    assert seat.run("echo fine") == "fine"
    seat.line("seq -w 0 999999")
    seat.read_until(b"999999\r\n")
    # Taken at last, it is whole, and what came in the meantime follows, or what is left of it.
    for _ in range(event["bytes"]):
        stuck.call.credit(1)
        while stuck.call.step(credit=False).kind is not Kind.DATA:
            pass
        if len(stuck.picture) > 50:
            break
    stuck.call.credit(50 * MIB)
    while stuck.call.picture_left:
        stuck.call.step()
    assert len(stuck.picture) == event["bytes"]
    stuck.read_until(b"999999\r\n")
    other.ask("kill", id=seat.id, grace=0)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_connections_lost_in_the_middle_of_a_picture(server: Server, other: Peer, dialect: str) -> None:
    draw = random.Random(dialect)
    seat = bash(other, size=_size(200, 60))
    seat.run("seq 1000; for n in 1 2 3; do ls --color=always -l /usr/bin; done; printf 'en''d'")
    whole: set[bytes] = set()
    cut = 0
    for _ in range(100):
        with (
            suppress(EOFError),
            Peer(server.address, dialect=dialect, bytes_left=draw.randrange(600, 150_000)) as peer,
        ):
            back = Seat(peer, "attach", id=seat.id, from_="restore", role=draw.choice(["owner", "watcher"]))
            try:
                _restored(back)
                whole.add(back.picture)
            except EOFError:
                cut += 1
    assert len(whole) == 1
    assert cut > 10
    row = until_row(other, seat.id, attached=1)
    assert len(row["viewers"]) == 1
    seat.ask_role("owner")
    assert seat.run("echo fine") == "fine"
    other.ask("kill", id=seat.id, grace=0)


def test_many_pictures_at_once(server: Server, other: Peer) -> None:
    seat = bash(other)
    seat.run("seq 3000")
    with Peer(server.address) as peer:
        seats = [Seat(peer, "attach", id=seat.id, from_="restore") for _ in range(100)]
        for each in seats:
            _restored(each)
        assert len({each.picture for each in seats}) == 1
    assert seat.run("echo fine") == "fine"
    other.ask("kill", id=seat.id, grace=0)


def test_a_deaf_owner_does_not_keep_others_from_a_picture(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, shell=f"{RAW} exec seq -w 0 99999999", window=0)
    seat.accepted()
    until_row(other, seat.id, bytes=LEAD)
    watcher = Seat(other, "attach", id=seat.id, from_="restore")
    assert _restored(watcher)["offset"] == LEAD
    other.ask("kill", id=seat.id, grace=0)


def test_a_screen_too_large_for_a_picture_is_drawn_anew(peer: Peer, other: Peer) -> None:
    first = Seat(peer, argv=python(DRAWS), size=_size(5000, 5000), from_="start")
    first.read_until(b"screen of 5000 by 5000")
    second = Seat(other, id=first.id)
    event = _restored(second)
    assert (event["exact"], event["bytes"]) == (False, 0)
    second.read_until(b"screen of 5000 by 5000")
    assert row_of(other, first.id)["size"] == _size(5000, 5000)
    # Smaller again, there are pictures again.
    first.ask_role("owner")
    first.resize(80, 24)
    first.read_until(b"screen of 80 by 24")
    third = Seat(other, "attach", id=first.id, from_="restore")
    event = _restored(third)
    assert (event["columns"], event["rows"]) == (80, 24)
    assert b"screen of 80 by 24" in third.picture
    other.ask("kill", id=first.id, grace=0)
