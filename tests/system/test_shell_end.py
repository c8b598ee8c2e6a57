"""How a shell ends, what stays of it, and what of its programs goes on."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.commands import serving_commands
from tests.support.peer import PATIENCE, Failed, Peer, Watched, living
from tests.support.server import serving
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


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def _name() -> str:
    return f"end-{os.urandom(5).hex()}"


# --------------------------------------------------------------------------------------------------------- its result


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("text", "outcome", "code", "signal"),
    [("exit 3", "exited", 3, None), ("kill -TERM $$", "signaled", None, 15), ("kill -KILL $$", "signaled", None, 9)],
)  # fmt: skip
def test_the_result_is_its_programs(
    server: Server, dialect: str, text: str, outcome: str, code: int | None, signal: int | None
) -> None:
    with Peer(server.address, dialect=dialect) as peer:
        seat = Seat(peer, shell=f"echo said; {text}")
        result = seat.end()
        assert (result["outcome"], result["code"], result["signal"]) == (outcome, code, signal)
        assert (result["kind"], result["ended_by"], result["gaps"]) == ("shell", None, {})
        assert result["streams"] == {"terminal": {"bytes": 6, "kept_from": 0}}
        assert seat.shown == b"said\r\n"
        again = peer.ask("wait", id=seat.id)
        assert (again["outcome"], again["code"], again["signal"]) == (outcome, code, signal)


def test_an_interactive_shell_ends_at_a_kill_by_sighup(peer: Peer) -> None:
    seat = bash(peer)
    seat.line("sleep 1000 & sleep 2000")
    while row_of(peer, seat.id)["foreground"]["name"] != "sleep":
        pass
    begun = time.monotonic()
    killed = peer.ask("kill", id=seat.id, grace=20)
    assert time.monotonic() - begun < 10
    assert (killed["outcome"], killed["signal"], killed["ended_by"]) == ("signaled", 1, "kill")
    assert killed["killed"]["count"] == 3
    assert seat.end()["ended_by"] == "kill"


def test_who_ignores_sighup_is_killed_after_the_grace(peer: Peer) -> None:
    seat = Seat(
        peer, shell="trap '' HUP TERM; echo go; while :; do sleep 0.05; done", grace=0.2, from_="start"
    )
    seat.read_until(b"go")
    peer.ask("kill", id=seat.id)
    result = seat.end()
    assert (result["outcome"], result["signal"], result["ended_by"]) == ("signaled", 9, "kill")
    assert result["ended_at"] - result["started_at"] >= 0.2


def test_it_may_say_goodbye_at_sighup(peer: Peer) -> None:
    program = (
        "trap 'echo bye; exit 5' HUP; trap 'echo usr' USR1; echo go; while :; do read -t 0.01 line; done"
    )
    seat = Seat(peer, shell=program, from_="start")
    seat.read_until(b"go")
    assert peer.ask("kill", id=seat.id, signal="USR1", scope="leave")["signalled"] == 1
    seat.read_until(b"usr\r\n")
    peer.ask("kill", id=seat.id)
    result = seat.end()
    assert seat.rest == b"bye\r\n"
    assert (result["outcome"], result["code"], result["ended_by"]) == ("exited", 5, "kill")


@pytest.mark.parametrize("left", ["", "setsid sleep 1000 & "], ids=["alone", "held"])
@pytest.mark.parametrize("credit", [0, 40 * KIB, LEAD - KIB])
@pytest.mark.parametrize("tape", [64 * KIB, 4 * MIB])
def test_what_it_wrote_before_its_end_reaches_a_slow_owner(
    peer: Peer, left: str, credit: int, tape: int
) -> None:
    """The kernel's own buffers were full when it ended; only what one of the two held was counted once."""
    most = credit + min(LEAD, tape)
    blocks = [f"head -c {size} /dev/zero | tr '\\0' x;" for size in (most - 100, 6100)]
    program = f"{RAW} {left} {blocks[0]} head -c 1 > /dev/null; {blocks[1]} exit 3"
    seat = Seat(peer, shell=program, window=credit, from_="start", tape=tape, retain=60)
    until_row(peer, seat.id, bytes=most - 100)
    # The kernel's buffers are empty now, so they take it all.
    seat.type("x")
    size = most + 6000
    # It ends by itself, though its owner has yet to read nearly all of it.
    peer.ask("wait", id=seat.id, timeout=20)
    seat.call.credit(MIB)
    result = seat.end()
    assert (result["code"], result["gaps"]) == (3, {})
    assert seat.shown == b"x" * size
    assert result["streams"]["terminal"]["bytes"] == size
    if left:
        assert result["left"]["count"] == 1
        peer.ask("kill", id=seat.id, grace=0)


def test_the_result_comes_behind_all_output(peer: Peer) -> None:
    for _ in range(20):
        seat = Seat(peer, shell=f"{RAW} seq 20000; exit 3")
        assert seat.end()["code"] == 3
        assert seat.shown == b"".join(b"%d\n" % number for number in range(1, 20_001))


