"""PID 1 keeps a serve running, whatever that dies of, and the next one is given what the last one put aside."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.init import FAKE, ROOT, SECONDS, booted

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.init import Guest

AT_ONCE = {"GUESTD_INIT_RESTART_RESET": "0"}
STORE = """
r, w = os.pipe()
os.write(w, b"kept")
notify("FDSTORE=1\\nFDNAME=tape\\nFDPOLL=0", r)
notify("FDSTORE=1\\nFDNAME=tape\\nFDPOLL=0", os.memfd_create("x"))
notify("FDSTORE=1\\nFDNAME=pty\\nFDPOLL=0", *os.openpty())
barrier()
"""


BEATS = """
import threading, time
def beat():
    for _ in range(12):
        time.sleep(0.1)
        notify("WATCHDOG=1")
    notify("STATUS=done")
threading.Thread(target=beat, daemon=True).start()
"""
FORGED = """
if os.fork() == 0:
    notify("FDSTORE=1\\nFDNAME=evil", 0)
    notify("WATCHDOG=trigger")
    os._exit(0)
os.wait()
barrier()
"""
POLLED = """
for poll in "01":
    r, w = os.pipe()
    notify(f"FDSTORE=1\\nFDNAME=p{poll}\\nFDPOLL={poll}", w)
    os.close(r)
    os.close(w)
barrier()
"""
MANY = """
for at in range(0, 2000, 100):
    fds = [os.memfd_create(str(at + n)) for n in range(100)]
    notify("FDSTORE=1\\nFDNAME=m", *fds)
    [os.close(fd) for fd in fds]
barrier()
"""
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (321, 4321))
with open('/proc/self/oom_score_adj', 'w') as file:
    file.write('77')
"""


def kill_serve(guest: Guest) -> None:
    """Dead when this returns: while it dies, it might still take a connection and drop it."""
    pid = guest.serve_pid()
    with os.fdopen(os.pidfd_open(pid)) as pidfd:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], SECONDS)[0]


def test_twenty_times_kill_9_and_nobody_who_connects_notices() -> None:
    with booted(environment=AT_ONCE) as guest:
        guest.run(STORE)
        pids = {guest.run("answer = os.getpid()")}
        for _ in range(20):
            kill_serve(guest)
            # At once: whoever listens is dead or not born yet, and the connection waits in the backlog.
            pids.add(guest.run("answer = os.getpid()"))
        assert len(pids) == 21
        assert guest.run("answer = NAMES") == ["listen", "tape", "tape", "pty", "pty", "init"]
        assert guest.run("answer = os.read(descriptors('tape')[0], 9)") == b"kept"
        assert guest.run("answer = [os.isatty(fd) for fd in descriptors('pty')]") == [True, True]
        guest.wait_for("ended: killed by signal 9; starting again at once", times=20)


def test_what_serve_is_told() -> None:
    with booted(environment={"GUESTD_INIT_WATCHDOG": "7s"}) as guest:
        told = guest.run("answer = dict(os.environ)")
        pid = str(guest.run("answer = os.getpid()"))
        assert (told["LISTEN_PID"], told["WATCHDOG_PID"], told["LISTEN_FDS"]) == (pid, pid, "2")
        assert (told["WATCHDOG_USEC"], told["FDSTORE"]) == ("7000000", "4096")
        assert told["NOTIFY_SOCKET"] == f"{guest.inside}/notify"
        assert guest.run("answer = os.getsid(0) == os.getpid()")
        status = guest.run("answer = open('/proc/self/status').read()")
        blocked, ignored = (
            int(line.split()[1], 16) for line in status.splitlines() if line[:6] in {"SigBlk", "SigIgn"}
        )
        # Python's own two, SIGPIPE and SIGXFSZ; those above 31 are the C library's.
        assert (blocked, ignored & 0x7FFFFFFF) == (0, 0x1001000)
        mode = guest.run("answer = oct(os.stat(os.environ['NOTIFY_SOCKET']).st_mode)")
        assert mode == "0o140600"


