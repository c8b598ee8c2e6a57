"""After a pause all that a machine cannot notice by itself is mended, and told; its jobs are what they were."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from guestd.lifecycle import clock, generation
from guestd.lifecycle.clock import ClockWatch, Jump, Reading, between
from guestd.lifecycle.generation import Changes, is_new_generation, says_new_generation, watch_generation
from guestd.process import kernel_log
from guestd.transport.native import NativeLink
from tests.support.life import Follower, serving
from tests.support.peer import Failed, Peer

if TYPE_CHECKING:
    from pathlib import Path

#: Leaves the right to set the clock behind, and is guestd then.
WITHOUT_CLOCK = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 25, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def _read_to_the_end(peer: Peer) -> None:
    with contextlib.suppress(EOFError):
        while True:
            peer.receive()


def test_it_is_another_session_with_the_same_jobs() -> None:
    with serving() as server, Peer(server.address) as peer:
        before = peer.hello
        assert "previous" not in before
        call = peer.open("exec", shell="echo one; read x; echo $x", stdin="stream", id="job")
        call.lines(1)
        events = Follower(peer)
        found = peer.ask("resume")
        assert (found["generation"], found["previous"]) == (1, before["session_id"])
        assert found["session_id"] != before["session_id"]
        resumed = events.until("resumed")
        assert (resumed["session_id"], resumed["cause"]) == (found["session_id"], "asked")
        with Peer(server.address) as other:
            assert other.hello["session_id"] == found["session_id"] == other.ask("status")["session_id"]
            assert (other.hello["previous"], other.hello["generation"]) == ([before["session_id"]], 1)
            assert other.hello["boot_id"] == before["boot_id"]
            again = other.open("attach", id="job", from_={"stdout": 4})
            again.accepted()
            call.data(0, b"two\n")
            assert again.end()["code"] == 0
            assert again.stdout == b"two\n"


def test_the_ids_it_had_are_told_within_a_bound() -> None:
    with serving() as server, Peer(server.address) as peer:
        had = [peer.hello["session_id"]]
        had += [peer.ask("resume")["session_id"] for _ in range(20)]
        assert len(set(had)) == 21
        with Peer(server.address) as other:
            assert other.hello["previous"] == had[-17:-1]


def test_connections_that_lead_nowhere_are_dropped_and_the_others_stay() -> None:
    config = '[resume]\npatience = "2s"\n'
    with (
        serving(config=config) as server,
        Peer(server.address) as asking,
        Peer(server.address) as dead,
        Peer(server.address, dialect="websocket") as alive,
    ):
        dead.answers = False
        call = dead.open("exec", argv=["sleep", "1000"], id="goes-on")
        call.accepted()
        resume = asking.open("resume")
        resume.accepted()
        # It hears the question, and answers.
        assert alive.ask("status")["connections"] in {2, 3}
        found = resume.end()
        assert (found["connections"]["kept"], len(found["connections"]["dropped"])) == (2, 1)
        _read_to_the_end(dead)
        assert asking.ask("status")["jobs"]["running"] == 1
        assert "it did not answer after a resume" in server.log


def test_entropy_is_added_and_the_generator_seeded_anew() -> None:
    with serving() as server, Peer(server.address) as peer:
        for size in (1, 64, 4096):
            found = peer.ask("resume", entropy=os.urandom(size))["entropy"]
            assert found == {"bytes": size, "credited": True, "reseeded": True, "why": None}
        assert peer.ask("resume")["entropy"]["reseeded"] is True


def test_a_clock_that_is_right_is_left_alone() -> None:
    # It must not be set in earnest either, should somebody stand still between reading the time and being heard.
    with serving(prefix=[sys.executable, "-c", WITHOUT_CLOCK]) as server, Peer(server.address) as peer:
        found: dict[str, Any] = {}
        late = clock.TOLERANCE
        while late >= clock.TOLERANCE:
            now = time.time()
            found = peer.ask("resume", now=now)["clock"]
            late = time.time() - now
        assert (found["set"], found["why"], found["source"]) == (False, None, "asked")
        assert abs(found["off"]) <= clock.TOLERANCE


def test_a_clock_that_cannot_be_set_is_told() -> None:
    prefix = [sys.executable, "-c", WITHOUT_CLOCK]
    with serving(prefix=prefix) as server, Peer(server.address) as peer:
        found = peer.ask("resume", now=time.time() + 3600)["clock"]
        assert (found["set"], found["why"]) == (False, "the clock cannot be set: Operation not permitted")


def test_the_time_of_the_session_begins_anew() -> None:
    config = '[idle]\ntimeout = "60s"\nlifetime = "60s"\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        peer.ask("exec", argv=["sleep", "1"])
        before = peer.ask("status")["activity"]["lifetime_left"]
        assert before < 59
        peer.ask("resume")
        assert peer.ask("status")["activity"]["lifetime_left"] > before


def test_hooks_run_when_all_else_is_mended(tmp_path: Path) -> None:
    config = (
        f'[resume]\nhooks = ["echo here >> {tmp_path}/log", "exit 4", "sleep 1000"]\nhook_timeout = "1s"\n'
    )
    with serving(config=config) as server, Peer(server.address) as peer:
        for _ in range(2):
            found = peer.ask("resume")["hooks"]
            assert [hook["ok"] for hook in found] == [True, False, False]
        assert (tmp_path / "log").read_text() == "here\n" * 2


def test_two_at_once_are_two() -> None:
    config = '[resume]\nhooks = ["sleep 0.1"]\n'
    with serving(config=config) as server, Peer(server.address) as peer:
        calls = [peer.open("resume") for _ in range(3)]
        assert sorted(call.end()["generation"] for call in calls) == [1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("now", "noon"),
        ("now", -1),
        ("now", float("nan")),
        ("now", True),
        ("entropy", "text"),
        ("entropy", bytes(5000)),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_done(field: str, value: object) -> None:
    with serving() as server, Peer(server.address) as peer:
        with pytest.raises(Failed) as refused:
            peer.ask("resume", **{field: value})
        assert (refused.value.code, refused.value.fields["field"]) == ("bad_request", field)
        assert peer.ask("status")["generation"] == 0


# ---------------------------------------------------------------------------------------------------- noticed unasked


@pytest.mark.parametrize(
    ("before", "after", "jump"),
    [
        ((1000, 10, 10), (1060, 70, 70), (0, 0)),
        # Set by the host, forwards and backwards.
        ((1000, 10, 10), (4660, 70, 70), (3600, 0)),
        ((1000, 10, 10), (60, 70, 70), (-1000, 0)),
        # A suspend of an hour: the wall clock and the one that counts it agree.
        ((1000, 10, 10), (4660, 70, 3670), (0, 3600)),
        # A suspend whose time was only put right an hour too far.
        ((1000, 10, 10), (8260, 70, 3670), (3600, 3600)),
    ],
)
def test_what_three_clocks_tell(
    before: tuple[float, ...], after: tuple[float, ...], jump: tuple[float, float]
) -> None:
    assert between(Reading(*before), Reading(*after)) == Jump(*jump)


async def test_a_jump_is_told_once_and_nothing_is_told_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's wake-up, here by a timer that runs out: whoever waits compares the clocks then."""
    shift = 0.0

    def reading(_: object = None) -> Reading:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return Reading(now + 1000 + shift, now, now)

    monkeypatch.setattr(Reading, "now", reading)
    monkeypatch.setattr(clock, "_FAR", 1)
    watch = ClockWatch()
    try:
        with trio.move_on_after(0.05) as quiet:
            await watch.jumped()
        assert quiet.cancelled_caught
        shift = 60.0
        jump = await watch.jumped()
        assert (round(jump.set_by), round(jump.slept)) == (60, 0)
        shift = -5.0
        watch.forget()
        with trio.move_on_after(0.05) as quiet:
            await watch.jumped()
        assert quiet.cancelled_caught
    finally:
        watch.close()


