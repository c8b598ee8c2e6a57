"""Work outlives connections, and coming back is exact: every byte from where the client was, once, or a gap's size.

`Call` checks each DATA frame's offset as it comes, so whatever a test reads is known to be without hole and repetition.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from guestd.wire.frames import Kind
from tests.support.peer import Call, Failed, Peer, Watched
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Numbered lines on both streams, in two rhythms.
NUMBERS = r"""
import sys
for number in range(int(sys.argv[1])):
    sys.stdout.write(f"{number}\n")
    if number % 3 == 0:
        sys.stderr.write(f"e{number}\n")
        sys.stderr.flush()
    if number % 7 == 0:
        sys.stdout.flush()
"""
KIB = 1024
MIB = 1024 * KIB
DIALECTS = ("native", "websocket")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        # What guestd makes for the first of them and then keeps: a launcher, and what a WebSocket needs.
        with Peer(running.address, dialect="websocket") as peer:
            peer.ask("exec", argv=["echo"], spool=True, user="nobody", cwd="/")
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


def _numbers(count: int) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", NUMBERS, str(count)]


def _expected(count: int) -> tuple[bytes, bytes]:
    stdout = b"".join(b"%d\n" % number for number in range(count))
    return stdout, b"".join(b"e%d\n" % number for number in range(0, count, 3))


def _name() -> str:
    return f"job-{os.urandom(5).hex()}"


# -------------------------------------------------------------------------------------------------------- coming back


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("hold", [True, False], ids=["hold", "watch"])
def test_many_lost_connections_lose_no_byte_and_repeat_none(server: Server, dialect: str, hold: bool) -> None:
    """Each connection is dropped after a random number of frames; the next asks for what comes after its last byte."""
    draw = random.Random(f"{dialect}{hold}")
    count = 150_000
    wanted = _expected(count)
    got = {"stdout": bytearray(), "stderr": bytearray()}
    request = {"argv": _numbers(count), "id": _name(), "hold": hold, "tape": 2 * MIB}
    connections = 0
    result = None
    while result is None:
        connections += 1
        start = {name: len(data) for name, data in got.items()}
        with Peer(server.address, dialect=dialect, window=32 * KIB) as peer:
            call = peer.open("exec", **request, from_=start)
            assert call.accepted()["created"] is (connections == 1)
            for _ in range(draw.randrange(1, 6)):
                if call.step().kind is Kind.END:
                    result = call.final
                    break
            assert call.gaps == []
            got["stdout"] += call.stdout
            got["stderr"] += call.stderr
    assert (bytes(got["stdout"]), bytes(got["stderr"])) == wanted
    assert connections > 5
    assert (result["outcome"], result["code"]) == ("exited", 0)
    assert result["streams"]["stdout"]["bytes"] == len(wanted[0])


def test_a_lost_connection_leaves_the_command_running(server: Server, peer: Peer, fifo: Path) -> None:
    job_id = _name()
    with Peer(server.address) as lost:
        pid = lost.open("exec", shell=f"read line < {fifo}; echo $line; exit 9", id=job_id).accepted()["pid"]
    with Watched(pid) as process:
        waiting = peer.open("wait", id=job_id)
        waiting.accepted()
        assert process.lives
        fifo.write_text("still here\n")
        assert waiting.end()["code"] == 9
    call = peer.open("attach", id=job_id)
    assert call.end()["code"] == 9
    assert call.stdout == b"still here\n"


@pytest.mark.parametrize("op", ["attach", "exec"])
def test_an_offset_that_was_not_reached_yet_is_refused(peer: Peer, op: str) -> None:
    job_id = _name()
    request = {"argv": ["echo", "four"], "id": job_id}
    peer.ask("exec", **request)
    more = request if op == "exec" else {"id": job_id}
    with pytest.raises(Failed) as refused:
        peer.open(op, **more, from_={"stdout": 6}).end()
    assert refused.value.code == "bad_offset"
    call = peer.open(op, **more, from_={"stdout": 5})
    call.end()
    assert call.stdout == b""


def test_from_end_shows_only_what_comes_from_now_on(peer: Peer, fifo: Path) -> None:
    call = peer.open("exec", shell=f"echo old; read line < {fifo}; echo new")
    call.lines(1)
    late = peer.open("attach", id=call.accepted()["id"], from_="end")
    assert late.accepted()["streams"]["stdout"]["end"] == 4
    fifo.write_text("go\n")
    late.end()
    assert late.stdout == b"new\n"


def test_any_number_of_viewers_see_the_same(server: Server, peer: Peer) -> None:
    job_id = _name()
    first = peer.open("exec", argv=_numbers(20_000), id=job_id)
    first.accepted()
    with ExitStack() as viewers:
        peers = [viewers.enter_context(Peer(server.address, dialect=DIALECTS[at % 2])) for at in range(6)]
        others = [
            each.open("attach", id=job_id, hold=True, from_={"stdout": 0, "stderr": 0}) for each in peers
        ]
        for call in [first, *others]:
            call.end()
            assert (call.stdout, call.stderr) == _expected(20_000)


# ---------------------------------------------------------------------------------------------------- gaps and holding


def test_what_the_ring_has_overwritten_is_reported_by_its_exact_size(peer: Peer) -> None:
    stdout, stderr = _expected(100_000)
    call = peer.open("exec", argv=_numbers(100_000), hold=False, window=0, tape=64 * KIB)
    peer.ask("wait", id=call.accepted()["id"])
    call.credit(10 * MIB)
    result = call.end()
    lost = {1: len(stdout) - 64 * KIB, 2: len(stderr) - 64 * KIB}
    assert sorted(call.gaps) == [(stream, 0, size) for stream, size in lost.items()]
    assert call.stdout == stdout[lost[1] :]
    assert call.stderr == stderr[lost[2] :]
    assert result["gaps"] == {"stdout": lost[1], "stderr": lost[2]}
    kept = result["streams"]["stdout"]
    assert (kept["bytes"], kept["kept_from"]) == (len(stdout), lost[1])


def test_a_watcher_that_stalls_in_the_middle_gets_the_gap_in_the_middle(peer: Peer, fifo: Path) -> None:
    stdout, _ = _expected(100_000)
    script = f"read line < {fifo}; exec {sys.executable} -I -S -c '{NUMBERS}' 100000 2>/dev/null"
    call = peer.open("exec", shell=f"echo -n head; {script}", hold=False, window=4, tape=64 * KIB)
    call.read_until("stdout", 4, credit=False)
    fifo.write_text("go\n")
    peer.ask("wait", id=call.accepted()["id"])
    call.credit(MIB)
    call.end()
    whole = b"head" + stdout
    assert call.gaps == [(1, 4, len(whole) - 64 * KIB)]
    assert call.stdout == b"head" + whole[-64 * KIB :]


def test_a_holder_slows_the_producer_and_a_watcher_does_not(peer: Peer) -> None:
    request = {"argv": _numbers(100_000), "tape": 16 * KIB, "window": 0}
    watched = peer.open("exec", **request, hold=False)
    held = peer.open("exec", **request)
    held.accepted()
    peer.ask("wait", id=watched.accepted()["id"])
    with Watched(held.accepted()["pid"]) as process:
        # The watched one has printed everything. The other had as long, and is in the middle of it.
        assert process.lives
        held.credit(10 * MIB)
        assert held.end()["code"] == 0
    assert (held.stdout, held.stderr) == _expected(100_000)


def test_a_holder_that_goes_away_holds_no_longer(server: Server, peer: Peer) -> None:
    with Peer(server.address) as holder:
        call = holder.open("exec", argv=_numbers(100_000), tape=16 * KIB, window=0, id="held-by-nobody")
        with Watched(call.accepted()["pid"]) as process:
            peer.ask("exec", argv=["true"])
            assert process.lives
    assert peer.ask("wait", id="held-by-nobody")["code"] == 0


def test_a_channel_without_credit_stalls_no_other_of_its_connection(peer: Peer) -> None:
    stalled = peer.open("exec", argv=["yes"], window=0, id="yes")
    stalled.accepted()
    for number in range(50):
        call = peer.open("exec", shell=f"echo {number}")
        assert call.end()["code"] == 0
        assert call.stdout == b"%d\n" % number
    bulk = peer.open("exec", argv=["head", "-c", str(4 * MIB), "/dev/zero"])
    bulk.end()
    assert len(bulk.stdout) == 4 * MIB
    assert not stalled.queue, "and nothing was sent that there was no credit for"
    peer.ask("kill", id="yes", grace=0)
    stalled.credit(10 * MIB)
    assert stalled.end()["ended_by"] == "kill"


def test_a_holder_that_reads_nothing_keeps_nobody_from_the_result(server: Server, tmp_path: Path) -> None:
    """The ring is full, and so is the pipe behind it, when the command exits: whoever waits hears of it, and the holder
    still gets every byte.
    """
    source = random.Random(9).randbytes(60_000)
    (tmp_path / "source").write_bytes(source)
    with Peer(server.address) as holder, Peer(server.address) as other:
        call = holder.open("exec", argv=["cat", f"{tmp_path}/source"], tape=4096, window=0, id=_name())
        result = other.ask("wait", id=call.accepted()["id"])
        assert (result["code"], result["streams"]["stdout"]["bytes"]) == (0, len(source))
        watcher = other.open("attach", id=call.accepted()["id"])
        watcher.end()
        assert source.endswith(watcher.stdout)
        call.credit(MIB)
        assert call.end()["code"] == 0
        assert call.stdout == source
        assert call.gaps == []


def test_a_kill_does_not_wait_for_a_holder_that_reads_nothing(peer: Peer) -> None:
    call = peer.open("exec", argv=["yes"], window=0, tape=4096, id=_name())
    job_id = call.accepted()["id"]
    killed = peer.ask("kill", id=job_id, grace=0)
    assert killed["signal_name"] == "SIGKILL"
    call.credit(10 * MIB)
    size = call.end()["streams"]["stdout"]["bytes"]
    assert call.stdout == (b"y\n" * size)[:size]


def test_output_over_the_credit_is_never_sent(peer: Peer) -> None:
    call = peer.open("exec", argv=["head", "-c", "100000", "/dev/zero"], window=1000)
    sizes = [1000, 1, 7, 4096, 94896]
    call.accepted()
    total = 0
    for size in sizes:
        if total:
            call.credit(size)
        total += size
        call.read_until("stdout", total, credit=False)
        peer.ask("status")  # anything sent over the credit would have come before this answer
        assert all(got.kind is not Kind.DATA for got in call.queue)
    assert len(call.stdout) == 100_000
    assert call.end()["code"] == 0


# ------------------------------------------------------------------------------------------------------------ retention


def test_what_has_ended_is_kept_for_its_time_and_then_forgotten() -> None:
    with serving() as server, Peer(server.address) as peer:
        peer.ask("exec", argv=["echo", "short"], id="short", retain=0.05)
        peer.ask("exec", argv=["echo", "long"], id="long", retain=600)
        while "short" in _ids(peer):
            pass
        with pytest.raises(Failed) as gone:
            peer.ask("attach", id="short")
        assert gone.value.code == "not_found"
        call = peer.open("attach", id="long")
        call.end()
        assert call.stdout == b"long\n"


def test_the_oldest_go_when_there_are_too_many_or_they_take_too_much() -> None:
    config = '[command]\nretain_count = 3\nretain_bytes = "200KiB"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        for number in range(5):
            peer.ask("exec", argv=["true"], id=f"n{number}")
        assert _ids(peer) == ["n2", "n3", "n4"]
        for number in range(3):
            peer.ask("exec", argv=["head", "-c", "90000", "/dev/zero"], id=f"b{number}")
        assert _ids(peer) == ["b1", "b2"]


def test_what_somebody_is_reading_is_not_forgotten_under_them() -> None:
    with serving(config="[command]\nretain_count = 0\n") as server, Peer(server.address) as peer:
        call = peer.open("exec", argv=["head", "-c", "100000", "/dev/zero"], window=0, retain=0, id="read")
        peer.ask("wait", id=call.accepted()["id"])
        peer.ask("exec", argv=["true"])
        call.credit(MIB)
        assert call.end()["code"] == 0
        assert len(call.stdout) == 100_000


def _ids(peer: Peer) -> list[str]:
    return [row["id"] for row in peer.ask("ps")["jobs"]]


# ----------------------------------------------------------------------------------------------------------------- ids


def test_the_same_start_again_is_the_same_job(server: Server, peer: Peer, tmp_path: Path) -> None:
    request = {"shell": f"echo run >> {tmp_path}/runs; echo out", "id": _name()}
    with Peer(server.address) as other:
        # At the same instant, from two connections, and afterwards.
        calls = [each.open("exec", **request) for each in (peer, other, peer, other)]
        results = [call.end() for call in calls]
    results.append(peer.ask("exec", **request))
    assert [call.accepted()["created"] for call in calls].count(True) == 1
    assert {call.stdout for call in calls} == {b"out\n"}
    assert len({result["pid"] for result in results}) == 1
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.parametrize(
    "change", [{"argv": ["echo", "b"]}, {"env": {"A": "1"}}, {"cwd": "/tmp"}, {"timeout": 5}, {"tape": 8192}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_request_under_the_same_id_is_a_conflict(peer: Peer, change: dict[str, object]) -> None:
    request = {"argv": ["echo", "a"], "id": _name()}
    peer.ask("exec", **request)
    with pytest.raises(Failed) as refused:
        peer.ask("exec", **{**request, **change})
    assert refused.value.code == "conflict"
    assert refused.value.fields["id"] == request["id"]
    peer.ask("exec", **request, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


def test_a_kill_that_comes_before_its_start_wins(peer: Peer, tmp_path: Path) -> None:
    job_id = _name()
    answer = peer.ask("kill", id=job_id)
    assert (answer["state"], answer["remembered"] > 0) == ("unknown", True)
    result = peer.ask("exec", shell=f"touch {tmp_path}/ran", id=job_id)
    assert (result["outcome"], result["stage"], result["ended_by"]) == ("not_started", "killed", "kill")
    assert not (tmp_path / "ran").exists()


def test_a_kill_in_the_very_moment_of_the_start_leaves_nothing_running(peer: Peer) -> None:
    """Both frames arrive together, for each way to start: directly, and through the launcher."""
    for number in range(40):
        job_id = _name()
        user = {"user": "nobody", "cwd": "/"} if number % 2 else {}
        call = peer.open("exec", argv=["sleep", "1000"], id=job_id, **user)
        killed = peer.ask("kill", id=job_id)
        result = call.end()
        assert result["outcome"] in {"signaled", "not_started"}, result
        assert killed["ended_by"] == result["ended_by"] == "kill"


# ------------------------------------------------------------------------------------------------------------- waiting


def test_many_wait_for_one_end_and_those_who_come_late_too(server: Server, peer: Peer, fifo: Path) -> None:
    job_id = _name()
    peer.open("exec", shell=f"read line < {fifo}; exit 11", id=job_id).accepted()
    waiting = [peer.open("wait", id=job_id) for _ in range(200)]
    for call in waiting:
        assert call.accepted()["state"] == "running"
    with Peer(server.address) as other:
        elsewhere = other.open("wait", id=job_id, timeout=3600)
        elsewhere.accepted()
        fifo.write_text("go\n")
        assert {call.end()["code"] for call in [*waiting, elsewhere]} == {11}
    assert peer.ask("wait", id=job_id, timeout=0)["code"] == 11


def test_a_wait_that_is_over_says_so_and_the_job_goes_on(peer: Peer, fifo: Path) -> None:
    call = peer.open("exec", shell=f"read line < {fifo}")
    job_id = call.accepted()["id"]
    for timeout in (0, 0.01):
        with pytest.raises(Failed) as failed:
            peer.ask("wait", id=job_id, timeout=timeout)
        assert (failed.value.kind, failed.value.code) == (Kind.RESET, "timeout")
    fifo.write_text("go\n")
    assert call.end()["code"] == 0


def test_waiting_for_a_job_that_never_was_is_an_error_at_once(peer: Peer) -> None:
    with pytest.raises(Failed) as failed:
        peer.ask("wait", id="never-was")
    assert (failed.value.kind, failed.value.code) == (Kind.REJECT, "not_found")


# ------------------------------------------------------------------------------------------------------------ the spool


def test_with_a_spool_nothing_is_lost_however_much_there_is_and_nobody_reads(peer: Peer) -> None:
    stdout, stderr = _expected(300_000)
    assert len(stdout) > 20 * 64 * KIB
    call = peer.open(
        "exec", argv=_numbers(300_000), spool=True, tape=64 * KIB, hold=False, window=0, id=_name()
    )
    peer.ask("wait", id=call.accepted()["id"])
    call.credit(100 * MIB)
    call.end()
    assert (call.stdout, call.stderr, call.gaps) == (stdout, stderr, [])
    again = peer.open("attach", id=call.accepted()["id"], from_={"stdout": 0, "stderr": len(stderr) - 10})
    again.end()
    assert (again.stdout, again.stderr, again.gaps) == (stdout, stderr[-10:], [])


def test_a_spool_that_is_full_makes_the_producer_wait_instead_of_losing_anything() -> None:
    stdout, _ = _expected(100_000)
    config = '[command]\nspool_limit = "256KiB"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open("exec", argv=_numbers(100_000), spool=True, tape=16 * KIB, hold=False, window=0)
        with Watched(call.accepted()["pid"]) as process:
            watched = peer.open("exec", argv=_numbers(100_000), tape=16 * KIB, hold=False, window=0)
            peer.ask("wait", id=watched.accepted()["id"])
            assert process.lives, "it waits for somebody to read"
        late = peer.open("attach", id=call.accepted()["id"], hold=True)
        assert late.end()["code"] == 0
        assert late.stdout == stdout
        assert late.gaps == []


# --------------------------------------------------------------------------------------------------------------- input


def test_input_goes_on_after_a_lost_connection_and_nothing_is_typed_twice(server: Server) -> None:
    draw = random.Random(11)
    data = draw.randbytes(300_000)
    request = {"argv": ["cat"], "stdin": "stream", "id": _name()}
    got = bytearray()
    while True:
        with Peer(server.address) as peer:
            call = peer.open("exec", **request, from_={"stdout": len(got)})
            taken = call.accepted()["input"]["offset"]
            # As a client does that does not know what arrived: from a little before.
            at = max(0, taken - draw.randrange(2000))
            for _ in range(draw.randrange(1, 6)):
                piece = data[at : at + draw.randrange(1, 20_000)]
                call.data(at, piece)
                at += len(piece)
            call.read_until("stdout", at - len(got))
            got += call.stdout
            if at == len(data):
                call.event(event="eof", offset=at)
                result = call.end()
                break
    assert bytes(got) == data
    assert (result["code"], result["input"]) == (0, {"bytes": len(data)})


def test_a_hole_in_the_input_is_an_error_and_types_nothing(peer: Peer) -> None:
    call = peer.open("exec", argv=["cat"], stdin="stream", id=_name())
    call.accepted()
    call.data(0, b"abc")
    call.data(4, b"e")
    with pytest.raises(Failed) as failed:
        call.end()
    assert (failed.value.kind, failed.value.code) == (Kind.RESET, "bad_offset")
    again = peer.open("attach", id=call.accepted()["id"], input=True)
    assert again.accepted()["input"]["offset"] == 3
    again.data(3, b"d")
    again.event(event="eof", offset=4)
    assert again.end()["code"] == 0
    assert again.stdout == b"abcd"


def test_an_end_of_input_beyond_what_came_is_a_hole_too(peer: Peer) -> None:
    call = peer.open("exec", argv=["cat"], stdin="stream", id=_name())
    call.accepted()
    call.event(event="eof", offset=1)
    with pytest.raises(Failed) as failed:
        call.end()
    assert failed.value.code == "bad_offset"
    peer.ask("kill", id=call.accepted()["id"], grace=0)


def test_input_is_not_for_those_who_only_watch(peer: Peer) -> None:
    call = peer.open("exec", argv=["cat"], stdin="stream", id=_name())
    watcher = peer.open("attach", id=call.accepted()["id"])
    watcher.accepted()
    watcher.data(0, b"not mine")
    with pytest.raises(Failed) as failed:
        watcher.end()
    assert failed.value.code == "bad_request"
    call.event(event="eof", offset=0)
    assert call.end()["code"] == 0
    assert call.stdout == b""


def test_a_program_that_does_not_read_its_input_blocks_only_its_sender(peer: Peer, fifo: Path) -> None:
    """The pipe takes 64 KiB, guestd one window; then there is no credit, and everything else goes on."""
    window = peer.hello["limits"]["window"]
    call = peer.open("exec", shell=f"read line < {fifo}; wc -c", stdin="stream")
    call.accepted()
    piece = bytes(16 * KIB)
    credit = window
    sent = 0
    while credit >= len(piece):
        call.data(sent, piece)
        sent += len(piece)
        credit -= len(piece)
        peer.ask("status")
        credit += sum(got.fields["bytes"] for got in call.queue if got.kind is Kind.CREDIT)
        call.queue.clear()
    assert window <= sent <= window + 2 * 64 * KIB
    assert peer.open("exec", argv=["echo", "hello"]).end()["code"] == 0
    fifo.write_text("go\n")
    while credit < 1:
        got = call.step()
        credit += got.fields["bytes"] if got.kind is Kind.CREDIT else 0
    call.event(event="eof", offset=sent)
    assert call.end()["code"] == 0
    assert int(call.stdout) == sent


def test_input_over_the_credit_resets_the_channel_and_nothing_else(peer: Peer, fifo: Path) -> None:
    call = peer.open("exec", shell=f"read line < {fifo}", stdin="stream")
    call.accepted()
    size = peer.hello["limits"]["window"]
    # What the pipe takes at once is credited again only by halves of the window, so this is over it by any count.
    call.data(0, bytes(size))
    call.data(size, bytes(size))
    with pytest.raises(Failed) as failed:
        call.end()
    assert (failed.value.kind, failed.value.code) == (Kind.RESET, "flow_control")
    peer.ask("status")
    fifo.write_text("go\n")
    assert peer.ask("wait", id=call.accepted()["id"])["code"] == 0


def test_a_program_that_ends_without_reading_gives_the_input_up(server: Server, peer: Peer) -> None:
    """Often, because once guestd died of it: where the input was closed between its writer's waking and its turn."""
    for _ in range(40):
        call = peer.open("exec", shell="exit 3", stdin="stream")
        call.accepted()
        call.data(0, bytes(200_000))
        assert call.end()["code"] == 3
        _still_served(peer)
    assert "Traceback" not in server.log


def _still_served(peer: Peer) -> Call:
    call = peer.open("exec", argv=["echo", "fine"])
    assert call.end()["code"] == 0
    return call