# ------------------------------------------------------------------------------------------------------ what goes on

#: Writes far more than any buffer holds to the terminal that was left, says so where asked, and waits for a word.
HOLDS_ON = """
import os, sys
os.write(1, b"begun\\n")
with open(sys.argv[1]) as fifo:
    fifo.read()
for _ in range(64):
    os.write(1, b"y" * 16384)
with open(sys.argv[1], "w") as fifo:
    fifo.write("alive")
"""


@pytest.mark.parametrize("retain", [60, 0], ids=["kept", "forgotten"])
def test_what_holds_the_terminal_after_the_end_goes_on(
    peer: Peer, fifo: Path, tmp_path: Path, retain: float
) -> None:
    """It delays the result by the drain alone, and neither SIGHUP nor SIGPIPE ends it, nor a terminal that is full."""
    (tmp_path / "holds-on").write_text(HOLDS_ON)
    python_ = python("")[0]
    seat = bash(peer, retain=retain)
    seat.line(f"{python_} -I -S {tmp_path}/holds-on {fifo} & disown")
    seat.read_until(b"begun")
    (holder,) = [pid for pid in living() if _words(pid)[-1:] == [str(fifo)]]
    with Watched(holder) as process:
        seat.line("exit 4")
        result = seat.end()
        assert (result["code"], result["held"]) == (4, ["terminal"])
        assert result["left"] == {"count": 1, "processes": [{"pid": holder, "name": _name_of(holder)}]}
        if not retain:
            while seat.id in {row["id"] for row in peer.ask("ps")["jobs"]}:
                pass
        assert process.lives
        fifo.write_text("go on")
        assert fifo.read_text() == "alive"
        process.wait()
    if retain:
        late = Seat(peer, "attach", id=seat.id)
        assert late.end()["streams"]["terminal"]["bytes"] == result["streams"]["terminal"]["bytes"]
        assert b"yyy" not in late.shown