async def test_a_connection_that_has_just_closed_can_still_be_asked() -> None:
    """A resume that came to one which had ended a moment before failed by a mistake of guestd's."""
    ours, theirs = socket.socketpair()
    with theirs:
        link = NativeLink(ours, "somebody")
        before = link.unsent
        await link.close()
        assert link.unsent == before


@pytest.mark.parametrize(
    ("message", "sender", "is_one"),
    [
        (b"change@/devices/LNXSYSTM:00/QEMUVGID:00\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=9", 0, True),
        (b"change@/devices/LNXSYSTM:00/QEMUVGID:00\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=9", 4711, False),
        (b"add@/devices/virtual/net/x\0ACTION=add\0INTERFACE=NEW_VMGENID=1\0", 0, False),
        (b"", 0, False),
    ],
)
def test_only_the_kernels_word_makes_a_copy(message: bytes, sender: int, is_one: bool) -> None:
    assert is_new_generation(message, sender) is is_one


@pytest.mark.parametrize(
    ("record", "is_one"),
    [
        (b"5,1,2,-;random: crng reseeded due to virtual machine fork\n", True),
        (b"5,1,2,-,caller=T1;random: crng reseeded due to virtual machine fork\n SUBSYSTEM=acpi\n", True),
        # A program's own words: the kernel marks them as such (facility 1), whatever priority they ask for.
        (b"13,1,2,-;random: crng reseeded due to virtual machine fork\n", False),
        (b"5,1,2,-;x: random: crng reseeded due to virtual machine fork\n", False),
        (b"5,1,2,-;random: crng init done\n", False),
        (b"nonsense", False),
        (b"", False),
    ],
)
def test_only_the_kernels_record_makes_a_copy(record: bytes, is_one: bool) -> None:
    assert says_new_generation(record) is is_one


