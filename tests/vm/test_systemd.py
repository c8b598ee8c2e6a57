"""The same guestd as a service of systemd's, on the same kernel, with the units that ship."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from image.vm.machine import Machine
from image.vm.qemu import Hardware
from tests.support import vm
from tests.support.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = 150.0


@pytest.fixture(scope="module")
def guest() -> Iterator[vm.Guest]:
    """Debian 12's systemd does not know vmm.notify_socket: it is ready when its guestd answers."""
    append = "init=/lib/systemd/systemd systemd.mask=systemd-udev-settle.service systemd.show_status=false"
    with Machine(vm.built(), Hardware(memory=512, append=append)) as machine:
        due = time.monotonic() + _SECONDS
        while True:
            try:
                with Peer(machine.address):
                    break
            except (OSError, EOFError):
                assert machine.running, machine.last_words()
                assert time.monotonic() < due, machine.last_words()
                time.sleep(0.2)
        found = vm.Guest(machine)
        yield found


def test_systemd_is_pid_1_and_guestd_its_service(guest: vm.Guest) -> None:
    assert guest.run("cat /proc/1/comm") == "systemd"
    assert (
        guest.run("systemctl is-active guestd.service guestd.socket guestd-vsock.socket").split()
        == ["active"] * 3
    )
    with guest.peer() as peer:
        found = peer.ask("status")
    assert found["processes"]["cgroups"] is True
    assert 0 < found["timeline"]["serve"] < found["timeline"]["ready"]


def test_a_guestd_that_dies_is_started_again_and_its_jobs_go_on(guest: vm.Guest) -> None:
    with guest.peer() as peer:
        before = peer.ask("status")["pid"]
        call = peer.open("exec", shell="echo one; sleep 5; echo two", id="goes-on")
        call.lines(1)
        peer.open("exec", argv=["kill", "-9", str(before)], user="root").accepted()
    due = time.monotonic() + vm.PATIENCE
    while True:
        try:
            with guest.peer() as peer:
                if peer.ask("status")["pid"] != before:
                    again = peer.open("attach", id="goes-on", from_={"stdout": 0})
                    end = again.end()
                    break
        except (OSError, EOFError):
            assert time.monotonic() < due
            time.sleep(0.1)
    # Its status was systemd's to reap: it is known or said to be unknown, never invented.
    assert end["outcome"] in {"exited", "unknown"}
    assert again.stdout == b"one\ntwo\n"


def test_systemds_own_end_is_one_in_order(guest: vm.Guest) -> None:
    guest.run("systemctl --no-block poweroff", status=None)
    assert guest.machine.wait_for_end(120.0) == 0
