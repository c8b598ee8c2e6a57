"""What `ps` says of shells: who sits there, what runs, where, since when."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import serving_commands
from tests.support.peer import Peer
from tests.support.shells import DIALECTS, PROMPT, RAW, Seat, bash, row_of, until_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


def test_a_quiet_shell_has_every_field(peer: Peer) -> None:
    before = time.time()
    seat = Seat(
        peer, shell=f"{RAW} exec sleep 1000", client="me", size={"columns": 70, "rows": 20}, cwd="/usr"
    )
    known = seat.accepted()
    row = until_row(peer, seat.id, foreground={"pid": known["pid"], "name": "sleep", "command": "sleep 1000"})
    (viewer,) = row["viewers"]
    assert before <= viewer.pop("since") <= time.time()
    assert viewer == {"peer": row["owner"], "role": "owner", "client": "me"}
    assert before <= row["started_at"] <= time.time()
    assert 0 <= row["age"] < 60
    expected = {
        "id": seat.id, "kind": "shell", "pid": known["pid"], "state": "running", "attached": 1, "user": "root",
        "command": f"{RAW} exec sleep 1000", "cwd": "/usr", "size": {"columns": 70, "rows": 20},
        "last_input": None, "last_output": None, "bytes": 0, "title": None,
        "typed": {"waiting": 0, "blocked": False}, "commands": 0, "streams": {"terminal": {"start": 0, "end": 0}},
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert "result" not in row
    peer.ask("kill", id=seat.id, grace=0)
    ended = row_of(peer, seat.id)
    assert (ended["state"], ended["foreground"], ended["result"]["ended_by"]) == ("ended", None, "kill")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_follows_the_program_the_directory_and_what_happens(server: Server, dialect: str) -> None:
    with Peer(server.address, dialect=dialect) as peer:
        seat = bash(peer, cwd="/")
        row = row_of(peer, seat.id)
        assert row["foreground"]["name"] == "bash"
        assert row["foreground"]["pid"] == row["pid"]
        assert row["cwd"] == "/"
        assert row["command"][0] == "bash"
        shown = row["last_output"]
        assert row["last_input"] is None
        assert row["started_at"] <= shown <= time.time()
        assert row["bytes"] == len(PROMPT)
        # No program has a clock that two keys would share.
        seat.run("cd /usr/bin")
        row = row_of(peer, seat.id)
        assert row["cwd"] == "/usr/bin"
        assert shown <= row["last_input"] <= row["last_output"]
        assert row["bytes"] == row["streams"]["terminal"]["end"] == len(seat.shown)
        seat.line("sleep 1000")
        row = row_of(peer, seat.id)
        # In the middle of its exec it has its name already, and no command yet.
        while row["foreground"]["command"] != "sleep 1000":
            row = row_of(peer, seat.id)
        assert row["foreground"]["name"] == "sleep"
        assert row["foreground"]["pid"] != row["pid"]
        seat.type(b"\x03")
        seat.read_until(PROMPT)
        until_row(peer, seat.id, state="running")
        assert row_of(peer, seat.id)["foreground"]["name"] == "bash"
        # A program whose leader has gone is still somewhere in the foreground.
        seat.line("true | sleep 1000")
        while row_of(peer, seat.id)["foreground"]["pid"] == row["pid"]:
            pass
        peer.ask("kill", id=seat.id, grace=0)


def test_the_title_is_the_programs(peer: Peer) -> None:
    seat = Seat(
        peer, shell=f"{RAW} printf '\\033]2;first\\007'; read x; printf '\\033]0;second\\033\\\\'; exec cat"
    )
    until_row(peer, seat.id, title="first")
    seat.line("")
    seat.type("\n")
    assert until_row(peer, seat.id, title="second")["commands"] == 0
    peer.ask("kill", id=seat.id, grace=0)


def test_viewers_come_and_go(server: Server, peer: Peer) -> None:
    seat = Seat(peer, argv=["sleep", "1000"])
    job_id = seat.id
    with Peer(server.address, dialect="websocket") as other:
        watcher = Seat(other, "attach", id=job_id, client="w")
        writer = Seat(other, "attach", id=job_id, input=True)
        watcher.accepted()
        writer.accepted()
        row = row_of(peer, job_id)
        assert row["attached"] == 3
        assert [(each["role"], each["client"]) for each in row["viewers"]] == [
            ("owner", None), ("watcher", "w"), ("writer", None),
        ]  # fmt: skip
        assert all(each["peer"].startswith("unix ") for each in row["viewers"])
        writer.call.reset()
        until_row(peer, job_id, attached=2)
    row = until_row(peer, job_id, attached=1)
    assert [each["role"] for each in row["viewers"]] == ["owner"]
    seat.call.reset()
    row = until_row(peer, job_id, attached=0)
    assert (row["owner"], row["viewers"], row["state"]) == (None, [], "running")
    peer.ask("kill", id=job_id, grace=0)


def test_commands_of_a_shell_that_marks_none_are_none(peer: Peer) -> None:
    seat = Seat(peer, argv=["sleep", "1000"])
    assert peer.ask("commands", id=seat.id) == {"id": seat.id, "commands": []}
    peer.ask("kill", id=seat.id, grace=0)