def test_the_limits_are_those_that_pid_1_was_given() -> None:
    with booted(prepare=LIMITED) as guest:
        limits = guest.run("import resource; answer = resource.getrlimit(resource.RLIMIT_NOFILE)")
        assert limits == (321, 4321)
        assert guest.run("answer = open('/proc/self/oom_score_adj').read()") == "77\n"
        # CAP_SYS_RESOURCE, which a container may lack, is what it takes to be less likely than before.
        with open(f"/proc/{guest.pid}/status", encoding="ascii") as file:
            capable = int(next(line for line in file if line.startswith("CapEff")).split()[1], 16) >> 24 & 1
        with open(f"/proc/{guest.pid}/oom_score_adj", encoding="ascii") as file:
            assert file.read() == ("-1000\n" if capable else "77\n")


def test_a_row_of_deaths_is_slowed_down() -> None:
    with booted(
        environment={"GUESTD_INIT_RESTART_DELAY": "20ms", "GUESTD_INIT_RESTART_DELAY_MAX": "70ms"}
    ) as guest:
        for _ in range(5):
            guest.run("answer = os.getpid()")
            kill_serve(guest)
        guest.run("answer = 1")
        said = [line.rpartition("; ")[2] for line in guest.console.splitlines() if "ended: killed" in line]
        assert said == [
            "starting again at once",
            *("starting again in 0.0 s",) * 2,
            *("starting again in 0.1 s",) * 2,
        ]


def test_its_exit_status_and_its_last_words_are_on_the_console_in_one_line() -> None:
    with booted(environment=AT_ONCE) as guest:
        with guest.connect() as sock:
            sock.sendall(b"notify('STATUS=counting sheep'); barrier(); os._exit(3)")
        guest.wait_for('ended: status 3; it last said "counting sheep"; starting again at once')


def test_a_serve_that_never_gets_ready_is_killed_and_started_again() -> None:
    begin = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nimport time\ntime.sleep(60)"
    environment = {"GUESTD_INIT_READY_TIMEOUT": "300ms"}
    with booted(begin=begin, environment=environment, ready=False) as guest:
        guest.wait_for("SIGKILL to serve: it is not ready after 0 s")
        guest.wait_for("ended: killed by signal 9, before it was ready; starting again at once")
        guest.wait_for("started serve", times=2)


def test_a_serve_that_does_not_beat_is_aborted() -> None:
    with booted(environment={**AT_ONCE, "GUESTD_INIT_WATCHDOG": "400ms"}) as guest:
        guest.wait_for("serve has not beaten for 0.4 s: SIGABRT")
        guest.wait_for("ended: killed by signal 6; starting again at once")
        guest.wait_for("is ready", times=2)


def test_one_that_lives_through_that_is_killed() -> None:
    begin = "signal.signal(signal.SIGABRT, signal.SIG_IGN)"
    with booted(begin=begin, environment={**AT_ONCE, "GUESTD_INIT_WATCHDOG": "200ms"}) as guest:
        guest.wait_for("SIGABRT")
        guest.wait_for("SIGKILL to serve: it did not end by SIGABRT")
        guest.wait_for("ended: killed by signal 9")


def test_a_serve_that_beats_lives() -> None:
    with booted(begin=BEATS, environment={**AT_ONCE, "GUESTD_INIT_WATCHDOG": "700ms"}) as guest:
        guest.wait_for('SIGABRT; it last said "done"')


def test_serve_may_say_itself_that_it_is_beyond_help() -> None:
    with booted(environment=AT_ONCE) as guest:
        guest.run("notify('WATCHDOG=trigger')")
        guest.wait_for("ended: killed by signal 6")


def test_more_time_to_get_ready_is_given() -> None:
    begin = "import time\nnotify('EXTEND_TIMEOUT_USEC=60000000')\ntime.sleep(2.2)"
    with booted(begin=begin, environment={"GUESTD_INIT_READY_TIMEOUT": "2s"}) as guest:
        assert "SIGKILL" not in guest.console


# -------------------------------------------------------------------------------------------- bad settings (78)


def test_settings_that_cannot_be_used_end_a_container() -> None:
    with booted(begin="sys.exit(78)", ready=False) as guest:
        assert guest.wait() == 78
        guest.wait_for("the settings cannot be used; `guestd check` explains them")


def test_a_machine_tries_them_again() -> None:
    with booted(bare=True, kind="machine", begin="sys.exit(78)", ready=False) as guest:
        guest.wait_for("the settings cannot be used; `guestd check` explains them; trying again every 5 s")
        guest.wait_for("started serve", times=2)
        assert guest.stop() == -signal.SIGINT


