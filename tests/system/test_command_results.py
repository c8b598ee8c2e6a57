"""How a command ended is told exactly: every code, every signal, every way of running out of time, and what it cost."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import Kind, read_data
from guestd.wire.result import signal_name
from tests.support.commands import NOBODY, run, serving_commands
from tests.support.peer import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.peer import Call, Peer

#: Both ways to start a program: directly, and by the launcher.
WAYS = pytest.mark.parametrize("way", [{}, {"user": NOBODY}], ids=["direct", "launcher"])

_IGNORED_OR_STOPPING = {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
}  # fmt: skip
FATAL = sorted(set(range(1, 65)) - {int(number) for number in _IGNORED_OR_STOPPING})


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with serving_commands() as (_, peer):
        yield peer


# ----------------------------------------------------------------------------------------------------- exit statuses


def test_every_exit_code_is_reported_as_it_is(peer: Peer) -> None:
    calls = [peer.open("exec", shell=f"exit {code}") for code in range(256)]
    for code, call in enumerate(calls):
        result = call.end()
        told = {key: result[key] for key in ("outcome", "code", "status", "signal", "ended_by", "stage")}
        assert told == {
            "outcome": "exited", "code": code, "status": code, "signal": None, "ended_by": None, "stage": None,
        }  # fmt: skip


@pytest.mark.parametrize("code", [0, 1, 126, 127, 128, 137, 255])
def test_exit_codes_of_another_users_commands_are_not_taken_for_failures_to_start(
    peer: Peer, code: int
) -> None:
    result = run(peer, shell=f"exit {code}", user=NOBODY).result
    assert (result["outcome"], result["code"], result["status"]) == ("exited", code, code)


def test_every_fatal_signal_is_reported_as_that_signal(peer: Peer) -> None:
    """Real-time signals, and the two that libc keeps for itself, included. No cores: they are many."""
    # Debian's sh is dash; bash ignores SIGQUIT.
    script = "ulimit -c 0; kill -{} $$"
    calls = [(number, peer.open("exec", argv=["sh", "-c", script.format(number)])) for number in FATAL]
    for number, call in calls:
        result = call.end()
        assert (result["outcome"], result["code"], result["signal"]) == ("signaled", None, number)
        assert (result["status"], result["signal_name"]) == (128 + number, signal_name(number))
        assert result["ended_by"] is None


@WAYS
def test_a_command_that_kills_itself_was_not_killed_by_anybody_else(peer: Peer, way: dict[str, str]) -> None:
    """`kill -9 $$` is neither a kill of the caller's nor one of the kernel's for memory."""
    result = run(peer, shell="kill -9 $$", **way).result
    assert (result["outcome"], result["signal_name"], result["status"]) == ("signaled", "SIGKILL", 137)
    assert result["ended_by"] is None


def test_a_code_above_128_is_no_signal(peer: Peer) -> None:
    result = run(peer, shell="exit 137").result
    assert (result["outcome"], result["code"], result["signal"]) == ("exited", 137, None)


def test_a_shell_that_passes_on_a_childs_signal_exited_by_itself(peer: Peer) -> None:
    result = run(peer, "sh", "-c", "sh -c 'kill -TERM $$'; exit $?").result
    assert (result["outcome"], result["code"]) == ("exited", 143)


# ------------------------------------------------------------------------------------------------------------ timeout


def timed_out(
    peer: Peer,
    script: str,
    **fields: Any,  # noqa: ANN401  whatever a test asks for
) -> tuple[Call, dict[str, Any]]:
    """The end of a script that was out of time after it had printed something, however slow the machine is."""
    timeout = 0.1
    while True:
        call = peer.open("exec", argv=["sh", "-c", script], timeout=timeout, **fields)
        result = call.end()
        if call.stdout or timeout > 20:
            return call, result
        timeout *= 4


@WAYS
def test_out_of_time_says_what_had_to_be_killed(peer: Peer, way: dict[str, str]) -> None:
    named = "until [ $(cat /proc/$a/comm)$(cat /proc/$b/comm) = sleepsleep ]; do :; done"
    script = (
        f"trap '' TERM; sleep 1000 & a=$!; setsid sleep 1001 & b=$!; {named}; echo $$; while :; do :; done"
    )
    call, result = timed_out(peer, script, grace=0.05, **way)
    assert (result["outcome"], result["status"], result["ended_by"]) == ("timed_out", 124, "timeout")
    assert (result["signal_name"], result["code"]) == ("SIGKILL", None)
    assert result["killed"]["count"] == 3
    assert sorted(each["name"] for each in result["killed"]["processes"]) == ["sh", "sleep", "sleep"]
    assert int(call.stdout) in {process["pid"] for process in result["killed"]["processes"]}
    assert result["unreached"]["count"] == result["left"]["count"] == 0
    assert result["duration"] >= 0.1 + 0.05
    assert not any(os.path.exists(f"/proc/{process['pid']}") for process in result["killed"]["processes"])


def test_out_of_time_with_a_clean_end_keeps_the_code_that_it_ended_with(peer: Peer) -> None:
    _, result = timed_out(peer, "trap 'exit 7' TERM; echo; while :; do :; done", grace=60)
    assert (result["outcome"], result["status"], result["code"]) == ("timed_out", 124, 7)


def test_an_end_in_time_is_not_a_timeout(peer: Peer) -> None:
    result = run(peer, shell="exit 3", timeout=60).result
    assert (result["outcome"], result["code"], result["ended_by"]) == ("exited", 3, None)


def test_a_stopped_command_is_running_until_it_is_ended(peer: Peer) -> None:
    """A stop is no end, and SIGTERM alone would wait behind it until the grace is over."""
    call = peer.open("exec", shell="trap 'exit 5' TERM; echo; kill -STOP $$; while :; do :; done")
    pid = call.accepted()["pid"]
    call.lines(1)
    with open(f"/proc/{pid}/stat") as stat:
        while ") T " not in stat.read():
            os.sched_yield()
            stat.seek(0)
    assert [row["state"] for row in peer.ask("ps")["jobs"] if row["pid"] == pid] == ["running"]
    assert peer.ask("kill", id=call.accepted()["id"], grace=30)["code"] == 5
    assert call.end()["ended_by"] == "kill"


# --------------------------------------------------------------------------------------------- times, cpu and memory


@WAYS
def test_times_are_those_of_both_clocks(peer: Peer, way: dict[str, str]) -> None:
    before = time.time(), time.monotonic()
    call = peer.open("exec", argv=["cat"], stdin="stream", **way)
    started_at = call.accepted()["started_at"]
    middle = time.time(), time.monotonic()
    call.event(event="eof", offset=0)
    result = call.end()
    after = time.time(), time.monotonic()
    assert before[0] <= result["started_at"] <= middle[0] <= result["ended_at"] <= after[0]
    assert before[1] <= result["started_mono"] <= middle[1] <= result["ended_mono"] <= after[1]
    assert result["duration"] == result["ended_mono"] - result["started_mono"]
    assert result["started_at"] == started_at


@WAYS
def test_processor_time_is_that_of_the_command_and_its_children(peer: Peer, way: dict[str, str]) -> None:
    # Counted by the shell itself, which has it from the same place: the sum over all that it has waited for.
    burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
    done = run(peer, "sh", "-c", f"({burn}); {burn}; cat /proc/$$/stat", **way)
    words = done.text.rpartition(") ")[2].split()
    ticks = [int(word) for word in words[11:15]]
    used = done.result["cpu_user"] + done.result["cpu_system"]
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert sum(ticks) > 0
    assert used >= (sum(ticks) - len(ticks)) * tick
    assert used <= done.result["duration"] * (os.cpu_count() or 1) + len(ticks) * tick
    idle = run(peer, "true", **way).result
    assert 0 <= idle["cpu_user"] + idle["cpu_system"] < used


@WAYS
def test_peak_memory_is_the_programs_and_not_the_supervisors(peer: Peer, way: dict[str, str]) -> None:
    """A program smaller than the supervisor has no peak that could be told: the kernel counts from the spawn."""
    big = 300 * 1024 * 1024
    # head keeps one line, and a line without an end is all of it.
    done = run(peer, "sh", "-c", f"head -c {big} /dev/zero | tail -n 1 | wc -c", **way)
    assert int(done.text) == big
    assert big <= done.result["peak_memory"] < 2 * big + 64 * 1024 * 1024
    small = run(peer, "true", **way).result["peak_memory"]
    assert small is None or small < 64 * 1024 * 1024


# ------------------------------------------------------------------------------------------------------------- output

_ALL = bytes(range(256))


@WAYS
def test_all_byte_values_come_through_on_both_streams_apart(peer: Peer, way: dict[str, str]) -> None:
    octal = "".join(f"\\{value:03o}" for value in range(256))
    loop = f"i=0; while [ $i -lt 50 ]; do i=$((i+1)); printf '{octal}'; printf '{octal}{octal}' >&2; done"
    done = run(peer, "sh", "-c", loop, **way)
    assert done.stdout == _ALL * 50
    assert done.stderr == _ALL * 100
    assert done.result["streams"]["stdout"] == {"bytes": 50 * 256, "kept_from": 0}
    assert done.result["streams"]["stderr"] == {"bytes": 100 * 256, "kept_from": 0}


def test_every_byte_has_its_offset_and_the_offsets_leave_no_hole(peer: Peer) -> None:
    """More than the window and the tape hold, on both streams at once, so that both wait for the reader in turn."""
    size = 3_000_000
    script = f"seq -w 1 {size // 8} & seq -w 1 {size // 8} >&2; wait"
    call = peer.open("exec", argv=["sh", "-c", script], tape=64 * 1024, window=128 * 1024)
    seen = {1: 0, 2: 0}
    while call.final is None:
        got = call.step()
        if got.kind is Kind.DATA:
            stream, offset, data = read_data(memoryview(got.payload))
            assert offset == seen[stream]
            seen[stream] += len(data)
    expected = b"".join(b"%06d\n" % number for number in range(1, size // 8 + 1))
    assert (call.stdout == expected, call.stderr == expected) == (True, True)
    assert {name: stream["bytes"] for name, stream in call.final["streams"].items()} == {
        "stdout": len(expected), "stderr": len(expected),
    }  # fmt: skip
    assert call.gaps == []


def test_output_comes_while_the_command_runs(peer: Peer) -> None:
    call = peer.open("exec", shell="echo first; read line; echo $line", stdin="stream")
    assert call.lines(1) == ["first"]
    call.data(0, b"second\n")
    assert call.lines(2) == ["first", "second"]
    assert call.end()["input"] == {"bytes": 7}


def test_input_comes_through_with_all_byte_values(peer: Peer) -> None:
    sent = _ALL * 2000
    call = peer.open("exec", argv=["cat"], stdin="stream")
    window = peer.hello["limits"]["window"]
    assert window >= 64 * 1024
    granted, at = window, 0
    while at < len(sent):
        piece = sent[at : min(at + 64 * 1024, granted)]
        call.data(at, piece)
        at += len(piece)
        while at == granted:
            got = call.step()
            granted += got.fields["bytes"] if got.kind is Kind.CREDIT else 0
    call.event(event="eof", offset=at)
    result = call.end()
    assert call.stdout == sent
    assert result["input"] == {"bytes": len(sent)}


def test_nothing_printed_is_nothing_counted(peer: Peer) -> None:
    done = run(peer, "true")
    assert (done.stdout, done.stderr) == (b"", b"")
    assert done.result["streams"] == {
        "stdout": {"bytes": 0, "kept_from": 0}, "stderr": {"bytes": 0, "kept_from": 0},
    }  # fmt: skip
    assert done.result["held"] == []


def test_the_pid_is_that_of_the_program(peer: Peer) -> None:
    for way in ({}, {"user": NOBODY}):
        call = peer.open("exec", shell="echo $$; read line", stdin="stream", **way)
        pid = call.accepted()["pid"]
        assert call.lines(1) == [str(pid)]
        with Watched(pid) as process:
            call.event(event="eof", offset=0)
            assert call.end()["pid"] == pid
            process.wait()


def test_results_of_many_ends_at_the_same_moment_are_not_mixed_up(peer: Peer) -> None:
    """All read their end of file in the same batch of frames, and leave orphans that nobody asked for."""
    calls = [
        peer.open("exec", shell=f"(true &); read line; exit {code}", stdin="stream", **way)
        for code, way in zip(range(1, 61), itertools.cycle([{}, {"user": NOBODY}]), strict=False)
    ]
    for call in calls:
        call.accepted()
    for call in calls:
        call.event(event="eof", offset=0)
    assert [call.end()["code"] for call in calls] == list(range(1, 61))
