"""Each detector is shown a test that leaks on purpose, and one beside it that does not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]

LEAKING = """
from __future__ import annotations
import ctypes, logging, os, signal, socket, subprocess, threading
import pytest, trio

kept = []

def test_fd():
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_fd_of_a_number_given_out_again():
    kept.append(os.pipe())

def test_child():
    kept.append(subprocess.Popen(["sleep", "1000"]))

def test_orphan():
    subprocess.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"], check=True)

def test_zombie():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.returncode = 0  # so that its destructor says nothing: only the detector may

def test_mount(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "left", str(tmp_path)], check=True)

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="left-thread").start()

async def test_system_task():
    trio.lowlevel.spawn_system_task(trio.sleep_forever, name="left-task")

async def test_thread_of_trio():
    with trio.CancelScope() as scope:
        def wait():
            trio.from_thread.run_sync(scope.cancel)
            threading.Event().wait()
        await trio.to_thread.run_sync(wait, abandon_on_cancel=True)

def test_log():
    logging.getLogger("guestd").warning("left in the log")

@pytest.fixture
def leaking_fixture():
    yield
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_fixture(leaking_fixture):
    pass

@pytest.mark.leaks("fd", "thread", reason="on purpose")
def test_allowed():
    kept.append(os.open("/dev/null", os.O_RDONLY))
    threading.Thread(target=threading.Event().wait, daemon=True).start()

@pytest.mark.logs("announced .* log")
def test_announced():
    logging.getLogger("guestd").error("announced in the log")

def test_heir_of_orphans():
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

def test_orphan_after_an_heir():
    orphan = int(subprocess.check_output(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"]))
    os.kill(orphan, signal.SIGKILL)

async def test_clean(tmp_path):
    left, right = socket.socketpair()
    with left, right:
        await trio.to_thread.run_sync(os.getpid)
        subprocess.run(["true"], check=True)
    thread = threading.Thread(target=os.getpid)
    thread.start()
    thread.join()
    child = subprocess.Popen(["sleep", "1000"])
    child.kill()
    child.wait()
    subprocess.run(["mount", "-t", "tmpfs", "left", str(tmp_path)], check=True)
    subprocess.run(["umount", str(tmp_path)], check=True)
    logging.getLogger("guestd").info("of no concern")
"""

#: By test, what pytest says of it.
TOLD = {
    "test_fd": r"leaked fd: \d+ → /dev/null",
    "test_fd_of_a_number_given_out_again": r"leaked fd: \d+ → pipe:",
    "test_child": r"leaked process: sleep 1000 \(\d+\), a child of \d+",
    "test_orphan": r"leaked process: .*sleep 1000.* \(\d+\), a child of 1$",
    "test_zombie": r"leaked process: true \(\d+\) has ended and nobody has waited for it",
    "test_mount": r"leaked mount: /\S+ \(tmpfs left",
    "test_thread": r"leaked thread: left-thread",
    "test_system_task": r"leaked task: left-task",
    "test_thread_of_trio": r"leaked thread: ",
    "test_log": r"unexpected log record, WARNING guestd: left in the log",
    "test_fixture": r"leaked fd: \d+ → /dev/null",
}
SUMMARY = re.compile(r"(?P<outcome>ERROR|FAILED|PASSED) \S+::(?P<name>\w+)")
CLEAN = {"test_allowed", "test_announced", "test_clean", "test_heir_of_orphans", "test_orphan_after_an_heir"}


@pytest.fixture
def leaking_suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.RunResult:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini("[pytest]\ntrio_mode = true\nfilterwarnings =\n    error\n")
    pytester.makepyfile(LEAKING)
    return pytester.runpytest_subprocess("-p", "tests.support.leaks", "-rA")


def test_each_leak_fails_the_test_that_leaked(leaking_suite: pytest.RunResult) -> None:
    text = "\n".join(leaking_suite.outlines)
    for name, told in TOLD.items():
        # Under the line that pytest heads a failure with: the test's name, and where it was tearing down, that.
        assert re.search(rf"^_+ (ERROR at teardown of )?{name} _+\n{told}", text, re.MULTILINE), name
    outcomes = leaking_suite.parseoutcomes()
    assert outcomes["failed"] + outcomes["errors"] == len(TOLD), "somebody failed for another's leak"


def test_what_is_tidy_or_announced_passes(leaking_suite: pytest.RunResult) -> None:
    summary = [SUMMARY.match(line) for line in leaking_suite.outlines]
    said = {(found["outcome"], found["name"]) for found in summary if found}
    assert {name for outcome, name in said if outcome != "PASSED"} == set(TOLD)
    assert {name for outcome, name in said if outcome == "PASSED"} >= CLEAN


@pytest.fixture
def orphan() -> Iterator[int]:
    """A process whose parent is PID 1."""
    with subprocess.Popen(
        ["sh", "-c", "setsid sleep 1000 >/dev/null & echo $!"], stdout=subprocess.PIPE
    ) as shell:
        pid = int(shell.communicate()[0])
    yield pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_killed_orphan_is_waited_for(orphan: int) -> None:
    """The kill has been asked for and PID 1 will reap: whether it has done so already is not the test's to say."""
    before = leaks.Snapshot(
        leaks.descriptors(), leaks.processes() - {orphan}, leaks.mounts(), leaks.threads()
    )
    os.kill(orphan, signal.SIGKILL)
    assert before.leaks() == {}


def test_a_living_orphan_is_ended_and_told_of(orphan: int) -> None:
    before = leaks.Snapshot(
        leaks.descriptors(), leaks.processes() - {orphan}, leaks.mounts(), leaks.threads()
    )
    assert list(before.leaks()) == ["process"]
    deadline = time.monotonic() + 10
    while orphan in leaks.processes():
        assert time.monotonic() < deadline, "it is still there"


def test_a_check_is_cheap() -> None:
    """No timing: what bounds the work is that a test process has few descriptors, mounts and neighbours."""
    assert len(leaks.processes()) < 50
    assert threading.active_count() < 20
    assert sys.getsizeof(leaks.mounts()) < 100_000
