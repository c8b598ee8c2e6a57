"""The signals of PID 1 at every stage, and the order of its end: processes, storage, power or exit status."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.init import ROOT, SECONDS, booted
from tests.system.test_init_keep import faulty

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.init import Guest

HALT, POWER_OFF, REBOOT = (signal.SIGRTMIN + each for each in (3, 4, 5))
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGPWR, HALT, POWER_OFF, REBOOT]
#: How reboot(2) in a PID namespace ends its PID 1.
SWITCHED_OFF, STARTED_AGAIN = -signal.SIGINT, -signal.SIGHUP
SBIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
#: Somebody who outlives serve, told by a file; ignoring SIGTERM when it is asked for.
LEFT = """
def leave(ignore):
    told, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else signal.SIG_DFL)
        # Among these the connection, whose end the test waits for, and the pipe.
        os.closerange(3, 100)
        while True:
            signal.pause()
    os.close(tell)
    os.read(told, 1)
    os.close(told)
"""
#: For a test to find PID 1 at its very end, however slow the test is: what is left has all the time there is.
PATIENT = "import guestd.init.end as end; end.TERM_SECONDS = 120.0"


def milliseconds(line: str) -> int:
    """Since the start, as a line of the console has it."""
    return int(line.partition("[")[2].split()[0])


@pytest.mark.parametrize("number", STOPS)
def test_every_stop_signal_ends_a_container_with_an_exit_status(number: int) -> None:
    with booted() as guest:
        guest.signal(number)
        assert guest.wait() == (133 if number == REBOOT else 0)
        assert not (guest.directory / "guestd.sock").exists()
        assert not (guest.directory / "notify").exists()


@pytest.mark.parametrize("number", STOPS)
def test_every_stop_signal_ends_a_machine_by_its_power(number: int) -> None:
    with booted(bare=True, kind="machine") as guest:
        guest.signal(number)
        assert guest.wait() == (STARTED_AGAIN if number in {REBOOT, signal.SIGINT} else SWITCHED_OFF)
        last = {HALT: "halt", REBOOT: "reboot", signal.SIGINT: "reboot"}.get(number, "power-off")
        assert guest.console.rstrip().endswith(f"] {last}")


@pytest.mark.parametrize("number", STOPS)
def test_every_stop_signal_ends_an_ordinary_process(number: int) -> None:
    with booted(first=False) as guest:
        guest.signal(number)
        assert guest.wait() == (133 if number == REBOOT else 0)


def test_a_machine_ends_as_its_settings_say() -> None:
    with booted(bare=True, kind="machine", environment={"GUESTD_INIT_POWER_OFF": "reboot"}) as guest:
        assert guest.stop() == STARTED_AGAIN


def test_a_signal_before_serve_runs() -> None:
    """In the middle of the boot: modprobe waits until the test says so."""
    script = "#!/bin/sh\necho here >/t/here\nread line </t/go\n"
    prepare = (
        "os.unlink(root + '/sbin'); os.mkdir(root + '/sbin'); os.mkfifo(root + '/t/go'); os.mkfifo(root + '/t/here')\n"
        f"open(root + '/sbin/modprobe', 'w').write({script!r}); os.chmod(root + '/sbin/modprobe', 0o755)"
    )
    environment = {"GUESTD_INIT_MODULES": "slow"}
    with booted(bare=True, kind="machine", prepare=prepare, environment=environment, ready=False) as guest:
        guest.wait_for("this is a machine")
        assert (guest.directory / "here").read_text() == "here\n"
        guest.signal(signal.SIGTERM)
        (guest.directory / "go").write_text("go\n")
        assert guest.wait() == SWITCHED_OFF


def test_a_signal_before_serve_is_ready() -> None:
    with booted(begin="notify('STATUS=x'); print('HERE', flush=True); signal.pause()", ready=False) as guest:
        guest.wait_for("HERE")
        assert guest.stop() == 0


#: One that another has left something cannot listen before the test says so: as while Python starts.
DEAF = """
if descriptors("left"):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    print("HERE", flush=True)
    open(os.environ["GUESTD_RUNTIME_DIR"] + "/go").read()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, lambda *_: os.write(1, b'RELOAD\\n'))
