"""Control groups, version 2: one for each job where that is possible, so that no process of a tree gets away.

Nothing here is required. Where there is no cgroup2, or no right to make groups in it, `find` returns None and
trees are found through /proc instead.

Moving a process into a group makes the kernel wait for every fork and exec of the machine to pass a gate, and
them for it: one to two milliseconds for everybody. So jobs are born into their group where the launcher
clones them (CLONE_INTO_CGROUP takes no gate), and moved into it, from a thread, only once they have lived a
while.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

_PREFIX = "guestd."
#: To make a folder that nobody else has taken for deserted: once would do, but for supervisors starting together.
_ATTEMPTS = 5
#: Accounting wants the first; the others are for limits that a job may get.
_CONTROLLERS = ("memory", "pids", "cpu")


class Cgroup:
    """The group of one job."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def add(self, pid: int) -> None:
        _write(f"{self.path}/cgroup.procs", str(pid))

    def open(self) -> int:
        """A descriptor to be born into."""
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def pids(self) -> list[int]:
        """Every living process of the group and of groups made within it."""
        found: list[int] = []
        for folder in self._folders():
            try:
                with open(f"{folder}/cgroup.procs") as file:
                    # 0 stands for a process of another pid namespace, which no number of ours reaches.
                    found += [pid for pid in map(int, file.read().split()) if pid]
            except OSError as error:
                # Removed before it was opened, or since: only an empty one can be. Or a threaded one that the job has
                # made, whose processes are listed by the group above it.
                if error.errno not in {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP}:
                    raise
        return found

    def kill(self) -> bool:
        """SIGKILL to all at once, forks under way included. False where the kernel (before 5.14) cannot."""
        try:
            _write(f"{self.path}/cgroup.kill", "1")
        except OSError:
            return False
        return True

    def peak_memory(self) -> int | None:
        try:
            with open(f"{self.path}/memory.peak") as file:
                return int(file.read())
        except OSError:
            return None

    def oom_kills(self) -> int:
        """How many processes of the group the kernel has killed for memory."""
        with suppress(OSError), open(f"{self.path}/memory.events") as file:
            for line in file:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        return 0

    def remove(self) -> bool:
        """Take the group away if it is empty; False when something still lives in it."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            if self.pids():
                return False
            # Groups the job made within its own.
            for folder in reversed(self._folders()):
                try:
                    os.rmdir(folder)
                except OSError:
                    return False
        return True

    def _folders(self) -> list[str]:
        return [folder for folder, _, _ in os.walk(self.path)] or [self.path]


class Cgroups:
    """Where this supervisor makes groups: a folder of its own, since others may share the group that it lives
    in. The folder is locked as long as its supervisor lives, so whoever comes later knows which are deserted; a
    pid would say nothing to a supervisor in another pid namespace.
    """

    def __init__(self, root: str, lock: int) -> None:
        self.root = root
        self._lock = lock

    def create(self, key: str) -> Cgroup | None:
        """A new group; None when the kernel refuses one (a limit on their number, a tree made read-only)."""
        path = f"{self.root}/{key}"
        try:
            os.mkdir(path)
        except OSError:
            return None
        return Cgroup(path)

    def close(self) -> None:
        """Remove what is empty."""
        _remove_empty(self.root)
        os.close(self._lock)


def find() -> Cgroups | None:
    """Where groups can be made, proved by making one."""
    mount = _cgroup2_mount()
    if mount is None:
        return None
    parent = f"{mount}{_own_group()}".rstrip("/")
    if not os.path.isdir(parent):
        return None
    _clear_deserted(parent)
    _enable_controllers(parent)
    for _ in range(_ATTEMPTS):
        root = f"{parent}/{_PREFIX}{os.urandom(4).hex()}"
        try:
            os.mkdir(root)
        except OSError:
            return None
        # Between these two a supervisor that starts in the same moment may have taken it for deserted.
        lock = _lock(root)
        if lock is not None:
            _enable_controllers(root)
            return Cgroups(root, lock)
    return None


def _clear_deserted(parent: str) -> None:
    """What supervisors left behind that were killed."""
    for folder in _subfolders(parent):
        if os.path.basename(folder).startswith(_PREFIX) and (lock := _lock(folder)) is not None:
            _remove_empty(folder)
            os.close(lock)


def _lock(folder: str) -> int | None:
    """Hold the folder until the descriptor is closed. None when another process does, or when it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(folder)):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _remove_empty(folder: str) -> None:
    for entry in _subfolders(folder):
        Cgroup(entry).remove()
    with suppress(OSError):
        os.rmdir(folder)


def _enable_controllers(folder: str) -> None:
    """One by one: a group with processes of its own may refuse some, and then goes without."""
    for controller in _CONTROLLERS:
        with suppress(OSError):
            _write(f"{folder}/cgroup.subtree_control", f"+{controller}")


def _cgroup2_mount() -> str | None:
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.startswith("cgroup2 "):
                return before.split(" ")[4].replace("\\040", " ")
    return None


def _own_group() -> str:
    with open("/proc/self/cgroup") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return ""


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
