"""The leak detectors: what a test leaves behind fails that test.

Watched: descriptors, processes, mounts, threads (fixtures around every test), system tasks of Trio (the runner of every
Trio test), and log records at WARNING and above that the test has not announced. A pytest plugin, so that its own tests
can load it into a suite that leaks on purpose.

Exact rather than patient: a thing is forgiven only when it is provably on its way out (a thread past its last Python
instruction, a process that is being reaped or has a SIGKILL pending), and then it must be gone soon. A test that leaves
something on purpose says so with `@pytest.mark.leaks("thread", reason="…")`.

A check costs about a quarter of a millisecond: one listing each of the descriptors and threads, one read of the
mount table, one listing of /proc, which in the private namespace of the tests holds little but the test itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio

from tests.support import namespace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

T = TypeVar("T")

_libc = ctypes.CDLL(None)

KINDS = ("fd", "process", "mount", "thread")

#: How long something that is provably ending may take. Reached only by a failure, or a machine at a standstill.
_ENDING = 30.0
#: There is no event for "reaped by somebody else" or "the thread's last instruction"; this is how often we look.
_LOOK_AGAIN = 0.001

_PF_EXITING = 0x4
_PR_SET_CHILD_SUBREAPER = 36
_SIGKILL_BIT = 1 << (signal.SIGKILL - 1)
#: Trio keeps finished worker threads for ten seconds, under this name. A busy one is named for its work.
_IDLE_TRIO_WORKER = re.compile(r"Trio thread \d+")


# ------------------------------------------------------------------------------------------------------- what there is


def descriptors() -> dict[int, str]:
    """The open descriptors and what they are of: a number alone may have been closed and given out again."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def processes() -> frozenset[int]:
    """In a private namespace all that is in it; elsewhere the children of this process, zombies included."""
    if namespace.entered():
        return frozenset(int(name) for name in os.listdir("/proc") if name.isdecimal())
    return frozenset(_children())


def mounts() -> dict[str, str]:
    """The mount table by mount id, each with where it is and what it is of."""
    found: dict[str, str] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            words = line.split(" ")
            found[f"{words[0]} {words[4]}"] = f"{words[4]} ({' '.join(line.rstrip().split(' - ', 1)[1:])})"
    return found


def threads() -> frozenset[int]:
    """The kernel's threads of this process: those of C libraries are in no list of Python's."""
    return frozenset(int(name) for name in os.listdir("/proc/self/task"))


def _children() -> Iterator[int]:
    for thread in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/children", encoding="ascii") as f:
            yield from map(int, f.read().split())


# --------------------------------------------------------------------------------------------------- what is left over


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is at one moment; `leaks` says what has come since and is still there."""

    fds: dict[int, str]
    pids: frozenset[int]
    mounted: dict[str, str]
    tids: frozenset[int]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(descriptors(), processes(), mounts(), threads())

    def leaks(self) -> dict[str, list[str]]:
        """By kind, in words. Threads and processes first: what is on its way out may hold descriptors until it is."""
        found = {
            "thread": [text for tid in sorted(threads() - self.tids) if (text := _thread_left(tid))],
            "process": [text for pid in sorted(processes() - self.pids) if (text := process_left(pid))],
            "fd": [
                f"{fd} → {what}" for fd, what in sorted(descriptors().items()) if self.fds.get(fd) != what
            ],
            "mount": [_unmounted(key, what) for key, what in mounts().items() if key not in self.mounted],
        }
        return {kind: left for kind, left in found.items() if left}


def _unmounted(key: str, what: str) -> str:
    """A mount still there, in words. It is taken away, so that only one test fails for it, and never the machine's."""
    if namespace.entered():
        subprocess.run(
            ["umount", "--lazy", key.partition(" ")[2].encode().decode("unicode_escape")], check=False
        )
    return what


def _thread_left(tid: int) -> str | None:
    for thread in threading.enumerate():
        if thread.native_id == tid and thread.is_alive():
            return None if _IDLE_TRIO_WORKER.fullmatch(thread.name) else f"{thread.name} ({tid})"
    # Python has let go of it, or never knew it.
    deadline = time.monotonic() + _ENDING
    while os.path.exists(f"/proc/self/task/{tid}"):
        if time.monotonic() > deadline:
            return f"a thread that Python does not know ({tid})"
        time.sleep(_LOOK_AGAIN)
    return None


def process_left(pid: int) -> str | None:
    """A process still there, in words. It is ended, so that only one test fails for it."""
    deadline = time.monotonic() + _ENDING
    while (state := _read_process(pid)) is not None:
        if not state.passing or time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            return state.text
        time.sleep(_LOOK_AGAIN)
    return None


@dataclass(frozen=True, slots=True)
class _Process:
    text: str
    #: About to be something else: gone, or another program.
    passing: bool


