"""The workload: one at a time, by policy, watched over, the first to hear of a stop, and heard in guestd's own log."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.life import Follower, serving
from tests.support.peer import PATIENCE, Failed, Peer, Watched
from tests.support.server import free_port

if TYPE_CHECKING:
    from pathlib import Path

#: Answers GET /ping with what the file says, and with a time that is always new.
APP = r"""
import http.server, json, pathlib, sys, time
class Ping(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        word = pathlib.Path(sys.argv[2]).read_text()
        if word == "hang":
            time.sleep(1000)
        body = json.dumps({"status": word, "time_of_last_update": time.time()}).encode()
        self.send_response(200 if word else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Ping).serve_forever()
"""


def _config(command: str | list[str], **more: object) -> str:
    fields = {"command": command, "backoff": "100ms", **more}
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    return "[workload]\n" + "\n".join(lines) + "\n"


def _workload(peer: Peer) -> dict[str, Any]:
    found: dict[str, Any] = peer.ask("status")["workload"]
    return found


# -------------------------------------------------------------------------------------------------------------- running


def test_it_is_a_job_and_what_it_prints_is_also_guestds_own(tmp_path: Path) -> None:
    config = (
        _config("echo out; echo err >&2; echo $HELLO; pwd; sleep 1000", cwd="/usr") + 'env.HELLO = "there"\n'
    )
    with serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open("attach", id="workload")
        assert call.lines(3) == ["out", "there", "/usr"]
        (row,) = peer.ask("ps")["jobs"]
        assert (row["id"], row["state"]) == ("workload", "running")
        assert _workload(peer)["pid"] == row["pid"]
        assert peer.ask("status")["activity"]["busy"] == [], "that it runs is no work"
        # Each of its two streams is copied on its own.
        while not ("err\n" in server.log and "/usr\n" in server.log):
            peer.ask("status")
        assert server.log.split("READY")[1].count("out\n") == 1


def test_flags_name_it_too() -> None:
    words = ["--", sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1000)"]
    with serving(arguments=words) as server, Peer(server.address) as peer:
        assert peer.open("attach", id="workload").lines(1) == ["up"]


def test_it_is_started_again_by_policy_and_its_runs_are_kept(tmp_path: Path) -> None:
    count = tmp_path / "count"
    line = f"echo run >> {count}; echo run $(wc -l < {count}); exit $(( $(wc -l < {count}) < 3 ))"
    with serving(config=_config(line)) as server, Peer(server.address) as peer:
        events = Follower(peer)
        statuses = [events.until("workload_exited") for _ in range(3)]
        assert [each["status"] for each in statuses] == [1, 1, 0]
        assert [each["again_in"] for each in statuses] == [0.1, 0.2, None]
        assert [row["id"] for row in peer.ask("ps")["jobs"]] == ["workload-1", "workload-2", "workload"]
        first = peer.open("attach", id="workload-1")
        first.end()
        assert first.stdout.split() == [b"run", b"1"]
        found = _workload(peer)
        assert (found["state"], found["starts"]) == ("ended", 3)


@pytest.mark.parametrize(
    ("restart", "status", "again"),
    [
        ("never", 1, False),
        ("never", 0, False),
        ("on-failure", 0, False),
        ("on-failure", 1, True),
        ("always", 0, True),
    ],
)
def test_the_policies(restart: str, status: int, again: bool) -> None:
    with serving(config=_config(f"exit {status}", restart=restart)) as server, Peer(server.address) as peer:
        ended = Follower(peer).until("workload_exited")
        assert (ended["status"], ended["again_in"] is not None) == (status, again)


def test_what_cannot_be_started_is_tried_again_with_patience() -> None:
    with serving(config=_config(["/nowhere"], backoff_max="400ms")) as server, Peer(server.address) as peer:
        events = Follower(peer)
        waits = [events.until("workload_exited") for _ in range(4)]
        assert [each["again_in"] for each in waits] == [0.1, 0.2, 0.4, 0.4]
        assert {(each["outcome"], each["status"]) for each in waits} == {("not_started", 127)}


def test_nobody_else_can_be_it_also_while_there_is_none() -> None:
    config = _config("exit 1", backoff="1h", backoff_max="1h") + "[command]\nretain = 0\n"
    with serving(config=config) as server, Peer(server.address) as peer:
        Follower(peer).until("workload_exited")
        while peer.ask("ps")["jobs"]:
            pass
        for op in ("exec", "shell"):
            with pytest.raises(Failed) as refused:
                peer.ask(op, id="workload", argv=["true"])
            assert refused.value.code == "conflict"


def test_killed_by_hand_it_comes_again_and_only_once(tmp_path: Path) -> None:
    with serving(config=_config("echo $$; sleep 1000 & wait")) as server, Peer(server.address) as peer:
        events = Follower(peer)
        pids = [events.until("workload_started")["pid"]]
        for _ in range(3):
            with Watched(pids[-1]) as before:
                peer.ask("kill", id="workload")
                pids.append(events.until("workload_started")["pid"])
                assert not before.lives
        assert len(set(pids)) == 4
        assert _workload(peer)["starts"] == 4


def test_its_exit_can_end_the_session() -> None:
    config = _config("sleep 0.2; exit 7", exit_ends_session=True, restart="never")
    with serving(config=config, expected_status=7) as server, Peer(server.address) as peer:
        other = peer.open("exec", argv=["sleep", "1000"])
        events = Follower(peer)
        assert events.until("stopping")["cause"] == "workload"
        assert other.end()["ended_by"] == "stop"
        assert server.process.wait(PATIENCE) == 7
        receipt = json.loads((server.directory / "receipt.json").read_text())
        assert (receipt["workload"]["status"], receipt["status"], receipt["action"]) == (7, 7, "exit")


def test_a_flood_of_output_is_heard_by_nobody_and_holds_up_nothing() -> None:
    """The stdout of guestd itself is a pipe here that nobody reads."""
    import os

    read, write = os.pipe()
    starter = "import os, sys; os.dup2(int(sys.argv[1]), 1); os.execv(sys.argv[2], sys.argv[2:])"
    line = "head -c 20000000 /dev/zero; echo done >&2; sleep 1000"
    try:
        with (
            serving(
                config=_config(line), prefix=[sys.executable, "-c", starter, str(write)], pass_fds=[write]
            ) as server,
            Peer(server.address) as peer,
        ):
            call = peer.open("attach", id="workload")
            while call.stderr != b"done\n":
                call.step()
            begun = time.monotonic()
            peer.ask("stop", grace=PATIENCE)
            assert server.process.wait(PATIENCE) == 0
            assert time.monotonic() - begun < PATIENCE
    finally:
        os.close(read)
        os.close(write)


# ------------------------------------------------------------------------------------------------------------- stopping


def test_it_hears_of_the_stop_before_all_others(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def program(name: str, seconds: float) -> str:
        ending = f"echo {name} >> {log}; sleep {seconds}; echo {name} ended >> {log}; exit"
        return f"trap '{ending}' TERM; echo up; while :; do sleep 0.02; done"

    with serving(config=_config(program("workload", 0.3))) as server, Peer(server.address) as peer:
        peer.open("attach", id="workload").lines(1)
        peer.open("exec", shell=program("command", 0)).lines(1)
        receipt = peer.ask("stop")
        assert log.read_text().splitlines() == ["workload", "workload ended", "command", "command ended"]
        assert (receipt["workload"]["outcome"], receipt["workload"]["ended_by"]) == ("exited", "stop")
        assert server.process.wait(PATIENCE) == 0


def test_nothing_new_is_started_while_it_has_its_head_start() -> None:
    config = _config("trap 'echo heard' TERM; echo up; while :; do sleep 0.02; done")
    with serving(config=config) as server, Peer(server.address) as peer:
        call = peer.open("attach", id="workload")
        call.lines(1)
        other = peer.open("exec", argv=["sleep", "1000"], id="other")
        other.accepted()
        stopping = peer.open("stop", grace=3600)
        call.lines(2)
        with pytest.raises(Failed) as refused:
            peer.ask("exec", argv=["true"])
        assert refused.value.code == "shutting_down"
        assert peer.ask("ps")["jobs"][1]["state"] == "running", "its turn comes later"
        peer.ask("stop", grace=0)
        assert stopping.end()["grace"] == 3600


def test_one_that_does_not_want_to_end_leaves_the_others_their_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = f"trap 'echo bye > {log}; exit' TERM; echo up; while :; do sleep 0.02; done"
    with (
        serving(config=_config("trap '' TERM; echo up; while :; do sleep 0.05; done")) as server,
        Peer(server.address) as peer,
    ):
        peer.open("attach", id="workload").lines(1)
        peer.open("exec", shell=command).lines(1)
        receipt = peer.ask("stop", grace=2)
        assert receipt["workload"]["status"] == 137
        assert log.read_text() == "bye\n"


def test_stopped_it_is_not_started_again() -> None:
    config = _config("trap 'exit 1' TERM; echo up; while :; do sleep 0.02; done", restart="always")
    with serving(config=config) as server, Peer(server.address) as peer:
        events = Follower(peer)
        peer.open("attach", id="workload").lines(1)
        server.process.send_signal(signal.SIGTERM)
        assert events.until("workload_exited")["again_in"] is None
        assert server.process.wait(PATIENCE) == 0


def test_a_stop_waits_for_none_that_is_not_there() -> None:
    config = _config(["/nowhere"], backoff="1h", backoff_max="1h")
    with serving(config=config) as server, Peer(server.address) as peer:
        Follower(peer).until("workload_exited")
        receipt = peer.ask("stop", grace=60)
        assert receipt["took"] < 10
        assert receipt["workload"]["outcome"] == "not_started"


def test_its_last_words_are_copied() -> None:
    config = _config("trap 'echo last words; exit' TERM; echo up; while :; do sleep 0.02; done")
    with serving(config=config) as server, Peer(server.address) as peer:
        peer.open("attach", id="workload").lines(1)
        peer.ask("stop")
        assert server.process.wait(PATIENCE) == 0
        assert "last words" in server.log


# --------------------------------------------------------------------------------------------------------------- health


def test_it_says_that_it_is_busy_and_the_session_believes_it(tmp_path: Path) -> None:
    word, port = tmp_path / "word", free_port()
    word.write_text("HealthyBusy")
    line = shlex.join([sys.executable, "-c", APP, str(port), str(word)])
    config = (
        _config(line, health=f"http://127.0.0.1:{port}/ping", health_interval="100ms", health_timeout="1s")
        + '[idle]\ntimeout = "2s"\nwarning = "0"\n'
    )
    with serving(config=config) as server, Peer(server.address) as peer, Peer(server.address) as other:
        events = Follower(other)
        events.until("workload_health", health="busy")
        assert peer.ask("status")["activity"]["busy"] == ["workload says that it is busy"]
        peer.ask("exec", shell="sleep 2.5", background=True)
        assert server.process.poll() is None
        word.write_text("hang")
        failing = events.until("workload_health", health="failing")
        assert "no answer within 1 s" in failing["why"]
        word.write_text("HealthyBusy")
        events.until("workload_health", health="busy")
        word.write_text("Healthy")
        became = events.until("workload_health", health="healthy")
        # Its own time is always new; that it answers is no work.
        stopping = events.until("stopping")
        assert stopping["cause"] == "idle"
        assert stopping["mono"] - became["mono"] > 1.9
        assert server.process.wait(PATIENCE) == 0


def test_health_by_tcp_and_by_command(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "word").write_text("Healthy")
    line = shlex.join([sys.executable, "-c", APP, str(port), str(tmp_path / "word")])
    flag = tmp_path / "flag"
    for health, begin in ((f"tcp:{port}", lambda: None), (f"command:test -e {flag}", flag.touch)):
        config = _config(line, health=health, health_interval="100ms")
        with serving(config=config) as server, Peer(server.address) as peer:
            events = Follower(peer)
            if flag.exists() or "command" in health:
                assert events.until("workload_health")["health"] == "failing"
            begin()
            events.until("workload_health", health="healthy")
            assert peer.ask("status")["activity"]["busy"] == []
            assert {row["id"] for row in peer.ask("ps")["jobs"]} <= {"workload", "workload-health"}
