"""A machine that starts itself again. Its end is tried where disks tell how it was: test_storage, test_run_machine."""

from __future__ import annotations

from tests.support import vm


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
