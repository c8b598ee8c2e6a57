"""PID 1 reaps whatever loses its parent, and tells serve, or the next serve, how each ended: once."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from guestd.init.reap import RECORD, RECORD_VERSION
from tests.support.init import booted
from tests.system.test_init_keep import AT_ONCE, kill_serve

if TYPE_CHECKING:
    from tests.support.init import Guest


def taken(guest: Guest, count: int) -> dict[int, int]:
    """The next records: wait statuses by pid. Each of another process."""
    found = [RECORD.unpack(record) for record in guest.run(f"answer = records({count})")]
    assert {each[0] for each in found} == {RECORD_VERSION}
    statuses = {each[1]: each[2] for each in found}
    assert len(statuses) == count
    return statuses


def nothing_left(guest: Guest) -> bool:
    """No record waits, and no zombie."""
    return guest.run(
        "s = init_socket(); s.setblocking(False)\n"
        "try:\n  answer = s.recv(4096)\nexcept BlockingIOError:\n  answer = True\n"
        "finally:\n  s.close()"
    ) and not guest.run(
        "answer = [p for p in os.listdir('/proc') if p.isdecimal() and ') Z ' in open(f'/proc/{p}/stat').read()]"
    )


def test_a_thousand_orphans_are_reaped_and_each_is_told_once() -> None:
    with booted() as guest:
        pids = guest.run("answer = orphans(1000, status=7)")
        assert len(pids) == 1000
        assert taken(guest, 1000) == dict.fromkeys(pids, 7 << 8)
        assert nothing_left(guest)


def test_an_ordinary_process_reaps_what_is_below_it() -> None:
    with booted(first=False) as guest:
        pids = guest.run("answer = orphans(10, status=3)")
        assert taken(guest, 10) == dict.fromkeys(pids, 3 << 8)
        assert guest.stop() == 0


def test_a_record_says_how_it_ended_and_what_it_used() -> None:
    begin = """
def burn():
    if os.fork() == 0:
        if os.fork() == 0:
            held = bytes(range(256)) * 100_000
            while os.times().user < 0.05:
                pass
            os.kill(os.getpid(), 9)
        os._exit(0)
    os.wait()
"""
    with booted(begin=begin) as guest:
        guest.run("burn()")
        record = guest.run(
            "import time; before = time.time(), time.monotonic(); answer = records(1)[0], before"
        )
        version, _, status, user, system, peak, wall, mono = RECORD.unpack(record[0])
        assert (version, os.WTERMSIG(status)) == (RECORD_VERSION, signal.SIGKILL)
        assert 0.04 < user < 30
        assert system >= 0
        assert 25_000 < peak < 500_000
        assert abs(wall - record[1][0]) < 30
        assert abs(mono - record[1][1]) < 30


def test_what_ends_while_no_serve_runs_comes_to_the_next_one_first() -> None:
    begin = "if os.path.exists('hold'):\n  os.mkfifo('go'); open('go').read()"
    with booted(environment=AT_ONCE, begin=f"os.chdir(os.environ['GUESTD_RUNTIME_DIR'])\n{begin}") as guest:
        pids = guest.run("answer = orphans(5, status=1)")
        assert taken(guest, 5).keys() == set(pids)
        inner = guest.run(
            "r, w = os.pipe()\n"
            "m = os.fork()\n"
            "if m == 0:\n"
            "  [os.close(fd) for fd in range(3, 50) if fd != w and os.path.exists(f'/proc/self/fd/{fd}')]\n"
            "  if os.fork():\n    os._exit(0)\n"
            # Before this a signal would be this program's, or nobody's: Python forgets what comes during a fork.
            "  signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
            "  os.write(w, str(os.getpid()).encode()); signal.pause()\n"
            "os.waitpid(m, 0); answer = int(os.read(r, 99))"
        )
        orphan = guest.outer(inner)
        (guest.directory / "hold").touch()
        kill_serve(guest)
        guest.wait_for("started serve", times=2)  # which is not ready, and reads nothing
        os.kill(orphan, signal.SIGTERM)
        # Opened for writing by the test: the serve that waits for that goes on.
        while not (guest.directory / "go").exists():
            guest._read(0.01)
        (guest.directory / "hold").unlink()
        (guest.directory / "go").write_text("")
        assert taken(guest, 1) == {inner: signal.SIGTERM}
        assert nothing_left(guest)


def test_what_a_serve_had_not_read_when_it_died_is_not_lost_and_what_it_had_is_not_told_again() -> None:
    with booted(environment=AT_ONCE) as guest:
        pids = set(guest.run("answer = orphans(600, status=1)"))
        first = taken(guest, 200)
        kill_serve(guest)
        second = taken(guest, 250)
        kill_serve(guest)
        third = taken(guest, 150)
        assert first.keys() | second.keys() | third.keys() == pids
        assert nothing_left(guest)


def test_a_record_that_was_only_looked_at_comes_again() -> None:
    """How a serve loses nothing to its own death: it takes the message off when the status is written down."""
    with booted(environment=AT_ONCE) as guest:
        (pid,) = guest.run("answer = orphans(1)")
        looked = guest.run("s = init_socket(); answer = s.recv(4096, socket.MSG_PEEK); s.close()")
        assert RECORD.unpack(looked)[1] == pid
        kill_serve(guest)
        assert guest.run("answer = records(1)[0]") == looked


def test_of_too_many_the_newest_are_kept() -> None:
    with booted(environment=AT_ONCE) as guest:
        for _ in range(6):
            guest.run("orphans(1000)")
        guest.run("barrier()")
        guest.wait_for("exit statuses are being lost: 4096 wait for a serve that takes them")
        # What the socket holds and what waits for it. PID 1 goes on to send when three quarters of it were taken, so no
        # question to it tells that there is no more: only that nothing comes.
        count = guest.run(
            "s = init_socket(); s.settimeout(5); answer = 0\n"
            "try:\n  while s.recv(4096): answer += 1\nexcept TimeoutError: pass\nfinally: s.close()"
        )
        assert 4096 <= count < 6000
        guest.wait_for(f"] {6000 - count} exit statuses are lost")


@pytest.mark.parametrize("first", [True, False])
def test_its_own_children_are_not_told(first: bool) -> None:
    with booted(environment=AT_ONCE, first=first) as guest:
        kill_serve(guest)
        assert nothing_left(guest)
        if not first:
            assert guest.stop() == 0