def test_a_container_with_work_in_it_is_not_ended_for_them() -> None:
    begin = "os.path.exists('{}') and sys.exit(78)"
    del begin
    with booted(
        environment=AT_ONCE,
        begin="os.path.exists(os.environ['GUESTD_RUNTIME_DIR'] + '/bad') and sys.exit(78)",
    ) as guest:
        (guest.directory / "bad").touch()
        kill_serve(guest)
        guest.wait_for("the settings cannot be used", "trying again every 5 s")
        (guest.directory / "bad").unlink()
        guest.wait_for("is ready", times=2)


def test_the_real_serve_says_what_is_wrong_with_them() -> None:
    with booted(fake=False, config="[command]\ntpae = 1\n", ready=False) as guest:
        assert guest.wait() == 78
        guest.wait_for("command.tpae is no setting")


# ------------------------------------------------------------------------------------------------- the fd store


def test_what_is_taken_off_is_gone_and_the_rest_is_not() -> None:
    with booted(environment=AT_ONCE) as guest:
        guest.run(STORE)
        guest.run("notify('FDSTOREREMOVE=1\\nFDNAME=tape'); barrier()")
        kill_serve(guest)
        assert guest.run("answer = NAMES") == ["listen", "pty", "pty", "init"]


def test_a_pipe_whose_reader_has_gone_is_kept_unless_it_was_to_be_watched() -> None:
    with booted(environment=AT_ONCE) as guest:
        guest.run(POLLED)
        # The next turn of PID 1's loop has seen it.
        guest.run("barrier()")
        kill_serve(guest)
        assert guest.run("answer = NAMES") == ["listen", "p0", "init"]


def test_the_same_descriptor_is_held_once_and_another_of_that_name_besides() -> None:
    with booted(environment=AT_ONCE) as guest:
        guest.run("r, w = os.pipe()\nfor fd in (r, r, w, r): notify('FDSTORE=1\\nFDNAME=p', fd)\nbarrier()")
        kill_serve(guest)
        assert guest.run("answer = NAMES") == ["listen", "p", "p", "init"]
        # Nor does sending back what it was handed make two of it.
        guest.run("notify('FDSTORE=1\\nFDNAME=p', *descriptors('p')); barrier()")
        kill_serve(guest)
        assert guest.run("answer = NAMES") == ["listen", "p", "p", "init"]


def test_the_store_has_its_bound_and_says_so() -> None:
    with booted(environment={**AT_ONCE, "GUESTD_INIT_FD_STORE": "2"}) as guest:
        guest.run("notify('FDSTORE=1\\nFDNAME=a', *[os.memfd_create(str(n)) for n in range(5)]); barrier()")
        guest.wait_for("3 descriptors 'a' not stored: there are 2; init.fd_store allows more")
        kill_serve(guest)
        assert guest.run("answer = NAMES, os.readlink(f'/proc/self/fd/4')") == (
            ["listen", "a", "a", "init"],
            "/memfd:0 (deleted)",
        )


def test_a_thousand_descriptors_come_back_in_order() -> None:
    """Far above the usual limit of 1024 open files, and each at a number where another one sat."""
    with booted(environment=AT_ONCE) as guest:
        guest.run(MANY)
        for _ in range(2):
            kill_serve(guest)
            assert guest.run("answer = len(descriptors('m'))") == 2000
            guest.run("orphans(1); answer = records(1)")
            names = guest.run("answer = [os.readlink(f'/proc/self/fd/{fd}') for fd in descriptors('m')]")
            assert names == [f"/memfd:{at} (deleted)" for at in range(2000)]


@pytest.mark.parametrize("name", ["a:b", "x" * 256, "a\tb"])
def test_a_name_that_could_not_be_handed_over_is_refused(name: str) -> None:
    with booted(environment=AT_ONCE) as guest:
        guest.run(f"notify('FDSTORE=1\\nFDNAME=' + {name!r}, 0); barrier()")
        guest.wait_for("1 descriptors not stored")


def test_only_serve_itself_is_heard() -> None:
    with booted(environment=AT_ONCE) as guest:
        guest.run(FORGED)
        guest.wait_for("speaks as if it were serve")
        kill_serve(guest)
        assert guest.run("answer = NAMES") == ["listen", "init"]
        assert "SIGABRT" not in guest.console