"""


@contextlib.contextmanager
def starting_again() -> Generator[Guest]:
    """One has died, and the next one, which has its work to go on with, does not listen to signals yet."""
    with booted(begin=DEAF, environment={"GUESTD_INIT_RESTART_RESET": "0"}) as guest:
        os.mkfifo(guest.directory / "go")
        with guest.connect() as sock:
            sock.sendall(b"notify('FDSTORE=1\\nFDNAME=left', os.memfd_create('x')); barrier(); os._exit(1)")
        guest.wait_for("HERE")
        yield guest


def test_a_stop_waits_for_a_serve_that_has_the_work_of_another_to_end() -> None:
    """It died of the signal that it could not heed yet: nothing was ended in order, and the status was 143."""
    with starting_again() as guest:
        guest.signal(signal.SIGTERM)
        guest.wait_for("SIGTERM: stopping, within")
        (guest.directory / "go").write_text("")
        assert guest.wait() == 0
        assert "killed by" not in guest.console


def test_a_reload_waits_for_a_serve_that_starts() -> None:
    with starting_again() as guest:
        guest.signal(signal.SIGHUP)
        guest.wait_for("SIGHUP: reloading")
        (guest.directory / "go").write_text("")
        guest.wait_for("RELOAD")
        assert guest.stop() == 0
        assert "killed by" not in guest.console


def test_a_stop_that_one_dies_of_before_it_has_begun_anything_is_a_stop() -> None:
    begin = "signal.signal(signal.SIGTERM, signal.SIG_DFL); print('HERE', flush=True); signal.pause()"
    with booted(begin=begin, ready=False) as guest:
        guest.wait_for("HERE")
        assert guest.stop() == 0
        guest.wait_for("ended: killed by signal 15, before it was ready")


def test_a_signal_while_no_serve_runs() -> None:
    environment = {"GUESTD_INIT_RESTART_DELAY": "1h", "GUESTD_INIT_RESTART_DELAY_MAX": "1h"}
    with booted(begin="sys.exit(1)", environment=environment, ready=False) as guest:
        guest.wait_for("starting again in 3600.0 s")
        assert guest.stop() == 1


def test_the_second_signal_shortens_and_the_third_ends_it() -> None:
    begin = "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'TOLD\\n'))"
    with booted(begin=begin, environment={"GUESTD_STOP_GRACE": "1h"}) as guest:
        guest.signal(signal.SIGTERM)
        guest.wait_for("SIGTERM: stopping, within 3605 s")
        guest.wait_for("TOLD")
        guest.signal(signal.SIGTERM)
        guest.wait_for("SIGTERM again: stopping sooner")
        guest.wait_for("TOLD", times=2)
        guest.signal(signal.SIGTERM)
        # Not by the five seconds that the second one left.
        said = guest.wait_for("SIGTERM again: stopping now"), guest.wait_for("within its time: SIGKILL")
        third, killed = (milliseconds(line) for line in said)
        assert killed - third < 3000
        assert guest.wait() == 137


def test_serve_that_does_not_stop_is_killed_after_its_grace() -> None:
    begin = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with booted(begin=begin, environment={"GUESTD_STOP_GRACE": "0"}) as guest:
        assert guest.stop() == 137
        guest.wait_for("serve has not ended within its time: SIGKILL")


def test_sighup_reloads_here_and_there() -> None:
    begin = "signal.signal(signal.SIGHUP, lambda *_: os.write(1, b'RELOAD\\n'))"
    with booted(begin=begin, config="[stop]\ngrace = 7\n") as guest:
        (guest.directory / "guestd.toml").write_text("[stop]\ngrace = 9\n")
        guest.signal(signal.SIGHUP)
        guest.wait_for("RELOAD")
        guest.signal(signal.SIGTERM)
        guest.wait_for("stopping, within 14 s")
        assert guest.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_without_a_meaning_is_said_and_does_nothing(number: signal.Signals) -> None:
    with booted() as guest:
        guest.signal(number)
        guest.wait_for(f"{number.name} means nothing here")
        assert guest.run("answer = 1") == 1


def test_a_storm_of_signals_at_random_moments_does_not_end_it() -> None:
    with booted() as guest:
        for _ in range(300):
            guest.signal(signal.SIGUSR1)
            guest.signal(signal.SIGCHLD)
        assert guest.run("answer = len(orphans(50))") == 50
        assert guest.stop() == 0


# ------------------------------------------------------------------------------------------ what serve asks for


@pytest.mark.parametrize(
    ("command", "container", "machine"),
    [("b'x\\x2a'", 42, SWITCHED_OFF), ("b'p'", 0, SWITCHED_OFF), ("b'b'", 133, STARTED_AGAIN)],
)
@pytest.mark.parametrize("kind", ["container", "machine"])
def test_the_end_that_serve_asks_for(command: str, container: int, machine: int, kind: str) -> None:
    with booted(bare=True, kind=kind) as guest:
        with guest.connect() as sock:
            sock.sendall(f"ask({command}); os._exit(0)".encode())
        assert guest.wait() == (container if kind == "container" else machine)


def test_the_workloads_status_is_the_containers_after_a_signal_too() -> None:
    begin = "signal.signal(signal.SIGTERM, lambda *_: (ask(b'x\\x07'), os._exit(0)))"
    with booted(begin=begin) as guest:
        assert guest.stop() == 7


def test_a_serve_that_asks_and_does_not_end_is_bounded() -> None:
    with booted(environment={"GUESTD_STOP_GRACE": "0"}) as guest:
        guest.run("ask(b'x\\x05')")
        guest.wait_for("serve asks for the end")
        assert guest.wait() == 5
        guest.wait_for("SIGKILL")


def test_reload_by_serve() -> None:
    with booted(config="[stop]\ngrace = 7\n") as guest:
        (guest.directory / "guestd.toml").write_text("[stop]\ngrace = 9\n")
        guest.run("ask(b'r'); barrier()")
        guest.signal(signal.SIGTERM)
        guest.wait_for("stopping, within 14 s")


# ------------------------------------------------------------------------------------------- what is left over


@pytest.mark.parametrize("first", [True, False])
def test_what_serve_leaves_is_told_to_end_and_then_killed(first: bool) -> None:
    with booted(begin=LEFT, first=first) as guest:
        before = set(os.listdir("/proc"))
        guest.run("leave(False)")
        guest.run("leave(True)")
        left = {word for word in set(os.listdir("/proc")) - before if word.isdecimal()}
        assert len(left) == 2
        assert guest.stop() == 0
        guest.wait_for("SIGTERM to what is left")
        guest.wait_for("SIGKILL to what is left")
        assert not left & set(os.listdir("/proc"))


def test_what_ends_by_sigterm_costs_no_time_and_what_is_stopped_hears_it() -> None:
    with booted(begin=LEFT) as guest:
        guest.run("leave(False)")
        guest.run("leave(False)")
        guest.run("[os.kill(int(p), 19) for p in os.listdir('/proc') if p.isdecimal() and int(p) > 2]")
        assert guest.stop() == 0
        assert "SIGKILL" not in guest.console


def test_a_second_signal_at_the_very_end_does_not_wait_for_the_rest() -> None:
    with faulty(PATIENT, begin=LEFT) as guest:
        guest.run("leave(True)")
        guest.signal(signal.SIGTERM)
        guest.wait_for("SIGTERM to what is left")
        guest.signal(signal.SIGTERM)
        said = guest.wait_for("SIGTERM to what is left"), guest.wait_for("SIGKILL to what is left")
        asked, killed = (milliseconds(line) for line in said)
        assert killed - asked < 60_000  # not the time that is theirs otherwise
        assert guest.wait() == 0


# ----------------------------------------------------------------------------------------------------- storage


DISK = """
import subprocess
image = root + '/t/disk'
with open(image, 'wb') as file:
    file.truncate(16 << 20)
