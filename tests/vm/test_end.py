"""The end of a machine, and its next beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import vm

if TYPE_CHECKING:
    from tests.support.vm import Guest


def _in_order(guest: Guest) -> str:
    """Serve has ended before the disks, and those before the power. What the console says of it."""
    said = guest.console()
    at = [said.index(words) for words in ("stopping", ") ended: status 0", "/ is read-only now")]
    assert at == sorted(at)
    assert "Kernel panic" not in said
    return said


def test_the_power_button_is_an_end_in_order() -> None:
    with vm.running(stopped=True) as guest:
        with guest.peer() as peer:
            peer.open(
                "exec", shell="trap 'echo bye; exit 7' TERM; echo on; while :; do sleep 1; done", id="job"
            ).lines(1)
        guest.machine.power_button()
        guest.machine.wait_for("X_GUESTD_END")
        guest.machine.wait_for_end()
        assert "the power button" in _in_order(guest)
        assert guest.machine.herald.seen["EXIT_STATUS"] == "0"


def test_a_machine_that_starts_again_is_another_boot_of_the_same() -> None:
    with vm.running() as guest:
        with guest.peer() as peer:
            before = peer.hello
        herald = guest.machine.herald
        herald.forget()
        with guest.peer() as peer:
            peer.open("stop", action="reboot", grace=5.0).accepted()
        guest.machine.monitor.wait("RESET")
        guest.machine.wait_until_ready()
        with guest.peer() as peer:
            assert peer.hello["boot_id"] != before["boot_id"]
            assert peer.hello["session_id"] != before["session_id"]
        # Ctrl-alt-del is the same for whoever sits at its keyboard.
        herald.forget()
        guest.machine.monitor.ask(
            "send-key", keys=[{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        )
        guest.machine.wait_for("X_GUESTD_END")
        assert herald.seen["X_GUESTD_END"] == "reboot"
        guest.machine.monitor.wait("RESET")
        assert "SIGINT: stopping" in guest.console()
