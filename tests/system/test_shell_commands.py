"""What was typed at a shell, by its marks: its list, and one command's output alone. Anybody may print the marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.commands import serving_commands
from tests.support.peer import Failed, Peer
from tests.support.shells import RAW, Seat, python

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server

#: One command that says what it is told to, between its marks, and a prompt's mark behind it.
MARKED = (
    f"{RAW} "
    r"printf '\033]133;C;cmdline_url=told\007'; read -r x; printf %s $x; printf '\033]133;D;3\007\033]133;A\007'; cat"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


@pytest.fixture
def other(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


def _marked(peer: Peer) -> Seat:
    seat = Seat(peer, shell=MARKED)
    seat.read_until(b"told\x07")
    return seat


@pytest.mark.parametrize("said", ["", "something"])
def test_the_end_of_a_command_that_somebody_watches_is_the_end_of_that_alone(
    peer: Peer, other: Peer, said: str
) -> None:
    """Once, whoever was told of the last bytes first left the job's list of viewers in the middle of it: the shell was
    given up, while it lived.
    """
    seat = _marked(peer)
    watchers = [other.open("attach", id=seat.id, command=1) for _ in range(4)]
    for watcher in watchers:
        kept = watcher.accepted()["streams"]["terminal"]
        # It begins where the command does: nothing before it is lost to anybody.
        assert kept["start"] == other.ask("commands", id=seat.id)["commands"][0]["from"]
    seat.type(f"{said}\n")
    for watcher in watchers:
        end = watcher.end()
        assert (end["command"]["exit"], end["command"]["to"] - end["command"]["from"]) == (3, len(said))
        assert bytes(watcher.output[3]) == said.encode()
        assert end["gaps"] == {}
    seat.type("still here\n")
    seat.read_until(b"still here")
    other.ask("kill", id=seat.id, grace=0)


def test_a_command_that_is_not_known_is_said(peer: Peer, other: Peer) -> None:
    seat = _marked(peer)
    with pytest.raises(Failed) as failure:
        other.open("attach", id=seat.id, command=2).accepted()
    assert failure.value.code == "not_found"
    other.ask("kill", id=seat.id, grace=0)


def test_however_much_a_program_makes_up_the_list_fits_into_one_answer(peer: Peer, other: Peer) -> None:
    """The newest are told; once, the answer was longer than a frame may be, and ended the connection of who asked."""
    text = r"""
import sys
for number in range(1000):
    line = "%d" % number + "%41" * 4000
    sys.stdout.write("\033]7;file:///" + "d" * 4000 + "\007")
    sys.stdout.write("\033]133;C;cmdline_url=" + line[:12000] + "\007\033]133;D;0\007")
sys.stdout.write("done")
sys.stdout.flush()
sys.stdin.read()
"""
    seat = Seat(peer, argv=python(text))
    seat.read_until(b"done")
    commands = other.ask("commands", id=seat.id)["commands"]
    assert [each["n"] for each in commands] == list(range(1001 - len(commands), 1001))
    assert 100 < len(commands) < 1000
    other.ask("kill", id=seat.id, grace=0)


def test_of_what_somebody_does_not_read_only_the_newest_is_kept(peer: Peer, other: Peer) -> None:
    seat = Seat(peer, shell=f"{RAW} exec sleep 1000", size={"columns": 80, "rows": 24})
    seat.accepted()
    silent = [other.open("attach", id=seat.id) for _ in range(50)]
    for call in silent:
        call.accepted()
    for number in range(2000):
        seat.resize(40 + number % 100, 20)
    seat.resize(77, 33)
    assert peer.ask("status")["jobs"]["running"] >= 1  # behind all of it
    for call in silent:
        sizes: list[tuple[int, int]] = []
        while not sizes or sizes[-1] != (77, 33):
            got = call.step()
            if got.fields.get("event") == "size":
                sizes.append((got.fields["columns"], got.fields["rows"]))
    peer.ask("kill", id=seat.id, grace=0)
