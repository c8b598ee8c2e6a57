"""Who may do what at a shell: one owner types and decides the size, writers type, watchers look."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from guestd.wire.frames import Kind
from tests.support.commands import serving_commands
from tests.support.peer import Failed, Peer
from tests.support.shells import DIALECTS, KIB, LEAD, RAW, Seat, bash, python, row_of, until_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server

#: Says its size, and again whenever it is told of another, until somebody types.
SHOWS_SIZE = """
import os, select, signal
reading, writing = os.pipe()
os.set_blocking(writing, False)
signal.set_wakeup_fd(writing)
signal.signal(signal.SIGWINCH, lambda *_: None)
while True:
    size = os.get_terminal_size()
    print(f"{size.columns}x{size.lines}", flush=True)
    if 0 in select.select([0, reading], [], [])[0]:
        break
    os.read(reading, 4096)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running


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


# ---------------------------------------------------------------------------------------------------------- ownership


def test_who_takes_the_ownership_has_it_and_who_had_it_is_told(peer: Peer, other: Peer) -> None:
    first = Seat(peer, argv=python(SHOWS_SIZE), size=_size(100, 30), from_="start")
    first.read_until(b"100x30\r\n")
    second = Seat(other, id=first.id, size=_size(90, 20), from_="end")
    known = second.accepted()
    assert (known["role"], known["size"]) == ("owner", _size(90, 20))
    told = first.event("role")
    name = row_of(other, first.id)["owner"]
    assert (told["role"], told["by"]) == ("writer", name)
    assert first.event("size") == {"event": "size", **_size(90, 20)}
    first.read_until(b"90x20\r\n")
    # A writer's window is its own affair.
    first.resize(70, 10)
    first.resize(71, 11)
    first.ask_role("owner")
    # Its window is heeded again from here on, as it was last.
    assert first.event("role")["role"] == "owner"
    assert second.event("role")["role"] == "writer"
    assert second.event("size") == {"event": "size", **_size(71, 11)}
    # The 70 by 10 never was.
    assert first.read_line() == "71x11"
    second.line("a writer types")
    assert second.end()["code"] == 0


def test_the_first_owner_may_stay_only_to_watch(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, shell=f"{RAW} exec yes", window=64 * KIB)
    seat.accepted()
    watcher = Seat(other, "attach", id=seat.id, window=4 * KIB)
    watcher.accepted()
    until_row(other, seat.id, bytes=64 * KIB + LEAD)
    seat.ask_role("watcher")
    assert seat.event("role", credit=False)["role"] == "watcher"
    # Nobody holds it any more.
    row = row_of(other, seat.id)
    while row["bytes"] < 8 * LEAD:
        row = row_of(other, seat.id)
    assert row["owner"] is None
    assert sorted(viewer["role"] for viewer in row["viewers"]) == ["watcher", "watcher"]
    other.ask("kill", id=seat.id, grace=0)


def test_a_deposed_owner_no_longer_holds(peer: Peer, other: Peer) -> None:
    """A laptop that has gone to sleep keeps nobody from working."""
    asleep = Seat(peer, shell=f"{RAW} exec yes", window=0)
    asleep.accepted()
    until_row(other, asleep.id, bytes=LEAD)
    awake = Seat(other, id=asleep.id, from_="end")
    awake.read_more(4 * LEAD)
    other.ask("kill", id=asleep.id, grace=0)


def test_a_watcher_may_not_type_before_it_is_a_writer(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, shell="stty -echo; echo go; exec cat", from_="start")
    seat.read_until(b"go\r\n")
    watcher = Seat(other, id=seat.id, role="watcher")
    assert watcher.accepted()["role"] == "watcher"
    watcher.line("no")
    with pytest.raises(Failed) as refused:
        watcher.end()
    assert (refused.value.kind, refused.value.code) == (Kind.RESET, "bad_request")
    again = Seat(other, "attach", id=seat.id, from_="end")
    assert again.accepted()["role"] == "watcher"
    again.ask_role("writer")
    assert again.event("role")["role"] == "writer"
    again.line("yes")
    assert seat.read_line() == "yes"
    assert [each["role"] for each in row_of(other, seat.id)["viewers"]] == ["owner", "writer"]
    # The end of the input is typed too.
    third = Seat(other, "attach", id=seat.id)
    third.accepted()
    third.call.event(event="eof")
    again.ask_role("watcher")
    again.event("role")
    again.call.event(event="eof")
    again.line("too late")
    with pytest.raises(Failed):
        again.end()
    assert row_of(other, seat.id)["state"] == "running"
    seat.call.event(event="eof")
    assert seat.end()["code"] == 0


