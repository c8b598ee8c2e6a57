"""PID 1 of a real kernel: nothing that a machine's root can do to it ends the machine by accident."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.vm import Guest

#: All that PID 1 does not take for an order to stop, with the two that nobody can catch.
SIGNALS = "KILL STOP SEGV ABRT QUIT ALRM PIPE ILL FPE BUS TRAP SYS XCPU XFSZ VTALRM PROF USR1 USR2 TSTP TTIN CHLD CONT"


def test_signals_to_it_are_nothing(guest: Guest) -> None:
    guest.run(f"for each in {SIGNALS}; do kill -$each 1 || exit 1; done")
    assert guest.run("cat /proc/1/comm; cut -d' ' -f3 /proc/1/stat").split() == ["guestd", "S"]


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
