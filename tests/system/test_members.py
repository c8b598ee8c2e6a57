"""What /proc shows of processes that are about to end, or look as if they had: which is not what it shows of others."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from guestd.process.environment import MARK
from guestd.process.members import bears, marks_of, read_member, send
from guestd.process.tree import Tree
from tests.support.hanging import hanging_mount
from tests.support.peer import Watched

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_ENVIRONMENT = {"PATH": "/usr/bin:/bin", MARK: "mine"}
_HOLLOW = """
import _thread, ctypes, os, signal, time

def go_on(first):
    while open(f"/proc/self/task/{first}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    print("up", flush=True)
    signal.pause()

_thread.start_new_thread(go_on, (os.getpid(),))
ctypes.CDLL(None).pthread_exit(None)
"""
_AT_ITS_END = """
import os, sys

if not (child := os.fork()):
    os.execv("/bin/sleep", ["sleep", "1000"])
os.open(sys.stdin.readline()[:-1], os.O_RDONLY)
print(child, flush=True)
os._exit(0)
"""


class _Adopted:
    """All that a tree asks of the reaper."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def expects(self, pid: int) -> bool:
        del pid
        return False

    def adopted(self) -> list[int]:
        return [self._pid]


def _tree_that_adopted(pid: int) -> Tree:
    """Of a job whose first process has ended, and left that one behind."""
    tree = Tree(2**22 + 1, "mine", None, _Adopted(pid))
    tree.first_has_ended()
    return tree


@contextmanager
def _started(code: str) -> Generator[subprocess.Popen[bytes]]:
    """A program with a mark."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        env=_ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_process_that_goes_on_without_its_first_thread_has_not_ended() -> None:
    with _started(_HOLLOW) as hollow:
        assert hollow.stdout is not None
        assert hollow.stdout.readline() == b"up\n"
        member = read_member(hollow.pid)
        assert member is not None
        assert bears(hollow.pid, "mine")
        assert _tree_that_adopted(hollow.pid).members() == [member]
        assert send(member, signal.SIGTERM)
        assert os.waitid(os.P_PID, hollow.pid, os.WEXITED | os.WNOWAIT)
        # Now it has.
        assert read_member(hollow.pid) is None
        assert not send(member, signal.SIGTERM)


def test_whose_memory_is_gone_still_has_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot leave before it has closed its files, and until then they are nobody else's children."""
    with _started(_AT_ITS_END) as ending, hanging_mount(tmp_path, kind=stat.S_IFREG) as hanging:
        assert ending.stdin is not None
        assert ending.stdout is not None
        ending.stdin.write(os.fsencode(hanging.path) + b"\n")
        ending.stdin.flush()
        while not select.select([ending.stdout], [], [], 0)[0]:
            if hanging.asked:
                hanging.answer()
        child = int(ending.stdout.readline())
        with Watched(child) as left:
            try:
                hanging.take()  # what it has to say at its end
                with monkeypatch.context() as patched:
                    patched.setattr(os, "sched_yield", lambda: pytest.fail("it was waited for, in the loop"))
                    assert marks_of(ending.pid, wait=True) is None
                assert [member.pid for member in _tree_that_adopted(ending.pid).members()] == [child]
            finally:
                os.kill(child, signal.SIGKILL)
            left.wait()
