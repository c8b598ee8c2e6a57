"""Who waits: a program for its owner, nobody for a watcher, a typist for the program. Ctrl+C waits for nobody."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from guestd.wire.frames import Kind
from tests.support.commands import serving_commands
from tests.support.peer import Failed, Peer
from tests.support.shells import (
    CTRL_BACKSLASH,
    CTRL_C,
    CTRL_Z,
    DIALECTS,
    KIB,
    LEAD,
    MIB,
    PROMPT,
    RAW,
    RAW_BUT_SIGNALS,
    Seat,
    bash,
    python,
    row_of,
    until_row,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server

WINDOW = 64 * KIB
#: What one channel may type ahead.
INPUT_WINDOW = 256 * KIB
#: What the kernel keeps of a terminal, each way, beside what guestd does.
IN_KERNEL = 24 * KIB


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


# ------------------------------------------------------------------------------------------------------------- output


def test_an_owner_who_does_not_read_stops_the_program(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, shell=f"{RAW} exec yes", window=WINDOW, from_="start")
    seat.accepted()
    until_row(other, seat.id, bytes=WINDOW + LEAD)
    for _ in range(100):
        assert row_of(other, seat.id)["bytes"] == WINDOW + LEAD
    seat.read_more(WINDOW, credit=False)
    seat.call.credit(10_000)
    until_row(other, seat.id, bytes=WINDOW + LEAD + 10_000)
    # A watcher has what there is, and is not the one who moves it.
    watcher = Seat(other, "attach", id=seat.id)
    assert len(watcher.read_more(WINDOW + LEAD + 10_000)) == WINDOW + LEAD + 10_000
    assert row_of(other, seat.id)["bytes"] == WINDOW + LEAD + 10_000
    seat.call.credit(50 * MIB)
    seat.read_more(MIB)
    other.ask("kill", id=seat.id, grace=0)


def test_without_an_owner_the_newest_is_kept(server: Server, other: Peer) -> None:
    job_id = f"free-{os.urandom(4).hex()}"
    with Peer(server.address) as gone:
        Seat(gone, id=job_id, shell=f"{RAW} exec yes", window=0, tape=128 * KIB).accepted()
        until_row(other, job_id, bytes=128 * KIB)
    row = row_of(other, job_id)
    while row["bytes"] < MIB:
        row = row_of(other, job_id)
    kept = row["streams"]["terminal"]
    assert kept["end"] - kept["start"] == 128 * KIB
    other.ask("kill", id=job_id, grace=0)


def test_a_slow_watcher_gets_gaps_and_stalls_nobody(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, shell=f"{RAW} exec seq -w 0 9999999", from_="start", window=WINDOW, tape=256 * KIB)
    seat.accepted()
    watchers = [
        Seat(other, "attach", id=seat.id, window=window, from_={"terminal": 0}) for window in (0, 100, 5000)
    ]
    for watcher in watchers:
        watcher.accepted()
    whole = b"".join(b"%07d\n" % number for number in range(150_000))
    assert seat.read_more(len(whole)) == whole
    # As far as it gets while its owner reads no further.
    until_row(other, seat.id, bytes=len(seat.shown) + WINDOW + LEAD)
    for watcher in watchers:
        watcher.call.credit(100_000)
        while not watcher.call.gaps:
            watcher.call.step(credit=False)
        watcher.read_more(50_000, credit=False)
        _, lost_from, lost_to = watcher.call.gaps[0]
        assert watcher.shown[:lost_from] == whole[:lost_from]
        # Whatever came behind the gap is from there.
        numbers = watcher.shown[lost_from:][(-lost_to) % 8 :]
        first = (lost_to + 7) // 8
        lines = numbers[: len(numbers) // 8 * 8].splitlines()[:100]
        assert lines == [b"%07d" % number for number in range(first, first + 100)]
    other.ask("kill", id=seat.id, grace=0)


def test_ctrl_c_stops_a_flood_under_an_owner_who_reads_slowly(peer: Peer) -> None:
    seat = bash(peer, window=WINDOW)
    seat.line("yes a-long-line-of-a-flood")
    seat.read_more(10 * WINDOW)
    seat.type(CTRL_C)
    behind = 0
    while PROMPT not in seat.rest:
        # A little at a time.
        before = len(seat.shown)
        seat.call.step()
        behind += len(seat.shown) - before
    assert behind <= 2 * WINDOW + LEAD + IN_KERNEL
    assert b"^C" in seat.rest
    seat.read_until(PROMPT)
    assert seat.run("echo $?") == "130"
    peer.ask("kill", id=seat.id, grace=0)


def test_ctrl_c_stops_a_flood_under_an_owner_who_reads_nothing(peer: Peer, other: Peer) -> None:
    seat = bash(peer, window=WINDOW)
    read = len(seat.shown)
    seat.line("yes")
    seat.accepted()
    row = row_of(other, seat.id)
    while row["bytes"] < WINDOW + LEAD or row["foreground"]["name"] != "yes":
        row = row_of(other, seat.id)
    seat.type(CTRL_C)
    while row_of(other, seat.id)["foreground"]["name"] != "bash":
        pass
    assert row_of(other, seat.id)["bytes"] <= read + WINDOW + LEAD
    seat.read_until(PROMPT)
    assert seat.run("echo $?") == "130"
    other.ask("kill", id=seat.id, grace=0)


# -------------------------------------------------------------------------------------------------------------- input

_DEAF = "echo go; exec sleep 1000"


def _type_ahead(seat: Seat, size: int = INPUT_WINDOW - KIB) -> None:
    for _ in range(size // KIB):
        seat.type(b"x" * KIB)


@pytest.mark.parametrize(
    ("dialect", "key"), [("native", CTRL_C), ("websocket", CTRL_BACKSLASH)], ids=["INT", "QUIT"]
)
def test_a_program_that_does_not_read_blocks_its_typist_alone(
    server: Server, other: Peer, dialect: str, key: bytes
) -> None:
    with Peer(server.address, dialect=dialect) as peer:
        _block_and_free(peer, other, key)


def _block_and_free(peer: Peer, other: Peer, key: bytes) -> None:
    seat = Seat(peer, shell=RAW_BUT_SIGNALS + _DEAF, from_="start")
    seat.read_until(b"go")
    watcher = Seat(other, "attach", id=seat.id)
    watcher.accepted()
    _type_ahead(seat)
    told = seat.event("input")
    assert told["state"] == "blocked"
    assert INPUT_WINDOW - KIB - IN_KERNEL <= told["waiting"] < INPUT_WINDOW
    typed = row_of(other, seat.id)["typed"]
    assert typed == {"waiting": told["waiting"], "blocked": True}
    # The same connection goes on, also at another shell.
    assert peer.ask("exec", argv=["true"])["code"] == 0
    second = bash(peer)
    assert second.run("echo fine") == "fine"
    # And the key gets through.
    seat.type(key)
    assert seat.event("input") == {"event": "input", "state": "flowing", "waiting": 0}
    result = seat.end()
    assert (result["outcome"], result["signal"]) == ("signaled", {CTRL_C: 2, CTRL_BACKSLASH: 3}[key])
    assert not [event for event in watcher.call.events if event["event"] == "input"]
    peer.ask("kill", id=second.id, grace=0)


def test_somebody_elses_ctrl_c_frees_a_blocked_typist(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, shell=RAW_BUT_SIGNALS + _DEAF, from_="start")
    seat.read_until(b"go")
    _type_ahead(seat, INPUT_WINDOW)
    # What credit there was is used up, so nothing more may be said here.
    helper = Seat(other, "attach", id=seat.id, input=True, from_="end")
    helper.type(b"abc" + CTRL_C + b"def")
    assert helper.end()["signal"] == 2
    credit = 0
    while seat.call.final is None:
        got = seat.call.step()
        credit += got.fields["bytes"] if got.kind is Kind.CREDIT else 0
    assert credit >= INPUT_WINDOW // 2


@pytest.mark.parametrize("size", [3000, 4095, 4096, 5000, 9000, 12_000, 20_000])
def test_ctrl_c_gets_past_what_waits_wherever_that_is(other: Peer, size: int) -> None:
    """In guestd, in the kernel's queue before the terminal, in the terminal itself."""
    seat = Seat(other, shell=RAW_BUT_SIGNALS + _DEAF, from_="start")
    seat.read_until(b"go")
    seat.type(b"x" * size)
    # Let the kernel have moved it.
    row_of(other, seat.id)
    seat.type(CTRL_C)
    assert seat.end()["signal"] == 2