def test_the_last_words_of_a_serve_that_dies_at_once_are_heard() -> None:
    """Also those that come after PID 1 has listened for the last time: here it listens only when it reaps."""
    fault = """
import guestd.init.keeper as k
hear = k.Keeper.hear
k.Keeper.hear = lambda self, *, everything=False: hear(self, everything=True) if everything else None
"""
    with faulty(fault, environment={**AT_ONCE, "GUESTD_INIT_READY_TIMEOUT": "0"}, ready=False) as guest:
        guest.wait_for("started serve")
        with guest.connect() as sock:
            sock.sendall(
                b"[notify('FDSTORE=1\\nFDNAME=last', os.memfd_create(str(n))) for n in range(5)]\n"
                b"os.kill(os.getpid(), 9)"
            )
        guest.wait_for("started serve", "with 5 stored descriptors")
        assert guest.run("answer = NAMES") == ["listen", *["last"] * 5, "init"]


PLACED = """
import os, random, sys
from guestd.init.child import place
random.seed(int(sys.argv[1]))
fds = [os.memfd_create(str(n)) for n in range(40)]
numbers = random.sample(range(3, 60), 40)
# Each at a number of its own choice, by way of numbers far above.
for at, fd in enumerate(fds):
    os.dup2(fd, 200 + at)
os.closerange(3, 200)
for at, number in enumerate(numbers):
    os.dup2(200 + at, number, inheritable=False)
os.closerange(200, 300)
place(numbers)
assert [os.readlink(f"/proc/self/fd/{3 + at}") for at in range(40)] == [f"/memfd:{at} (deleted)" for at in range(40)]
assert all(os.get_inheritable(3 + at) for at in range(40))
"""


def test_descriptors_are_put_in_order_from_wherever_they_are() -> None:
    for seed in range(20):
        subprocess.run(
            [sys.executable, "-c", PLACED, str(seed)],
            check=True,
            env={"PYTHONPATH": str(ROOT)},
            timeout=SECONDS,
        )


def test_what_python_ignores_is_not_ignored_in_serve() -> None:
    with booted() as guest:
        script = "grep SigIgn /proc/self/status >&2; exit 9"
        with guest.connect() as sock:
            sock.sendall(
                f"ask(b'u' + {chr(0).join(['/bin/sh', '-c', script])!r}.encode()); os._exit(75)".encode()
            )
        ignored = int(guest.wait_for("SigIgn:").split()[1], 16)
        # Those above 31 are the C library's.
        assert ignored & 0x7FFFFFFF == 0


# ---------------------------------------------------------------------------------------------------- upgrades


def test_a_serve_that_makes_room_is_replaced_at_once() -> None:
    with booted() as guest:
        for times in range(2, 6):
            with guest.connect() as sock:
                sock.sendall(b"ask(b'u'); os._exit(75)")
            guest.wait_for("is ready", times=times)
        guest.wait_for("ended: status 75: it makes room for the next one", times=4)


def test_another_program_takes_over_and_is_kept() -> None:
    with booted(environment=AT_ONCE) as guest:
        other = guest.directory / "other.py"
        other.write_text(f"OTHER = 1\nexec(open({str(FAKE)!r}).read())\n")
        command = "\0".join([sys.executable, str(other)])
        with guest.connect() as sock:
            sock.sendall(f"ask(b'u' + {command!r}.encode()); os._exit(75)".encode())
        guest.wait_for("is ready", times=2)
        assert guest.run("answer = OTHER, sys.argv[0]") == (1, str(other))
        kill_serve(guest)
        assert guest.run("answer = sys.argv[0]") == str(other)


@pytest.mark.parametrize("source", ["raise SystemExit(1)", "import time; time.sleep(60)", None])
def test_one_that_does_not_get_ready_gives_way_to_the_one_before(source: str | None) -> None:
    # For those that do get ready it is time enough.
    with booted(environment={"GUESTD_INIT_READY_TIMEOUT": "3s"}) as guest:
        other = guest.directory / "other.py"
        if source is not None:
            other.write_text(source)
        words = [sys.executable, str(other)] if source is not None else [str(other)]
        with guest.connect() as sock:
            sock.sendall(f"ask(b'u' + {chr(0).join(words)!r}.encode()); os._exit(75)".encode())
        guest.wait_for("going back to the program before it")
        assert guest.run("answer = sys.argv[0]") == str(FAKE)


