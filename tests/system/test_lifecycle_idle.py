"""A session that nobody uses ends, announced; one that is used does not; it says at any time what it is, and why."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.life import Follower, serving
from tests.support.peer import PATIENCE, Failed, Peer
from tests.support.shells import PROMPT, bash, until_row

QUICK = '[idle]\ntimeout = "1s"\nwarning = "400ms"\n[stop]\ngrace = "5s"\n'


def _activity(peer: Peer) -> dict[str, Any]:
    return peer.ask("status")["activity"]


def test_an_idle_session_is_announced_and_stops() -> None:
    begun = time.monotonic()
    with serving(config=QUICK) as server, Peer(server.address) as peer:
        events = Follower(peer)
        assert events.next()["event"] == "started"
        soon = events.until("idle_soon")
        assert 0 <= soon["stops_in"] <= 0.4
        assert events.until("stopping")["cause"] == "idle"
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - begun >= 1.0


def test_who_only_looks_keeps_nothing_awake() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as peer, Peer(server.address) as other:
        events = Follower(other)
        for asked in range(100_000):
            try:
                peer.ask(("status", "ps")[asked % 2])
            except (EOFError, ConnectionError):
                assert asked > 10
                break
        assert events.until("stopping")["cause"] == "idle"
        assert server.process.wait(PATIENCE) == 0


def test_a_command_keeps_it_awake_and_a_background_command_does_not() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as peer, Peer(server.address) as other:
        events = Follower(other)
        for background, seconds in ((False, 2), (True, 100)):
            call = peer.open(
                "exec", shell=f"echo up; sleep {seconds}", id=f"b-{background}", background=background
            )
            call.lines(1)
            busy = _activity(peer)["busy"]
            assert busy == ([] if background else ["command b-False"])
            if not background:
                ended = call.end()
                assert ended["outcome"] == "exited", "it was not stopped in spite of the command"
        assert events.until("stopping")["cause"] == "idle"
        assert server.process.wait(PATIENCE) == 0


def test_idleness_begins_when_the_command_has_ended_and_not_when_it_was_looked_at() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as peer:
        events = Follower(peer)
        result = peer.ask("exec", shell="sleep 1.5")
        soon = events.until("idle_soon")
        assert 0.9 < soon["mono"] + soon["stops_in"] - result["ended_mono"] < 1.3
        events.until("stopping")
        assert server.process.wait(PATIENCE) == 0


def test_a_shell_at_its_prompt_is_idle_and_one_that_runs_a_program_is_not() -> None:
    with serving() as server, Peer(server.address) as peer:
        seat = bash(peer, id="s")
        assert _activity(peer)["busy"] == []
        seat.line("sleep 1000")
        row = until_row(peer, "s", state="running")
        while row["foreground"] is None or row["foreground"]["name"] != "sleep":
            row = until_row(peer, "s", state="running")
        assert _activity(peer)["busy"] == ["shell s: sleep"]
        seat.type(b"\x03")
        seat.read_until(PROMPT)
        while _activity(peer)["busy"]:
            pass
        assert "shell s" in _activity(peer)["last"]
        seat.line("sleep 1000 &")
        seat.read_until(PROMPT)
        assert _activity(peer)["busy"] == [], "a background job is nobody's work"


def test_a_program_that_has_no_prompt_is_busy_from_its_start() -> None:
    with serving() as server, Peer(server.address) as peer:
        call = peer.open("shell", argv=["sleep", "1000"], id="p")
        call.accepted()
        assert _activity(peer)["busy"] == ["shell p: sleep"]


def test_a_long_program_in_a_shell_keeps_it_awake_and_its_end_counts() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as peer, Peer(server.address) as other:
        events = Follower(other)
        seat = bash(peer, id="s")
        begun = time.monotonic()
        seat.line("sleep 2; echo done")
        seat.read_until(b"\ndone")
        assert events.until("stopping")["mono"] - begun > 2.9
        assert server.process.wait(PATIENCE) == 0


def test_an_attached_terminal_that_nobody_types_at_does_not_keep_it_awake() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as peer:
        seat = bash(peer)
        assert seat.end()["ended_by"] == "stop"
        assert server.process.wait(PATIENCE) == 0


def test_keys_keep_it_awake() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as peer:
        seat = bash(peer)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert seat.run("echo here") == "here"
            seat.call.data(seat.typed, b"")
        assert server.process.poll() is None


def test_a_hold_keeps_it_awake_while_its_channel_is_open() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as peer, Peer(server.address) as other:
        events = Follower(other)
        hold = peer.open("busy", by="the backup")
        hold.accepted()
        taken = time.monotonic()
        assert _activity(other)["busy"] == ["hold the backup"]
        peer.ask("exec", shell="sleep 2", background=True)
        released = time.monotonic()
        hold.reset()
        assert released - taken > 2
        assert events.until("stopping")["mono"] - released > 0.9
        assert server.process.wait(PATIENCE) == 0


def test_a_hold_ends_with_its_connection() -> None:
    with serving() as server, Peer(server.address) as other:
        with Peer(server.address) as peer:
            peer.open("busy").accepted()
            assert _activity(other)["busy"]
        while _activity(other)["busy"]:
            pass
        assert "hold" in _activity(other)["last"]


def test_a_hold_for_a_time_outlives_its_connection() -> None:
    with serving(config=QUICK) as server, Peer(server.address) as other:
        events = Follower(other)
        taken = time.monotonic()
        with Peer(server.address) as peer:
            assert peer.ask("busy", **{"for": 1.5, "by": "me"}) == {"by": "me", "for": 1.5}
        assert events.until("stopping")["mono"] - taken > 2.4
        assert server.process.wait(PATIENCE) == 0


def test_the_lifetime_ends_a_busy_session() -> None:
    config = '[idle]\nlifetime = "1s"\nwarning = "300ms"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        events = Follower(peer)
        call = peer.open("exec", argv=["sleep", "1000"])
        call.accepted()
        assert _activity(peer)["stops_for"] == "lifetime"
        assert 0 <= events.until("lifetime_soon")["stops_in"] <= 0.3
        assert events.until("stopping")["cause"] == "lifetime"
        assert call.end()["ended_by"] == "stop"
        assert server.process.wait(PATIENCE) == 0


def test_an_announced_end_is_taken_back_when_something_happens() -> None:
    config = '[idle]\ntimeout = "3s"\nwarning = "1500ms"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        events = Follower(peer)
        events.until("idle_soon")
        peer.ask("exec", argv=["true"])
        assert "command" in events.until("active")["why"]
        assert server.process.poll() is None


def test_both_can_be_changed_while_it_runs() -> None:
    with serving() as server, Peer(server.address) as peer:
        events = Follower(peer)
        found = peer.ask("timers", idle_timeout=0, lifetime=0)
        assert (found["idle_timeout"], found["lifetime"], found["stops_in"]) == (None, None, None)
        found = peer.ask("timers", lifetime=7200)
        assert (found["idle_timeout"], found["lifetime"], found["stops_for"]) == (None, 7200.0, "lifetime")
        peer.ask("timers", idle_timeout=0.5)
        assert events.until("stopping")["cause"] == "idle"
        assert server.process.wait(PATIENCE) == 0


def test_status_says_when_it_would_end_and_of_what() -> None:
    with serving() as server, Peer(server.address) as peer:
        peer.ask("exec", argv=["true"], id="one")
        found = _activity(peer)
        assert found["busy"] == []
        assert found["last"] == "command one"
        assert (found["idle_timeout"], found["lifetime"]) == (900.0, 28800.0)
        assert 890 < found["stops_in"] <= 900
        assert 28700 < found["lifetime_left"] < 28800


def test_events_are_numbered_kept_and_followed() -> None:
    with serving() as server, Peer(server.address) as peer:
        assert peer.open("events").accepted() == {"oldest": 1, "next": 2}
        for _ in range(1100):
            peer.ask("resume")
        call = peer.open("events")
        assert call.end() == {"next": 1102}
        assert [event["n"] for event in call.events] == list(range(102, 1102))
        last = peer.open("events", last=2)
        last.end()
        assert [event["n"] for event in last.events] == [1100, 1101]
        late = peer.open("events", from_=50)
        late.end()
        assert late.events[0] == {"event": "missed", "from": 50, "to": 102}
        assert late.events[1]["n"] == 102


@pytest.mark.parametrize(
    ("op", "fields"),
    [("busy", {"for": -1}), ("busy", {"by": 1}), ("events", {"from": "x"}), ("timers", {"lifetime": "long"})],
)
def test_a_wrong_field_is_named(op: str, fields: dict[str, Any]) -> None:
    with serving() as server, Peer(server.address) as peer:
        with pytest.raises(Failed) as refused:
            peer.ask(op, **fields)
        assert (refused.value.code, refused.value.fields["field"]) == ("bad_request", next(iter(fields)))
