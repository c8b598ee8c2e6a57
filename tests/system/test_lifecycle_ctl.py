"""The life of a session in the hands of a person: guestctl busy, events, timers, stop, resume."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from guestd.process.members import children_of
from tests.support.life import serving
from tests.support.peer import PATIENCE, Peer
from tests.support.relay import Relay
from tests.support.survivor import surviving
from tests.system.test_ctl import guestctl, started

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def _run(address: str, *arguments: str) -> str:
    done = guestctl(address, *arguments)
    assert (done.returncode, done.stderr) == (0, b""), (done.stdout, done.stderr)
    return done.stdout.decode()


def _json(address: str, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run(address, "--json", *arguments))
    return found


def _busy(peer: Peer) -> Sequence[str]:
    found: Sequence[str] = peer.ask("status")["activity"]["busy"]
    return found


def test_busy_for_a_time() -> None:
    with serving() as server, Peer(server.address) as peer:
        assert _run(server.address, "busy", "--for", "10m", "--by", "the backup") == "busy for 600 s\n"
        assert _busy(peer) == ["hold the backup"]
        assert "busy: hold the backup" in _run(server.address, "status")


def test_busy_until_ctrl_c() -> None:
    with (
        serving() as server,
        Peer(server.address) as peer,
        started(server.address, "busy", "--by", "me") as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"busy until Ctrl+C\n"
        assert _busy(peer) == ["hold me"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        while _busy(peer):
            pass


def test_busy_while_a_command_runs_here_and_ends_as_it_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    with serving() as server, Peer(server.address) as peer:
        line = f"read x < {tmp_path}/gate; exit $x"
        with started(server.address, "busy", "--", "sh", "-c", line) as process:
            with (tmp_path / "gate").open("w") as gate:
                assert _busy(peer) == ["hold guestctl busy -- sh"]
                gate.write("7\n")
            assert process.wait(PATIENCE) == 7
        while _busy(peer):
            pass
    done = guestctl("unix:/nowhere/guestd.sock", "busy", "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 125
    assert not (tmp_path / "ran").exists(), "what was to be kept awake for is not run without"


def test_busy_passes_a_signal_on() -> None:
    with serving() as server, Peer(server.address) as peer:
        with started(server.address, "busy", "--", "sleep", "1000") as process:
            while not _busy(peer):
                pass
            (child,) = _children(process.pid)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM
            assert not os.path.exists(f"/proc/{child}")
        assert guestctl(server.address, "busy", "--", "/nowhere").returncode == 127


def _children(pid: int) -> list[int]:
    # Of whichever thread has started them.
    while not (found := children_of(pid)):
        pass
    return found


def test_a_background_command_keeps_nothing_awake() -> None:
    with serving() as server, Peer(server.address) as peer:
        _run(server.address, "exec", "--background", "--detach", "--id", "b", "--", "sleep", "1000")
        assert _busy(peer) == []
        _run(server.address, "exec", "--detach", "--id", "f", "--", "sleep", "1000")
        assert _busy(peer) == ["command f"]


def test_events_are_lines_and_followed_to_the_end_of_the_session() -> None:
    with serving() as server:
        assert "  started  session_id=" in _run(server.address, "events")
        assert _json(server.address, "events", "--last", "1")["event"] == "started"
        with started(server.address, "--json", "events", "-f") as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "started"
            assert guestctl(server.address, "stop").returncode == 0
            rest = [json.loads(line)["event"] for line in process.stdout]
            assert rest == ["stopping", "stopped"]
            assert process.wait(PATIENCE) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""


def test_events_are_followed_over_lost_connections(tmp_path: Path) -> None:
    with (
        serving() as server,
        Peer(server.address) as peer,
        Relay(tmp_path / "relay", server.path) as relay,
        started(relay.address, "--json", "events", "-f") as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "started"
        for more in range(2, 4):
            relay.cut()
            assert b"; next try in 1 s" in process.stderr.readline()
            peer.ask("resume")
            relay.mend()
            resumed = json.loads(process.stdout.readline())
            assert (resumed["event"], resumed["n"]) == ("resumed", more)
            assert process.stderr.readline() == b"guestctl: connected again\n"
        assert server.stop() == 0
        assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["stopping", "stopped"]
        relay.cut()  # whether its last words have come through by then, or not
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("how", ["killed", "replaced"])
async def test_the_events_of_the_next_guestd_are_followed_from_its_first(how: str) -> None:
    with (
        surviving("[init]\nrestart_delay = '10ms'\nrestart_delay_max = '10ms'\n") as survivor,
        started(survivor.address, "--json", "events", "-f") as process,
    ):
        before = await _event(process)
        await (survivor.kill_serve() if how == "killed" else survivor.upgrade())
        after = await _event(process)
        for each in (before, after):
            assert (each["event"], each["n"]) == ("started", 1)
        assert after["generation"] == before["generation"] + 1
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


async def _event(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(await trio.to_thread.run_sync(process.stdout.readline))
    return found


def test_the_audit_log_is_followed_over_a_lost_connection(tmp_path: Path) -> None:
    with (
        serving() as server,
        Peer(server.address) as peer,
        Relay(tmp_path / "relay", server.path) as relay,
        started(relay.address, "--json", "events", "--audit", "-f") as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [json.loads(process.stdout.readline())]
        relay.cut()
        assert b"; next try in 1 s" in process.stderr.readline()
        peer.open("exec", argv=["true"], id="meanwhile").end()
        relay.mend()
        while lines[-1].get("job") != "meanwhile":
            lines.append(json.loads(process.stdout.readline()))
        assert [line["n"] for line in lines] == [*range(1, len(lines) + 1)]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_timers_are_shown_and_set() -> None:
    with serving() as server:
        assert _run(server.address, "timers").endswith("(idle; idle 15m00s, lifetime 8h00m)\n")
        assert (
            _run(server.address, "timers", "--idle", "0", "--lifetime", "0")
            == "not by itself (idle never, lifetime never)\n"
        )
        assert _json(server.address, "timers")["stops_in"] is None


def test_stop_prints_the_receipt() -> None:
    with serving() as server, Peer(server.address) as peer:
        peer.open("exec", argv=["sleep", "1000"], id="work").accepted()
        text = _run(server.address, "stop", "--grace", "10")
        assert text.startswith("stopped (asked, asked by unix uid ")
        assert "  ended       work: signaled, status 143\n" in text
        assert "  on disk     " in text
        assert server.process.wait(PATIENCE) == 0
        done = guestctl(server.address, "stop")
        assert done.returncode == 125


def test_resume_says_what_was_mended() -> None:
    with serving() as server:
        text = _run(server.address, "resume")
        found = _json(server.address, "status")
        assert f"session     {found['session_id']}, generation 1\n" in text
        assert re.search(r"^clock       (right|set, by [+-]0\.\d+ s)$", text, re.MULTILINE), text
        assert "random      seeded anew\n" in text
        assert "connections 1 kept, 0 dropped" in text
        assert _json(server.address, "resume", "--no-clock")["generation"] == 2


def test_help_names_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guestd.ctl", "--help"], capture_output=True, text=True, check=True
    )
    for name in ("busy", "events", "timers", "stop", "resume"):
        assert f"\n  {name} " in done.stdout