@pytest.mark.parametrize("size", [100, 5000, 9000, 20_000, 100_000])
def test_what_was_typed_before_ctrl_c_is_dropped(other: Peer, size: int) -> None:
    """As a terminal does it: the shell behind gets none of it for a command."""
    seat = bash(other)
    seat.line("stty -icanon -echo; echo go''ne; sleep 1000; stty sane -echo")
    seat.read_until(b"gone\r\n")
    while row_of(other, seat.id)["foreground"]["name"] != "sleep":
        pass
    seat.type((b"echo junk;" * (size // 10 + 1))[:size])
    row_of(other, seat.id)
    seat.type(CTRL_C)
    seat.read_until(PROMPT)
    seat.line("stty sane -echo")
    seat.read_until(PROMPT)
    seat.line("echo cle''an")
    assert b"junk" not in seat.read_until(b"clean\r\n")
    other.ask("kill", id=seat.id, grace=0)


KEEPS_TYPED = """
import os, signal, sys
os.system("stty -icanon -echo noflsh")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("go", flush=True)
print(signal.sigwait([signal.SIGINT]).name, flush=True)
print(len(sys.stdin.buffer.read(20000)))
"""


def test_noflsh_keeps_what_was_typed_and_ctrl_c_still_arrives(other: Peer) -> None:
    seat = Seat(other, argv=python(KEEPS_TYPED), from_="start")
    seat.read_until(b"go\r\n")
    seat.type(b"y" * 20_000)
    seat.type(CTRL_C)
    assert seat.read_line() == "SIGINT"
    assert seat.read_line() == "20000"
    assert seat.end()["code"] == 0


def test_keys_are_signals_as_the_terminal_is_set_now(other: Peer) -> None:
    moved = Seat(other, shell=f"{RAW_BUT_SIGNALS} stty intr ^A; {_DEAF}", from_="start")
    moved.read_until(b"go")
    _type_ahead(moved)
    moved.type(CTRL_C)
    assert moved.event("input")["state"] == "blocked"
    moved.type(b"\x01")
    assert moved.end()["signal"] == 2
    # In raw mode they are just bytes.
    plain = Seat(other, shell=RAW + _DEAF, from_="start")
    plain.read_until(b"go")
    _type_ahead(plain)
    plain.type(CTRL_C)
    assert plain.event("input")["state"] == "blocked"
    row = row_of(other, plain.id)
    assert row["state"] == "running"
    assert row["typed"]["waiting"] > INPUT_WINDOW - KIB - IN_KERNEL
    other.ask("kill", id=plain.id, grace=0)


def test_ctrl_z_stops_a_program_that_does_not_read(peer: Peer) -> None:
    seat = bash(peer)
    seat.run("stty -icanon")
    seat.line("sleep 1000")
    while row_of(peer, seat.id)["foreground"]["name"] != "sleep":
        pass
    seat.type(b"x" * 30_000)
    seat.type(CTRL_Z)
    assert b"Stopped" in seat.read_until(PROMPT)
    peer.ask("kill", id=seat.id, grace=0)


SLOW = """
import os, time
print("go", flush=True)
for _ in range(24):
    time.sleep(0.06)
    left = 4000
    while left:
        left -= len(os.read(0, left))
print("done", flush=True)
"""


def test_a_program_that_reads_slowly_is_not_called_blocked(other: Peer) -> None:
    """It was once, when more than a second's worth waited."""
    seat = Seat(other, argv=python(f"import os; os.system('{RAW}')\n{SLOW}"), from_="start")
    seat.read_until(b"go")
    seat.type(b"z" * 96_000)
    seat.read_until(b"done")
    assert seat.end()["code"] == 0
    assert not seat.call.events


def test_what_all_may_have_waiting_is_bounded(server: Server, other: Peer) -> None:
    """Coming back again and again does not add up the credit of each time."""
    seat = Seat(other, shell=RAW + _DEAF, from_="start")
    seat.read_until(b"go")
    said: list[object] = []
    for _ in range(8):
        with Peer(server.address) as again:
            typist = Seat(again, "attach", id=seat.id, input=True, from_="end")
            _type_ahead(typist, INPUT_WINDOW)
            again.ask("ps")
            said += [got.fields.get("code") for got in typist.call.queue if got.kind is Kind.RESET]
    assert said == ["limit"] * 4
    assert MIB - KIB <= row_of(other, seat.id)["typed"]["waiting"] <= MIB
    # Ends of the input are characters too.
    for _ in range(2 * KIB):
        seat.call.event(event="eof")
    with pytest.raises(Failed) as refused:
        seat.end()
    assert refused.value.code == "limit"
    assert row_of(other, seat.id)["typed"]["waiting"] <= MIB
    other.ask("kill", id=seat.id, grace=0)


def test_keys_that_come_one_by_one_cost_no_more_than_a_paste(other: Peer) -> None:
    """Each took 300 bytes once, and was counted again for each that came: that could occupy guestd for minutes."""
    seat = Seat(other, shell=RAW + _DEAF, from_="start")
    seat.read_until(b"go")
    before = other.ask("status")["memory"]["rss"]
    for _ in range(70_000):
        seat.type(b"k")
    assert row_of(other, seat.id)["typed"]["waiting"] >= 70_000 - IN_KERNEL
    assert other.ask("status")["memory"]["rss"] - before < 4 * MIB
    other.ask("kill", id=seat.id, grace=0)


def test_more_than_the_credit_resets_the_channel(peer: Peer) -> None:
    seat = Seat(peer, shell=RAW + _DEAF, from_="start")
    seat.read_until(b"go")
    _type_ahead(seat, INPUT_WINDOW)
    seat.type(b"x" * (IN_KERNEL + 1))
    with pytest.raises(Failed) as refused:
        seat.end()
    assert refused.value.code == "flow_control"
    assert row_of(peer, seat.id)["state"] == "running"
    peer.ask("kill", id=seat.id, grace=0)


@pytest.mark.parametrize("character", ["^D", "^X"])
def test_the_end_of_the_input_is_the_terminals_own_character(peer: Peer, character: str) -> None:
    seat = Seat(peer, shell=f"stty -echo eof {character}; echo go; cat; exit 6", from_="start")
    seat.read_until(b"go\r\n")
    seat.line("a line")
    assert seat.read_line() == "a line"
    seat.call.event(event="eof")
    assert seat.end()["code"] == 6


def test_a_signal_goes_to_the_whole_tree(peer: Peer) -> None:
    seat = bash(peer)
    seat.line(
        "trap 'echo c''aught' USR1;"
        " (trap 'echo insi''de; exit' USR1; echo in pl''ace; while :; do sleep 0.01; done) & wait"
    )
    seat.read_until(b"in place\r\n")
    seat.call.event(event="signal", signal="USR1")
    shown = seat.read_until(b"inside\r\n")
    if b"caught" not in shown:
        seat.read_until(b"caught\r\n")
    peer.ask("kill", id=seat.id, grace=0)