def test_a_stop_that_meets_a_hand_over_is_the_next_ones_to_do() -> None:
    """It was nobody's: what ran was told by PID 1, which knows no order, and a container ended with the status 75."""
    begin = """
marker = os.environ['GUESTD_RUNTIME_DIR'] + '/left'
def leave(*_):
    if os.path.exists(marker):
        os._exit(0)
    open(marker, 'w').close()
    os._exit(75)
signal.signal(signal.SIGTERM, leave)
"""
    with booted(begin=begin) as guest:
        assert guest.stop() == 0
        assert guest.console.count("started serve") == 2
        assert "it had made room; the next one stops" in guest.console


def test_a_row_of_hand_overs_by_one_that_is_never_ready_is_a_row_of_deaths() -> None:
    with booted(begin="sys.exit(75)", ready=False) as guest:
        guest.wait_for("status 75, before it was ready; starting again in 0.2 s")


def test_what_is_not_understood_is_said_and_nothing_else() -> None:
    with booted() as guest:
        guest.run("ask(b'?x'); ask(b'x'); barrier()")
        guest.wait_for("serve asked for something unknown: b'?x'")
        guest.wait_for("serve asked for something unknown: b'x'")
        assert guest.run("answer = 1") == 1


# --------------------------------------------------------------------------------------------------- the rest


FAULTS = {
    "hearing serve": "import guestd.init.keeper as k; k.Keeper._command = lambda *_: 1 / 0",
    # Once: what woke the loop is not told again, so it has to look again by itself.
    "reaping": """
import os, guestd.init.reap as r
reap, fault = r.reap, os.environ["GUESTD_RUNTIME_DIR"] + "/fault"
r.reap = lambda before: (os.unlink(fault), 1 / 0) if os.path.exists(fault) else reap(before)
""",
}


@contextlib.contextmanager
def faulty(fault: str, **more: Any) -> Generator[Guest]:  # noqa: ANN401  as `booted` takes it
    """With a fault put into PID 1 itself, by a program that is fake_serve.py otherwise."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "faulty.py"
        program.write_text(
            f"import sys\nif sys.argv[1] == 'init':\n    exec({fault!r})\nexec(open({str(FAKE)!r}).read())\n"
        )
        with booted(program=program, **more) as guest:
            yield guest


@pytest.mark.parametrize("what", FAULTS)
def test_the_loop_goes_on_after_a_mistake_in_it(what: str) -> None:
    with faulty(FAULTS[what], environment=AT_ONCE) as guest:
        if what != "reaping":
            guest.run("[ask(b'?') for _ in range(3)]")
            guest.wait_for(f"failed at {what}", times=3)
        pid = guest.serve_pid()
        (guest.directory / "fault").touch()
        os.kill(pid, signal.SIGKILL)
        guest.wait_for(f"failed at {what}: ZeroDivisionError")
        guest.wait_for("is ready", times=2)
        assert guest.run("answer = 1") == 1
        assert guest.stop() == 0


def test_the_manager_above_hears_that_it_is_ready() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as above:
        above.bind("\0guestd-test-above-" + str(os.getpid()))
        above.settimeout(30)
        environment = {"NOTIFY_SOCKET": f"@guestd-test-above-{os.getpid()}"}
        with booted(first=False, environment=environment) as guest:
            assert above.recv(99) == b"READY=1"
            assert guest.run("answer = os.environ['NOTIFY_SOCKET']") == f"{guest.inside}/notify"


def test_serve_that_cannot_be_executed_is_tried_again() -> None:
    """The interpreter is gone for a while, as in the middle of an upgrade."""
    with booted(environment={"GUESTD_INIT_RESTART_DELAY": "50ms"}) as guest:
        with guest.connect() as sock:
            sock.sendall(b"ask(b'u/nowhere/guestd'); notify('STATUS='); os._exit(75)")
        guest.wait_for("/nowhere/guestd could not be executed: No such file or directory")
        guest.wait_for("going back")
        assert guest.run("answer = 1") == 1
