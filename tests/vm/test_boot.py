"""From the kernel to READY, told to the host as it happens; and the machine that guestd has made of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from guestd.ctl.show_life import show_timeline

if TYPE_CHECKING:
    from tests.support.vm import Guest


def test_pid_1_is_guestd_and_nothing_else_was_there_before(guest: Guest) -> None:
    assert guest.run("cat /proc/1/comm") == "guestd"
    assert "/opt/guestd/bin" in guest.run("tr '\\0' ' ' </proc/1/cmdline")
    assert guest.run("readlink /proc/1/ns/pid") == "pid:[4026531836]"
    # Of the initramfs nothing is left: neither mounts nor files.
    assert guest.run("ls /lower /memory /modules 2>&1 | grep -vc 'No such'", status=1) == "0"


def test_the_host_is_told_of_each_phase(guest: Guest) -> None:
    seen = guest.machine.herald.seen
    assert seen["READY"] == "1"
    times = [int(seen[f"X_GUESTD_{phase}_USEC"]) for phase in ("INIT", "LISTENING", "SERVE", "READY")]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 120_000_000
    first = guest.machine.herald.messages[0]
    assert "LISTENING" in first
    assert "READY=1" not in first


def test_status_has_the_same_times(guest: Guest) -> None:
    with guest.peer() as peer:
        found = peer.ask("status")
    times = found["timeline"]
    assert list(times) == ["kernel", "init", "listening", "serve", "ready"]
    assert times["kernel"] == 0.0
    told = guest.machine.herald.seen
    for phase in ("init", "listening", "serve"):
        assert abs(times[phase] - int(told[f"X_GUESTD_{phase.upper()}_USEC"]) / 1e6) < 1e-3
    # guestd itself is ready a moment before PID 1 has heard of it.
    assert 0 <= int(told["X_GUESTD_READY_USEC"]) / 1e6 - times["ready"] < 10
    assert re.fullmatch(r"init \+[\d.]+ s, listening \+.* after the kernel began", show_timeline(found))


def test_the_machine_has_what_a_kernel_leaves_out(guest: Guest) -> None:
    mounts = {line.split()[1]: line.split()[2] for line in guest.run("cat /proc/mounts").splitlines()}
    assert mounts["/"] == "overlay"
    assert mounts["/sys/fs/cgroup"] == "cgroup2"
    for target, kind in (("/proc", "proc"), ("/dev", "devtmpfs"), ("/dev/pts", "devpts"), ("/run", "tmpfs")):
        assert mounts[target] == kind
    assert guest.run("echo $PATH").startswith("/usr/local/sbin:/usr/local/bin:")
    assert guest.run("guestctl exec -- echo from within") == "from within"


def test_the_console_is_short_and_in_order(guest: Guest) -> None:
    lines = [line for line in guest.console().splitlines() if line.startswith("guestd init: [")]
    assert len(lines) < 25
    at = [int(found[1]) for line in lines if (found := re.match(r"guestd init: \[ *(\d+) ms\]", line))]
    assert len(at) == len(lines)
    assert at == sorted(at)
    assert "Traceback" not in guest.console()


def test_the_image_is_not_written_to_and_the_guest_can_write_everywhere(guest: Guest) -> None:
    before = guest.machine.manifest.file("root").stat().st_mtime_ns
    guest.run("echo x >/etc/written-by-a-test && sync && rm /etc/written-by-a-test")
    assert guest.machine.manifest.file("root").stat().st_mtime_ns == before