def _read_process(pid: int) -> _Process | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            name, _, rest = f.read().partition("(")[2].rpartition(") ")
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as f:
            pending = sum(
                int(word, 16) & _SIGKILL_BIT
                for word in re.findall(r"^S\w+Pnd:\s*(\w+)$", f.read(), re.MULTILINE)
            )
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = rest.split()
    state, parent, flags = words[0], int(words[1]), int(words[6])
    hollow = (
        state == "Z" and int(words[17]) > 1
    )  # without its first thread, and no nearer to its end for that
    if state == "Z" and not hollow:
        # One of ours has nobody else to reap it. One of another parent's is that parent's, which may be at it just now.
        text = f"{name} ({pid}) has ended and nobody has waited for it; its parent is {parent}"
        return _Process(text, passing=parent != os.getpid())
    command = b""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as f:
        command = f.read()
    # In the middle of an exec it has none, and still the name of the program before.
    name = command.replace(b"\0", b" ").decode(errors="replace").strip() or name
    ending = pending or (not hollow and (flags & _PF_EXITING or not command))
    return _Process(f"{name} ({pid}), a child of {parent}", passing=bool(ending))


# ------------------------------------------------------------------------------------------------------ tasks of Trio


class TaskWatch(trio.abc.Instrument):
    """Knows which tasks outlive the main task: system tasks that nobody stopped, which Trio then cancels in silence.

    All others are in a nursery that somebody has to leave, so that they cannot be left over.
    """

    def __init__(self) -> None:
        self.left: list[str] = []
        self._alive: dict[trio.lowlevel.Task, None] = {}  # in order of birth
        self._main: trio.lowlevel.Task | None = None

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        # Trio starts its root task first, and the main task next.
        if self._main is None and task.parent_nursery is not None:
            self._main = task
        self._alive[task] = None

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        del self._alive[task]
        if task is self._main:
            self.left = [other.name for other in self._alive if not other.name.startswith("<")]


def watched_run(
    async_fn: Callable[..., Awaitable[T]],
    *args: object,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> T:
    """`trio.run` that fails when the program is over and tasks of its own are not."""
    watch = TaskWatch()
    result = trio.run(async_fn, *args, clock=clock, instruments=[*instruments, watch])
    if watch.left:
        pytest.fail(
            f"leaked task: {', '.join(watch.left)} still running when the test was over", pytrace=False
        )
    return result


# ------------------------------------------------------------------------------------------------------- in the suite


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((f"{record.levelname} {record.name}", record.getMessage()))


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_by_the_session() -> Iterator[None]:
    """What fixtures of modules and sessions leave. A process that a test left has been ended and is not told twice."""
    before = Snapshot.take()
    yield
    left = before.leaks()
    told = [f"leaked {kind}: {text}" for kind in ("process", "mount") for text in left.get(kind, ())]
    if told:
        pytest.fail("\n".join(["by a fixture of a module or of the session:", *told]), pytrace=False)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around every test and its fixtures: a plugin's autouse fixture is set up first and torn down last."""
    allowed = {str(kind) for mark in request.node.iter_markers("leaks") for kind in mark.args}
    if unknown := allowed.difference(KINDS):
        pytest.fail(
            f"no such kind of leak: {', '.join(unknown)}; there are {', '.join(KINDS)}", pytrace=False
        )
    before = Snapshot.take()
    yield
    # A supervisor makes its process the heir of all orphans, and it is so for good. The next test's go to PID 1, who
    # reaps them; here each would be a zombie.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    left = before.leaks()
    told = [f"leaked {kind}: {text}" for kind, texts in left.items() if kind not in allowed for text in texts]
    if told:
        pytest.fail("\n".join(told), pytrace=False)


@pytest.fixture(autouse=True)
def _nothing_logged(request: pytest.FixtureRequest) -> Iterator[None]:
    """A warning in the log is somebody's work at night: a test announces it by `@pytest.mark.logs("pattern")`."""
    expected = [
        re.compile(str(pattern)) for mark in request.node.iter_markers("logs") for pattern in mark.args
    ]
    records = _Records()
    root = logging.getLogger()
    root.addHandler(records)
    try:
        yield
    finally:
        root.removeHandler(records)
    told = [
        f"unexpected log record, {where}: {text}"
        for where, text in records.seen
        if not any(pattern.search(text) for pattern in expected)
    ]
    if told:
        pytest.fail("\n".join(told), pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts `watched_run` under every Trio test; pytest-trio, which marks them first, takes the nearest mark."""
    for item in items:
        if item.get_closest_marker("trio") is not None:
            item.add_marker(pytest.mark.trio(run=watched_run), append=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaks(*kinds, reason): what this test leaves on purpose, and why")
    config.addinivalue_line("markers", "logs(*patterns): log records at WARNING and above to be expected")
    if sys.platform != "linux":
        raise pytest.UsageError("the suite reads /proc: it runs on Linux")
