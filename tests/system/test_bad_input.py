"""What no client should send and no command should do: each costs what it has to, and nobody else notices."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import PREFACE, Kind, encode
from guestd.wire.messages import pack
from tests.support.commands import NOBODY, run, serving_commands
from tests.support.peer import Failed, Peer, Raw, Watched, living

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.peer import Call
    from tests.support.server import Server

WAYS = pytest.mark.parametrize("way", [{}, {"user": NOBODY}], ids=["direct", "launcher"])
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, Peer]]:
    with serving_commands() as served:
        yield served


@pytest.fixture
def peer(served: tuple[Server, Peer]) -> Peer:
    return served[1]


def memory(pid: int) -> int:
    """Resident memory, without what it shares: the pages of tapes count."""
    with open(f"/proc/{pid}/status") as file:
        sizes = {line.partition(":")[0]: line.split()[1] for line in file if line.startswith("Rss")}
    return (int(sizes["RssAnon"]) + int(sizes["RssShmem"])) * 1024


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def refused(peer: Peer, **fields: Any) -> Failed:  # noqa: ANN401
    """A request that is turned down, and the same connection that goes on."""
    before = peer.ask("status")["jobs"]["started"]
    with pytest.raises(Failed) as failed:
        peer.ask("exec", **fields)
    assert failed.value.kind is Kind.REJECT
    assert peer.ask("status")["jobs"]["started"] == before
    return failed.value


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"argv": []}, "argv"),
        ({}, "argv"),
        ({"argv": ["true"], "shell": "true"}, "argv"),
        ({"argv": "true"}, "argv"),
        ({"argv": ["true", 7]}, "argv[1]"),
        ({"argv": ["true", None]}, "argv[1]"),
        ({"argv": ["true", "with\0nul"]}, "argv[1]"),
        ({"argv": [b"tr\0ue"]}, "argv[0]"),
        ({"shell": "true\0"}, "shell"),
        ({"shell": ["true"]}, "shell"),
        ({"argv": ["true"], "env": {"NAME": "with\0nul"}}, "env.NAME"),
        ({"argv": ["true"], "env": {"NA\0ME": "x"}}, "env"),
        ({"argv": ["true"], "env": {"NA=ME": "x"}}, "env"),
        ({"argv": ["true"], "env": {"": "x"}}, "env"),
        ({"argv": ["true"], "env": {"NAME": 7}}, "env.NAME"),
        ({"argv": ["true"], "env": ["NAME=x"]}, "env"),
        ({"argv": ["true"], "cwd": "/with\0nul"}, "cwd"),
        ({"argv": ["true"], "cwd": 7}, "cwd"),
        ({"argv": ["true"], "cwd": "/" * 5000}, "cwd"),
        ({"argv": ["true"], "user": "with\0nul"}, "user"),
        ({"argv": ["true"], "user": -1}, "user"),
        ({"argv": ["true"], "user": 2**32 - 1}, "user"),
        ({"argv": ["true"], "user": True}, "user"),
        ({"argv": ["true"], "group": []}, "group"),
        ({"argv": ["true"], "groups": [1.5]}, "groups"),
        ({"argv": ["true"], "groups": [-1]}, "groups"),
        ({"argv": ["true"], "groups": ["a\0b"]}, "groups"),
        ({"argv": ["true"], "stdin": "maybe"}, "stdin"),
        ({"argv": ["true"], "umask": 0o1000}, "umask"),
        ({"argv": ["true"], "nice": 20}, "nice"),
        ({"argv": ["true"], "oom_score_adj": 1001}, "oom_score_adj"),
        ({"argv": ["true"], "rlimits": {"cheese": 1}}, "rlimits"),
        ({"argv": ["true"], "rlimits": {"nofile": [2, 1]}}, "rlimits.nofile"),
        ({"argv": ["true"], "rlimits": {"nofile": -1}}, "rlimits.nofile"),
        ({"argv": ["true"], "rlimits": {"nofile": []}}, "rlimits.nofile"),
        ({"argv": ["true"], "timeout": -1}, "timeout"),
        ({"argv": ["true"], "timeout": float("nan")}, "timeout"),
        ({"argv": ["true"], "timeout": float("inf")}, "timeout"),
        ({"argv": ["true"], "tape": 1}, "tape"),
        ({"argv": ["true"], "id": ""}, "id"),
        ({"argv": ["true"], "id": "../../etc"}, "id"),
        ({"argv": ["true"], "id": "x" * 200}, "id"),
        ({"argv": ["true"], "scope": "everything"}, "scope"),
        ({"argv": ["true"], "from": {"stdlog": 0}}, "from"),
        ({"argv": ["true"], "window": -1}, "window"),
        ({"argv": ["true"], "traceparent": "a\0b"}, "traceparent"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_bad_field_is_named_with_what_was_expected(peer: Peer, fields: dict[str, Any], field: str) -> None:
    error = refused(peer, **fields)
    assert (error.code, error.fields["field"]) == ("bad_request", field)
    assert error.fields["expected"]
    assert len(error.fields["message"]) < 1000


@pytest.mark.parametrize(
    ("fields", "setting"),
    [
        ({"argv": ["true", "x" * (2 * MIB)]}, "limits.argv"),
        ({"argv": ["true"] * 700_000}, "limits.argv"),
        ({"argv": ["true"], "env": {"BIG": "x" * MIB}}, "limits.env"),
    ],
    ids=["a long word", "many words", "env"],
)
def test_what_is_over_a_limit_names_it(peer: Peer, fields: dict[str, Any], setting: str) -> None:
    error = refused(peer, **fields)
    assert (error.code, error.fields["setting"]) == ("limit", setting)
    assert str(error.fields["limit"]) in error.fields["message"]


@WAYS
def test_a_hundred_kilobytes_of_environment_arrive(peer: Peer, way: dict[str, str]) -> None:
    env = {f"VARIABLE_{n}": f"{n:01000d}" for n in range(100)}
    script = "env | grep -c ^VARIABLE_; echo ${#VARIABLE_99}"
    assert run(peer, "sh", "-c", script, env=env, **way).text == "100\n1000"


@WAYS
def test_as_many_words_as_the_kernel_takes_arrive(peer: Peer, way: dict[str, str]) -> None:
    """More than fits into one message to the launcher."""
    words = ["x" * 1000] * 1000
    assert run(peer, "sh", "-c", 'echo $# "${#1000}"', "sh", *words, **way).text == "1000 1000"


@WAYS
@pytest.mark.parametrize("text", ["# nothing but a comment", "", " ", "\n", ":"])
def test_a_line_that_does_nothing_does_it_well(peer: Peer, way: dict[str, str], text: str) -> None:
    done = run(peer, shell=text, **way)
    assert (done.text, done.stderr) == ("", b"")


def test_a_line_that_is_no_line_is_the_shells_to_refuse(peer: Peer) -> None:
    done = run(peer, shell="if then (")
    assert (done.result["outcome"], done.result["code"]) == ("exited", 2)
    assert b"yntax error" in done.stderr


# ----------------------------------------------------------------------------------------------------------- commands


@WAYS
def test_a_background_child_is_left_running_and_named_and_ends_on_request(
    peer: Peer, way: dict[str, str]
) -> None:
    call = peer.open("exec", shell="sleep 1000 & echo $!", **way)
    result = call.end()
    with Watched(int(call.stdout)) as child:
        assert (result["outcome"], result["code"], result["held"]) == ("exited", 0, ["stdout", "stderr"])
        assert result["left"] == {"count": 1, "processes": [{"pid": child.pid, "name": "sleep"}]}
        assert child.lives
        assert peer.ask("kill", id=result["id"], grace=30)["killed_left"] == 1
        child.wait()


@WAYS
def test_a_daemon_forked_twice_into_a_session_of_its_own_is_still_found(
    peer: Peer, way: dict[str, str]
) -> None:
    script = "(setsid sh -c 'cd /; echo $$; exec sleep 1000 </dev/null >/dev/null 2>&1' &) ; wait"
    call = peer.open("exec", argv=["sh", "-c", script + "; cat"], stdin="stream", **way)
    with Watched(int(call.lines(1)[0])) as daemon:
        peer.ask("kill", id=call.accepted()["id"], grace=30)
        result = call.end()
        daemon.wait()
        assert daemon.pid in {process["pid"] for process in result["killed"]["processes"]}
        assert result["unreached"]["count"] == 0


@WAYS
def test_a_command_that_closes_its_own_output_runs_on(peer: Peer, way: dict[str, str]) -> None:
    script = "echo first; exec >&-; echo lost 2>/dev/null; echo second >&2; exec 2>&-; read line; exit $line"
    call = peer.open("exec", argv=["sh", "-c", script], stdin="stream", **way)
    call.read_until("stderr", len(b"second\n"))
    call.data(0, b"7\n")
    assert call.end()["code"] == 7
    assert (call.stdout, call.stderr) == (b"first\n", b"second\n")


def test_a_command_that_does_not_read_its_input_does_not_hold_up_its_sender(peer: Peer) -> None:
    call = peer.open("exec", argv=["true"], stdin="stream")
    call.accepted()
    for at in range(0, 256 * 1024, 64 * 1024):
        call.data(at, bytes(64 * 1024))
    assert call.end()["code"] == 0


def test_a_gigabyte_for_a_client_that_reads_nothing_costs_a_tape(served: tuple[Server, Peer]) -> None:
    """Held: the command waits, and nothing else does. Let go: it runs to its end, and the newest are kept."""
    server, peer = served
    run(peer, "head", "-c", str(4 * MIB), "/dev/zero", tape=MIB)
    size = 1024 * MIB
    with Peer(server.address) as lazy:
        before = memory(server.pid)
        call = lazy.open("exec", argv=["head", "-c", str(size), "/dev/zero"], tape=MIB, id="gigabyte")
        pid = call.accepted()["pid"]
        # Full: the tape, the credit, the pipe. Then it sleeps in its write.
        with open(f"/proc/{pid}/syscall") as syscall:
            seen = ""
            while not (seen.startswith("1 ") and seen == _again(syscall)):
                seen = _again(syscall)
                assert run(peer, "echo", "here").text == "here"
        grown = memory(server.pid) - before
        assert grown < 16 * MIB, grown
        assert [row["state"] for row in peer.ask("ps")["jobs"] if row["id"] == "gigabyte"] == ["running"]
    # Nobody holds it any more.
    watching = peer.open("attach", id="gigabyte", from_="end")
    peak = 0
    while watching.final is None:
        watching.step()
        watching.output[1].clear()
        peak = max(peak, memory(server.pid) - before)
    assert watching.final["code"] == 0
    assert watching.final["streams"]["stdout"]["bytes"] == size
    assert watching.at[1] == size
    assert peak < 16 * MIB, peak


def _again(file: Any) -> str:  # noqa: ANN401
    file.seek(0)
    return str(file.read())


# ------------------------------------------------------------------------------------------------------- many at once


def test_the_same_id_twice_at_the_same_instant_is_one_process(served: tuple[Server, Peer]) -> None:
    """From connections of their own, each frame ready before the first is sent. Both ways to start, many times."""
    server, _ = served
    with Peer(server.address) as one, Peer(server.address) as two:
        for n in range(20):
            for way in ({}, {"user": NOBODY}):
                fields: dict[str, Any] = {
                    "argv": ["sh", "-c", "echo $$"],
                    "id": f"once-{n}-{len(way)}",
                    **way,
                }
                barrier = threading.Barrier(2)
                calls: list[Call] = []

                def start(
                    peer: Peer, fields: dict[str, Any] = fields, barrier: threading.Barrier = barrier
                ) -> None:
                    barrier.wait()
                    calls.append(peer.open("exec", **fields))  # noqa: B023  both of this round

                threads = [threading.Thread(target=start, args=(peer,)) for peer in (one, two)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                accepted = [call.accepted() for call in calls]
                ended = [call.end() for call in calls]
                assert sorted(each["created"] for each in accepted) == [False, True]
                assert accepted[0]["pid"] == accepted[1]["pid"]
                assert ended[0] == ended[1]
                assert [call.stdout for call in calls] == [b"%d\n" % accepted[0]["pid"]] * 2


def test_another_body_under_the_same_id_is_a_conflict(peer: Peer) -> None:
    assert run(peer, "echo", "one", id="taken").text == "one"
    assert run(peer, "echo", "one", id="taken").text == "one"
    assert refused(peer, argv=["echo", "two"], id="taken").code == "conflict"
    assert refused(peer, argv=["echo", "one"], id="taken", user=NOBODY).code == "conflict"


@WAYS
def test_two_hundred_at_once_all_run_at_the_same_time(peer: Peer, way: dict[str, str]) -> None:
    calls = [peer.open("exec", argv=["sh", "-c", "echo $$; cat"], stdin="stream", **way) for _ in range(200)]
    pids = {int(call.lines(1)[0]) for call in calls}
    assert len(pids) == 200
    assert pids <= set(living())
    for n, call in enumerate(calls):
        call.data(0, b"%d" % n)
        call.event(event="eof", offset=len(b"%d" % n))
    for n, call in enumerate(calls):
        assert call.end()["code"] == 0
        assert call.stdout.splitlines()[1] == b"%d" % n


def test_ten_thousand_channels_opened_and_reset_leave_nothing(served: tuple[Server, Peer]) -> None:
    server, _ = served
    run(served[1], "true")
    with Peer(server.address) as peer:
        _open_and_reset(peer, 2000)
        before, used = memory(server.pid), descriptors(server.pid)
        _open_and_reset(peer, 10_000)
        assert memory(server.pid) - before < 8 * MIB
        assert descriptors(server.pid) <= used
        assert run(peer, "echo", "here").text == "here"


def _open_and_reset(peer: Peer, count: int) -> None:
    """Channels that would wait for long, in batches: what is asked must also be listened to."""
    name = peer.open("exec", argv=["cat"], stdin="stream").accepted()["id"]
    for _ in range(0, count, 500):
        calls = [peer.open("wait" if n % 2 else "attach", id=name) for n in range(500)]
        for call in calls:
            call.reset()
        for call in calls:
            with pytest.raises(Failed) as failed:
                call.end()
            assert failed.value.kind is Kind.RESET
    assert [row["attached"] for row in peer.ask("ps")["jobs"] if row["id"] == name] == [1]
    peer.ask("kill", id=name, grace=30)


# -------------------------------------------------------------------------------------------------------------- frames


def test_a_conversation_split_at_any_point_is_the_same_conversation(served: tuple[Server, Peer]) -> None:
    """Against the real server: the first part arrives, is acted upon, and only then the rest is sent."""
    server, _ = served
    hello = encode(Kind.HELLO, 0, pack({"version": 1, "limits": {"window": 65536, "frame": 65536}}))
    exec_ = encode(Kind.OPEN, 1, pack({"op": "exec", "argv": ["cat"], "stdin": "stream"}))
    data = encode(Kind.DATA, 1, b"\0" + bytes(8) + b"split")
    eof = encode(Kind.EVENT, 1, pack({"event": "eof", "offset": 5}))
    conversation = PREFACE + hello + exec_ + data + eof
    for at in range(len(conversation)):
        with Raw(server.address) as raw:
            raw.send(conversation[:at])
            said = b""
            if at >= len(PREFACE) + len(hello):
                # Its hello is the event: the server has read all that was there.
                said = raw.sock.recv(65536)
                assert said.startswith(PREFACE)
            raw.send(conversation[at:])
            while b"outcome" not in said:
                piece = raw.sock.recv(65536)
                assert piece, f"closed, split at {at}"
                said += piece
            assert b"\x01" + bytes(8) + b"split" in said


@pytest.mark.parametrize(
    ("bytes_", "code"),
    [
        (b"\0guestd\x02", "protocol"),
        (PREFACE + b"\xff\xff\xff\xff", "protocol"),
        (PREFACE + b"\x00\x00\x00\x00", "protocol"),
        (PREFACE + encode(Kind.OPEN, 1, pack({"op": "ps"})), "protocol"),
        (PREFACE + encode(Kind.HELLO, 0, b"\xc1"), "protocol"),
        (PREFACE + encode(Kind.HELLO, 0, pack({"version": 0})), "version"),
    ],
    ids=["preface", "giant", "tiny", "no hello", "nonsense", "version"],
)
def test_nonsense_ends_its_own_connection_with_a_reason(
    served: tuple[Server, Peer], bytes_: bytes, code: str
) -> None:
    server, peer = served
    with Raw(server.address) as raw:
        raw.send(bytes_)
        assert raw.last_words()["code"] == code
    assert run(peer, "echo", "here").text == "here"


def test_the_log_says_why_each_was_dropped(served: tuple[Server, Peer]) -> None:
    """And nothing else: no traceback, whatever came."""
    server, _ = served
    assert "Traceback" not in server.log
    assert "dropped: " in server.log