def _words(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().rstrip("\n")


@pytest.mark.parametrize(
    "how", ["nohup sleep 1000 > /dev/null 2>&1 &", "sleep 1000 & disown", "setsid sleep 1000 &"]
)
def test_jobs_that_are_to_survive_do(peer: Peer, how: str) -> None:
    seat = bash(peer)
    before = living()
    seat.run(how)
    # Others may stand between bash and it for a moment.
    while [name for pid, name in living().items() if pid not in before] != ["sleep"]:
        row_of(peer, seat.id)
    seat.line("exit")
    result = seat.end()
    assert result["code"] == 0
    assert [each["name"] for each in result["left"]["processes"]] == ["sleep"]
    pid = result["left"]["processes"][0]["pid"]
    with Watched(pid) as process:
        assert process.lives
        killed = peer.ask("kill", id=seat.id, grace=0.1)
        assert (killed["already_ended"], killed["killed_left"]) == (True, 1)
        process.wait()


# ------------------------------------------------------------------------------------------------------ what is kept


def test_its_output_stays_for_retain_and_then_it_is_gone(peer: Peer) -> None:
    seat = Seat(peer, shell=f"{RAW} seq -w 0 9999; exit 2", retain=3)
    seat.end()
    whole = seat.shown
    assert len(whole) == 50_000
    # Whoever looks keeps it.
    late = Seat(peer, "attach", id=seat.id, from_={"terminal": 12_345}, window=0)
    late.accepted()
    for offset in (0, 1, 49_999, 50_000):
        each = Seat(peer, "attach", id=seat.id, from_={"terminal": offset})
        assert each.end()["code"] == 2
        assert each.shown == whole[offset:]
    row = row_of(peer, seat.id)
    assert (row["state"], row["result"]["code"], row["bytes"]) == ("ended", 2, 50_000)
    late.call.credit(MIB)
    assert late.end()["code"] == 2
    assert late.shown == whole[12_345:]
    begun = time.monotonic()
    while seat.id in {row["id"] for row in peer.ask("ps")["jobs"]}:
        assert time.monotonic() - begun < 20
    with pytest.raises(Failed) as refused:
        peer.ask("attach", id=seat.id)
    assert refused.value.code == "not_found"


def test_who_still_reads_an_ended_shell_is_told_what_its_successor_took(peer: Peer, server: Server) -> None:
    """An END without a gap came once, as if everything had."""
    job_id = _name()
    old = Seat(peer, id=job_id, shell="head -c 100000 /dev/zero; exit 8", window=1000, from_="start")
    peer.ask("wait", id=job_id)
    old.read_more(1000, credit=False)
    with Peer(server.address) as other:
        new = Seat(other, id=job_id, argv=["echo", "new"])
        assert new.accepted()["created"] is True
        assert new.end()["code"] == 0
    old.call.credit(MIB)
    result = old.end()
    assert result["code"] == 8
    assert old.call.gaps == [(TERMINAL, 1000, 100_000)]
    assert result["gaps"] == {"terminal": 99_000}


# --------------------------------------------------------------------------------------------- ended by what was asked


def test_it_is_ended_after_its_lifetime(peer: Peer) -> None:
    result = Seat(peer, argv=["sleep", "1000"], lifetime=0.2).end()
    assert (result["outcome"], result["signal"], result["ended_by"]) == ("signaled", 1, "lifetime")
    assert result["ended_at"] - result["started_at"] >= 0.2


def test_it_is_ended_when_nobody_uses_it(peer: Peer) -> None:
    job_id = _name()
    program = f"{RAW} for n in 1 2 3 4 5; do sleep 0.3; printf x; done; exec sleep 1000"
    peer.ask("shell", id=job_id, shell=program, idle_timeout=1.0, detach=True)
    result = peer.ask("wait", id=job_id)
    assert (result["outcome"], result["ended_by"]) == ("signaled", "idle")
    assert result["streams"]["terminal"]["bytes"] == 5
    assert result["ended_at"] - result["started_at"] >= 2.5


def test_a_watcher_uses_it_and_its_idleness_begins_when_he_goes(peer: Peer) -> None:
    """Once it was counted from some moment while he was still there."""
    job_id = _name()
    peer.ask("shell", id=job_id, argv=["sleep", "1000"], idle_timeout=1.0, detach=True)
    watcher = Seat(peer, "attach", id=job_id)
    watcher.accepted()
    with pytest.raises(Failed) as still:
        peer.ask("wait", id=job_id, timeout=1.5)
    assert still.value.code == "timeout"
    left = time.time()
    watcher.call.reset()
    result = peer.ask("wait", id=job_id)
    assert result["ended_by"] == "idle"
    assert result["ended_at"] - left >= 0.95


@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_ends_with_its_channel_where_that_is_asked(server: Server, peer: Peer, dialect: str) -> None:
    asked: dict[str, Any] = {"argv": ["sleep", "1000"], "kill_on_disconnect": True}
    with Peer(server.address, dialect=dialect) as gone:
        by_reset, by_loss = Seat(gone, **asked), Seat(gone, **asked)
        ids = [by_reset.id, by_loss.id]
        by_reset.call.reset()
        assert peer.ask("wait", id=ids[0])["ended_by"] == "disconnect"
        assert row_of(peer, ids[1])["state"] == "running"
    assert peer.ask("wait", id=ids[1])["ended_by"] == "disconnect"


def test_the_sessions_end_is_sighup_and_leaves_nothing(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with serving(config="[stop]\ngrace = '3s'\n") as server, Peer(server.address) as peer:
        polite = Seat(
            peer,
            shell=f"trap 'echo bye > {said}; exit 0' HUP; echo go; while :; do sleep 0.01; done",
            from_="start",
        )
        polite.read_until(b"go")
        deaf = Seat(
            peer,
            shell="trap '' HUP TERM; (setsid sleep 1000 &); echo go; while :; do sleep 0.01; done",
            from_="start",
        )
        deaf.read_until(b"go")
        idle = bash(peer)
        over = bash(peer)
        over.run("setsid sleep 1000 &")
        over.line("exit")
        over.end()
        server.process.terminate()
        assert [seat.end()["ended_by"] for seat in (polite, deaf, idle)] == ["stop"] * 3
        assert deaf.call.final is not None
        assert deaf.call.final["signal"] == 9
        assert server.process.wait(20) == 0
        assert "sleep" not in living().values()
    assert said.read_text() == "bye\n"


# -------------------------------------------------------------------------------------------------------------- many


def test_200_shells_leave_nothing() -> None:
    with serving(config="[limits]\nshells = 300\n") as server, Peer(server.address) as peer:
        first = Seat(peer, argv=["cat"], retain=0)
        peer.ask("kill", id=first.id, grace=0)
        first.end()
        while not peer.ask("status")["audit"]["written"]:
            pass  # its file is opened with the first records
        before = _traces(server, peer)
        while (now := _traces(server, peer)) != before:
            before = now  # a file that was open for a moment
        seats = [
            Seat(peer, argv=["cat"] if number % 2 else ["sleep", "1000"], retain=0, tape=64 * KIB)
            for number in range(200)
        ]
        for number, seat in enumerate(seats):
            seat.line(f"line {number}")
        for number, seat in enumerate(seats):
            seat.read_until(f"line {number}\r\n".encode())
        assert peer.ask("status")["jobs"]["running"] == 200
        for seat in seats:
            peer.open("kill", id=seat.id, grace=1)
        assert {seat.end()["ended_by"] for seat in seats} == {"kill"}
        while peer.ask("status")["jobs"]["kept"]:
            pass
        due = time.monotonic() + PATIENCE
        while (after := _traces(server, peer)) != before:
            assert time.monotonic() < due, (before, after)


def _traces(server: Server, peer: Peer) -> dict[str, object]:
    status = peer.ask("status")
    with open(f"/proc/{server.pid}/task/{server.pid}/children") as file:
        children = len(file.read().split())
    return {
        "fds": len(os.listdir(f"/proc/{server.pid}/fd")),
        "tasks": status["tasks"],
        "children": children,
        "tapes": status["tapes"]["bytes"],
        "processes": len(living()),
    }