@pytest.mark.parametrize(
    ("fields", "role"),
    [
        ({}, "watcher"),
        ({"input": True}, "writer"),
        ({"role": "owner"}, "owner"),
        ({"input": True, "role": "watcher"}, "watcher"),
    ],
)
def test_attach_only_looks_unless_it_says_more(
    peer: Peer, other: Peer, fields: dict[str, object], role: str
) -> None:
    seat = Seat(peer, shell=f"{RAW} printf abc; exec sleep 1000", from_="start")
    seat.read_until(b"abc")
    more = other.open("attach", id=seat.id, **fields)
    known = more.accepted()
    assert (known["role"], known["created"], known["kind"]) == (role, False, "shell")
    assert more.read_until("terminal", 3) == b"abc"
    other.ask("kill", id=seat.id, grace=0)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "role", "role": "king"},
        {"event": "role"},
        {"event": "resize", "columns": "wide", "rows": 1},
        {"event": "resize", "columns": 65536, "rows": 1},
        {"event": "signal", "signal": "NONE"},
    ],
)
def test_a_wrong_event_ends_the_channel_and_not_the_shell(peer: Peer, event: dict[str, object]) -> None:
    seat = Seat(peer, argv=["cat"])
    job_id = seat.id
    seat.call.event(**event)
    with pytest.raises(Failed) as refused:
        seat.end()
    assert (refused.value.kind, refused.value.code) == (Kind.RESET, "bad_request")
    row = row_of(peer, job_id)
    assert (row["state"], row["viewers"], row["attached"]) == ("running", [], 0)
    peer.ask("kill", id=job_id, grace=0)


# --------------------------------------------------------------------------------------------------------------- size


def test_only_the_owners_window_is_the_screens_size(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, argv=python(SHOWS_SIZE), size=_size(100, 30), from_="start")
    seat.read_until(b"100x30\r\n")
    small: list[Seat] = []
    for role in ("writer", "watcher"):
        each = Seat(other, id=seat.id, role=role, size=_size(20, 5), from_="end")
        assert each.accepted()["size"] == _size(100, 30)
        each.resize(10, 3)
        small.append(each)
    # Heard by now, as guestd takes one connection's frames in order.
    assert row_of(other, seat.id)["size"] == _size(100, 30)
    seat.resize(101, 31, 808, 620)
    assert seat.read_line() == "101x31"
    for each in small:
        assert each.event("size") == {"event": "size", **_size(101, 31)}
    # Who said it is not told; and the same size again is none.
    seat.resize(101, 31, 808, 620)
    seat.resize(102, 32)
    assert seat.read_line() == "102x32"
    assert not [event for event in seat.call.events if event["event"] == "size"]
    assert small[0].event("size") == {"event": "size", **_size(102, 32)}
    other.ask("kill", id=seat.id, grace=0)


def test_the_size_stays_when_its_owner_goes(server: Server, peer: Peer, other: Peer) -> None:
    with Peer(server.address) as gone:
        seat = Seat(gone, argv=python(SHOWS_SIZE), size=_size(100, 30), from_="start")
        seat.read_until(b"100x30\r\n")
        job_id = seat.id
        watcher = Seat(other, "attach", id=job_id, size=_size(20, 5))
        watcher.read_until(b"100x30\r\n")
        seat.resize(0, 0)
    row = until_row(other, job_id, owner=None)
    assert row["size"] == _size(100, 30)
    back = Seat(peer, id=job_id, size={}, from_="end")
    assert back.accepted()["size"] == _size(100, 30)
    back.call.reset()
    again = Seat(peer, id=job_id, size=_size(77, 7), from_="end")
    assert again.accepted()["size"] == _size(77, 7)
    assert watcher.event("size") == {"event": "size", **_size(77, 7)}
    assert watcher.read_line() == "77x7"
    other.ask("kill", id=job_id, grace=0)


def test_odd_sizes_are_the_kernels_business(peer: Peer) -> None:
    seat = Seat(peer, argv=python(SHOWS_SIZE), from_="start")
    seat.read_until(b"80x24\r\n")
    for columns, rows in ((1, 1), (10_000, 3), (65535, 65535), (1, 65535), (2, 2)):
        seat.resize(columns, rows)
        assert seat.read_line() == f"{columns}x{rows}"
    # Not known: as it was.
    for columns, rows in ((0, 0), (5, 0), (0, 5)):
        seat.resize(columns, rows)
    assert row_of(peer, seat.id)["size"] == _size(2, 2)
    seat.resize(3, 3)
    assert seat.read_line() == "3x3"
    peer.ask("kill", id=seat.id, grace=0)


def test_a_storm_of_sizes_ends_in_the_last(peer: Peer, other: Peer) -> None:
    draw = random.Random(7)
    seat = Seat(peer, argv=python(SHOWS_SIZE), from_="start")
    seat.read_until(b"80x24\r\n")
    watcher = Seat(other, "attach", id=seat.id)
    watcher.accepted()
    for number in range(5000):
        seat.resize(draw.randrange(1, 300), draw.randrange(1, 100))
        if number % 500 == 0:
            # Others are served all the while.
            assert other.ask("exec", argv=["true"])["code"] == 0
    seat.resize(123, 45)
    seat.read_until(b"\n123x45\r\n")
    assert watcher.event("size")["event"] == "size"
    watcher.read_until(b"\n123x45\r\n")
    sizes = [event for event in watcher.call.events if event["event"] == "size"]
    assert sizes[-1] == {"event": "size", **_size(123, 45)}
    seat.line("")
    assert seat.end()["code"] == 0


def test_an_interactive_shell_learns_the_size(peer: Peer) -> None:
    seat = bash(peer, size=_size(91, 19))
    assert seat.run("stty size; echo $COLUMNS $LINES") == "19 91\n91 19"
    seat.resize(61, 9)
    assert seat.run("stty size") == "9 61"
    peer.ask("kill", id=seat.id, grace=0)