def test_a_change_that_is_heard_in_two_ways_is_one_change() -> None:
    told: list[float] = []
    now = 0.0
    changes = Changes(lambda: told.append(now))
    for now, way in (
        (1.0, "log"),
        (1.001, "uevent"),
        (2.0, "uevent"),
        (2.001, "log"),
        (3.0, "log"),
        (9.0, "uevent"),
    ):
        changes.heard(way, now)
    # The second is told by whichever way says it again.
    assert told == [1.0, 2.001, 3.0, 9.0]


async def test_the_log_of_a_kernel_is_followed_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """More at once than is read in one go."""
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    monkeypatch.setattr(generation, "open_kernel_log", lambda: os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
    # A pipe keeps no records apart, as the kernel's log does: each read takes one.
    said = b"5,1,2,-;random: crng reseeded due to virtual machine fork\n"
    monkeypatch.setattr(generation, "_RECORD_MAX", len(said))
    told = trio.Event()
    count = 0

    def tell() -> None:
        nonlocal count
        count += 1
        if count == 200:
            told.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_generation, tell)
            writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
            try:
                os.write(writer, said * 200)
                await told.wait()
            finally:
                os.close(writer)
            nursery.cancel_scope.cancel()
    assert count == 200


@pytest.mark.parametrize("instead", ["/dev/null", "/dev/tty", "pipe"])
def test_what_containers_have_in_its_place_is_not_taken_for_the_kernels_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, instead: str
) -> None:
    if instead == "pipe":
        os.mkfifo(instead := str(tmp_path / "kmsg"))
    monkeypatch.setattr(kernel_log, "_PATH", instead)
    with pytest.raises(OSError, match=r"not the kernel's log|No such device"):
        kernel_log.open_kernel_log()


def test_a_process_of_the_guest_cannot_pretend_that_it_is_a_copy() -> None:
    with serving() as server, Peer(server.address) as peer:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as sock:
            sock.bind((0, 0))
            answer: Any = None
            try:
                sock.sendto(b"change@/x\0ACTION=change\0NEW_VMGENID=1\0", (0, 1))
            except OSError as error:
                answer = error
        assert answer is None or isinstance(answer, OSError)
        assert peer.ask("status")["generation"] == 0
