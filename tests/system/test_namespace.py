"""The namespace that `./image/try` and this very tier run in: its PID 1, its mounts, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import namespace

if TYPE_CHECKING:
    from collections.abc import Sequence


def _run(*argv: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *namespace.command(list(argv))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
    ],
    ids=lambda value: None if isinstance(value, int) else value[-1],
)
def test_the_status_is_the_commands(argv: list[str], status: int) -> None:
    assert _run(*argv).returncode == status


@pytest.mark.skipif(not namespace.user_namespaces(), reason="this kernel allows no user namespaces")
def test_an_unprivileged_user_has_one_too_and_is_root_in_it() -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = _run("sh", "-c", "id -u; ls -d /mnt/workspace; touch /mnt/workspace/file", prefix=nobody)
    assert (done.returncode, done.stdout) == (0, "0\n/mnt/workspace\n"), done.stderr


def test_processes_and_mounts_of_the_outside_stay_there() -> None:
    program = (
        "import os; print(os.getppid(), os.getpid(), *(p for p in os.listdir('/proc') if p.isdecimal()))"
    )
    assert _run(sys.executable, "-S", "-c", program).stdout == "1 2 1 2\n"
    before = os.listdir("/mnt")
    assert _run("sh", "-c", "mkdir /mnt/left && mount -t tmpfs left /mnt/left").returncode == 0
    assert os.listdir("/mnt") == before


def test_what_is_below_mnt_is_still_there_and_its_workspace_is_not() -> None:
    """This tier has a /mnt of its own, so that it can put something there; the next namespace finds it."""
    with open("/mnt/a file", "w") as f:
        f.write("kept")
    os.symlink("a file", "/mnt/link")
    os.mkdir("/mnt/directory")
    subprocess.run(["mount", "-t", "tmpfs", "below", "/mnt/directory"], check=True)
    with open("/mnt/workspace/hidden", "w"):
        pass
    try:
        os.mkdir("/mnt/directory/deep")
        done = _run("sh", "-c", "cat /mnt/link; ls /mnt/directory; ls -A /mnt/workspace")
        assert (done.stdout, done.stderr) == ("keptdeep\n", "")
    finally:
        os.unlink("/mnt/workspace/hidden")
        subprocess.run(["umount", "/mnt/directory"], check=True)
        os.rmdir("/mnt/directory")
        os.unlink("/mnt/link")
        os.unlink("/mnt/a file")


def test_orphans_are_reaped() -> None:
    """A hundred of them leave nothing in /proc: where PID 1 does not reap, each is a zombie for ever."""
    program = """
import os, select
ends, last = os.pipe()
for _ in range(100):
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            os.read(ends, 1)  # end of file: every other holder of `last` is gone
        os._exit(0)
    os.waitpid(parent, 0)
orphans = {int(p) for p in os.listdir("/proc") if p.isdecimal()} - {1, os.getpid()}
assert len(orphans) == 100, orphans
handles = [os.pidfd_open(p) for p in orphans]
# All hold both ends; a byte for each lets it go.
os.write(last, bytes(100))
for handle in handles:
    select.select([handle], [], [])
while any(os.path.exists(f"/proc/{p}") for p in orphans):
    os.sched_yield()
print("none left")
"""
    done = _run(sys.executable, "-S", "-c", program)
    assert done.stdout == "none left\n", done.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 3), (signal.SIGHUP, 4), (signal.SIGKILL, -9)]
)
def test_signals_reach_the_command_and_a_kill_everything(number: int, status: int) -> None:
    script = "trap 'exit 3' TERM; trap 'exit 4' HUP; setsid sleep 1000 & echo ready; while :; do wait; done"
    with subprocess.Popen(namespace.command(["sh", "-c", script]), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        # The end of the pipe: the shell and what it has left running are both gone.
        assert running.stdout.read() == b""
        assert running.wait(60) == status


def test_where_there_can_be_none_it_says_why() -> None:
    done = _run("true", prefix=namespace.forbidding())
    assert done.returncode == 125
    assert "no private namespace: without a user namespace: unshare: " in done.stderr
