"""PID 1 of a real kernel: nothing that a machine's root can do to it ends the machine by accident."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.vm import Guest

#: What PID 1 takes for an order: HUP to load the settings anew; INT, TERM, PWR, and as systemd has them RTMIN+3 to +5,
#: to stop.
ORDERS = {1, 2, 15, 30, 37, 38, 39}
SIGNALS = " ".join(str(number) for number in range(1, 65) if number not in ORDERS)
#: Takes every process id that is left, kills serve, and gives them back a while later, in small steps: PID 1 has its
#: turn in between, however slow the machine is.
TAKE_ALL_PIDS = """
import os, signal, sys, time
with open("/proc/sys/kernel/pid_max", "r+") as file:
    before = file.read()
    children = []
    try:
        file.seek(0)
        file.write("301")
        file.flush()
        while True:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except BlockingIOError:
        os.kill(int(sys.argv[1]), signal.SIGKILL)
        for _ in range(40):
            time.sleep(0.1)
    finally:
        file.seek(0)
        file.write(before)
        file.flush()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
print("over")
"""


def test_signals_to_it_are_nothing(guest: Guest) -> None:
    """Each that there is but those, with the two that nobody can catch, and the two of the C library's own."""
    guest.run(f"for each in {SIGNALS}; do kill -$each 1 || exit 1; done")
    assert guest.run("cat /proc/1/comm; cut -d' ' -f3 /proc/1/stat").split() == ["guestd", "S"]


def test_a_serve_that_cannot_be_started_is_started_when_it_can(guest: Guest) -> None:
    """There is no room for a single process when serve dies; PID 1 tries again until there is."""
    said = len(guest.console())
    guest.machine.herald.forget()
    with guest.peer() as peer:
        pid = str(peer.ask("status")["pid"])
        argv = ["/opt/guestd/bin/python", "-c", TAKE_ALL_PIDS, pid]
        with contextlib.suppress(EOFError):
            peer.open("exec", argv=argv, user="root", id="no-room").end()
    guest.machine.wait_for("READY")
    with guest.peer() as peer:
        again = peer.open("attach", id="no-room", from_={"stdout": 0})
        assert again.end()["code"] == 0
        assert again.stdout == b"over\n"
    told = guest.console()[said:]
    assert "serve could not be started: Resource temporarily unavailable" in told
    assert "Traceback" not in told


def test_serve_is_killed_and_its_jobs_go_on(guest: Guest) -> None:
    with guest.peer() as peer:
        before = peer.ask("status")["pid"]
        call = peer.open("exec", shell="echo one; read x </dev/null; sleep 3; echo two", id="over-a-death")
        call.lines(1)
    guest.machine.herald.forget()
    _kill(guest, before)
    guest.machine.wait_for("READY")
    with guest.peer() as peer:
        assert peer.ask("status")["pid"] != before
        again = peer.open("attach", id="over-a-death", from_={"stdout": 0})
        assert again.end()["code"] == 0
        assert again.stdout == b"one\ntwo\n"


def test_everything_is_killed_that_can_be(guest: Guest) -> None:
    """`kill -9 -1` of root's: serve, its helpers, every job. PID 1 starts the next serve, and has no zombies."""
    guest.machine.herald.forget()
    # Nobody is left to say that it was started.
    with guest.peer() as peer, contextlib.suppress(EOFError):
        peer.open("exec", shell="kill -9 -1", user="root", id="the-end-of-all").end()
    guest.machine.wait_for("READY")
    assert guest.run("cat /proc/1/comm") == "guestd"
    assert guest.run("grep -l '^State:.Z' /proc/[0-9]*/status | wc -l") == "0"
    assert "Kernel panic" not in guest.console()


def _kill(guest: Guest, pid: int) -> None:
    """Its own connection is lost with it."""
    with guest.peer() as peer, contextlib.suppress(EOFError):
        peer.open("exec", argv=["kill", "-9", str(pid)], user="root").accepted()