subprocess.run(['mkfs.ext4', '-q', '-F', image], check=True, stdout=2, env={'PATH': '/usr/sbin:/usr/bin:/sbin:/bin'})
os.mkdir(root + '/data')
subprocess.run(['mount', '-o', 'loop', image, root + '/data'], check=True)
os.makedirs(root + '/data/below')
mount('none', root + '/data/below', 'tmpfs', 0)
"""
needs_loop = pytest.mark.skipif(
    not os.path.exists("/dev/loop-control"), reason="this machine has no loop devices"
)


@needs_loop
@pytest.mark.parametrize("held", [False, True])
def test_a_dirty_file_system_is_clean_afterwards(held: bool) -> None:
    """With data that nobody has synced, a mount on top, and a program that holds a file open and will not end."""
    with booted(bare=True, kind="machine", prepare=DISK, begin=LEFT) as guest:
        guest.run(
            f"f = open('/data/file', 'wb'); f.write(b'dirty' * 100_000); f.flush()\n"
            f"if {held}: os.dup2(f.fileno(), 150); leave(True)"
        )
        guest.run("os.mkdir('/data/below/x')")
        assert guest.stop() == SWITCHED_OFF
        guest.wait_for("unmounted /data")
        image = str(guest.directory / "disk")
        told = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True, env=SBIN)
        state = told.stdout
        assert "Filesystem state:         clean" in state
        assert "needs_recovery" not in state
        subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=True, env=SBIN)
        found = subprocess.run(
            ["debugfs", "-R", "cat /file", image], capture_output=True, check=True, env=SBIN
        ).stdout
        assert found == b"dirty" * 100_000


@needs_loop
def test_a_file_system_that_stays_in_use_is_made_read_only_and_detached() -> None:
    """A loop device holds a file on it: nothing that could be killed."""
    held = (
        "with open(root + '/data/inner', 'wb') as file: file.truncate(1 << 20)\n"
        "made = subprocess.run(['losetup', '--show', '-f', root + '/data/inner'], check=True, capture_output=True)\n"
        "with open(root + '/t/loop', 'wb') as file: file.write(made.stdout)"
    )
    with booted(bare=True, kind="machine", prepare=DISK + held) as guest:
        try:
            assert guest.stop() == SWITCHED_OFF
            guest.wait_for("/data: Device or resource busy; ")
        finally:
            subprocess.run(
                ["losetup", "-d", (guest.directory / "loop").read_text().strip()], check=True, env=SBIN
            )


def test_a_container_takes_down_its_own_mounts_and_no_others() -> None:
    with booted(bare=True) as guest:
        guest.run(
            "import subprocess; os.mkdir('/mine'); subprocess.run('mount --bind /usr /mine'.split(), check=True)"
        )
        assert guest.stop() == 0
        guest.wait_for("unmounted /mine")
        assert "/usr:" not in guest.console
        assert "read-only" not in guest.console


def test_an_ordinary_process_takes_nothing_down() -> None:
    with booted(first=False) as guest:
        assert guest.stop() == 0
        assert "mount" not in guest.console


# ----------------------------------------------------------------------------------------------- the real serve


def guestctl(guest: Guest, *words: str) -> str:
    """Its output; connects like anybody, also while there is no serve."""
    done = subprocess.run(
        [sys.executable, "-m", "guestd.ctl", "--to", f"unix:{guest.directory}/guestd.sock", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=SECONDS,
        env={**SBIN, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\nthe console:\n{guest.console}"
    return done.stdout


@pytest.mark.parametrize("first", [True, False])
def test_the_real_serve_dies_and_comes_back_under_it(first: bool) -> None:
    # A serve that is killed cannot take its control groups away.
    environment = {"GUESTD_INIT_RESTART_RESET": "0", "GUESTD_COMMAND_CGROUP": "off"}
    with booted(fake=False, first=first, environment=environment) as guest:
        assert guestctl(guest, "exec", "--", "echo", "one") == "one\n"
        guestctl(guest, "exec", "--detach", "--", "sleep", "1000")
        for times in range(2, 5):
            serve = guest.wait_for("started serve, pid", times=times - 1).rpartition("pid ")[2].split()[0]
            pid = guest.outer(int(serve)) if first else int(serve)
            with os.fdopen(os.pidfd_open(pid)) as pidfd:
                os.kill(pid, signal.SIGKILL)
                assert select.select([pidfd], [], [], SECONDS)[0]
            assert guestctl(guest, "exec", "--", "echo", str(times)) == f"{times}\n"
        assert guest.stop() == 0
        guest.wait_for("READY, listening on", times=4)
        # What the first one had started was the last one's to end.
        assert "what is left" not in guest.console


def test_the_real_serve_ends_its_commands_itself() -> None:
    with booted(fake=False, bare=True, kind="machine") as guest:
        guestctl(guest, "exec", "--detach", "--", "sleep", "1000")
        assert guest.stop() == SWITCHED_OFF
        assert "what is left" not in guest.console
