"""The early mounts that a kernel leaves out, each only where it is missing.

Missing means something else on a machine than in a container. On a machine /run begins empty at every boot and
/dev/shm and /tmp are memory, unless they are mounts already, or the image has put something into /tmp. In a
container whatever is there and can be written to is somebody's choice, and hiding it would hide what was mounted
into it: only what does not exist or cannot be used is made.
"""

from __future__ import annotations

import os

from guestd.init import libc
from guestd.init.world import CONTAINER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.init.console import Say

MOUNTINFO = "/proc/self/mountinfo"
_STRICT = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


def mount_first(say: Say) -> None:
    """/proc, /sys and /dev: without them nothing can be told about the world."""
    made = [
        target
        for target, sign, kind, flags, options in (
            ("/proc", "/proc/self/stat", "proc", _STRICT, None),
            ("/sys", "/sys/kernel", "sysfs", _STRICT, None),
            ("/dev", "/dev/null", "devtmpfs", libc.MS_NOSUID, "mode=0755"),
        )
        if not os.path.exists(sign) and _make(say, target, kind, flags, options)
    ]
    _tell(say, made)


def mount_rest(world: str, say: Say) -> None:
    """What lies below those, and the places to write to. Not for an ordinary process."""
    mounted = {each.target for each in table()}
    memory = libc.MS_NOSUID | libc.MS_NODEV
    terminals = "gid=5,mode=620,ptmxmode=666"
    made: list[str] = []
    if not os.path.exists("/dev/pts/ptmx") and _make(
        say, "/dev/pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC, terminals
    ):
        made.append("/dev/pts")
    for target, mode, kept in (("/dev/shm", 0o1777, False), ("/run", 0o755, False), ("/tmp", 0o1777, True)):  # noqa: S108  the very places
        if target in mounted or not _missing(target, world, kept=kept):
            continue
        if _make(say, target, "tmpfs", memory, f"mode={mode:o}"):
            made.append(target)
    # Where something else is mounted there, the tree is of the older kind, and somebody's.
    if (
        "/sys/fs/cgroup" not in mounted
        and os.path.isdir("/sys/fs/cgroup")
        and _make(say, "/sys/fs/cgroup", "cgroup2", _STRICT, "nsdelegate")
    ):
        made.append("/sys/fs/cgroup")
    _tell(say, made)


def link_devices(say: Say) -> None:
    """The names in /dev that no kernel makes, and programs count on."""
    made: list[str] = []
    for name, goal in (
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ):
        try:
            os.symlink(goal, name)
            made.append(name)
        except FileExistsError:
            pass
        except OSError as error:
            say(f"no {name}: {error.strerror}")
    if made:
        say(f"linked {' '.join(made)}")


def _missing(target: str, world: str, *, kept: bool) -> bool:
    try:
        found = os.listdir(target)
    except OSError:
        return True
    if world == CONTAINER:
        return not os.access(target, os.W_OK)
    return not (kept and found)


def _make(say: Say, target: str, kind: str, flags: int, options: str | None) -> bool:
    try:
        os.makedirs(target, exist_ok=True)
        try:
            libc.mount(kind, target, kind, flags, options)
        except OSError:
            if options is None:
                raise
            # An option of a newer kernel's, or of another namespace's: without it is better than not at all.
            libc.mount(kind, target, kind, flags, None)
    except OSError as error:
        say(f"no {target}: {error.strerror}")
        return False
    return True


def _tell(say: Say, made: list[str]) -> None:
    if made:
        say(f"mounted {' '.join(made)}")


class Mounted:
    """One line of mountinfo. `whole`: the root of its file system, and not a part bound somewhere else."""

    __slots__ = ("id", "kind", "target", "whole")

    def __init__(self, line: str) -> None:
        before, _, after = line.partition(" - ")
        words = before.split(" ")
        self.id = int(words[0])
        self.whole = words[3] == "/"
        self.target = _unescape(words[4])
        self.kind = after.split(" ", 1)[0]


def table() -> list[Mounted]:
    """All mounts, in the order of their making; none where there is no /proc."""
    try:
        with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
            return [Mounted(line) for line in file]
    except OSError:
        return []


def _unescape(text: str) -> str:
    """The kernel writes blanks, tabs, line ends and backslashes as octal numbers behind a backslash."""
    if "\\" not in text:
        return text
    first, *rest = text.split("\\")
    return first + "".join(chr(int(each[:3], 8)) + each[3:] for each in rest)


#: Nothing of these is on a disk or on somebody else's machine, or can be lost.
_VIRTUAL = frozenset({
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs",
    "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rootfs",
    "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tmpfs", "tracefs",
})  # fmt: skip


def unmount_all(keep: frozenset[int], tell: Callable[[str], None]) -> None:
    """In reverse, all that can hold something, except the mounts numbered in `keep`. The root becomes read-only.

    What is in use is made read-only, so that all of it is written, and is then taken out of sight. Only a whole file
    system is made read-only, never through a part of it that is bound elsewhere. Does not return while a file system's
    server does not answer: whoever calls has a limit of time for that.
    """
    mounted = table()
    real = [f"{each.target}/" for each in mounted if each.kind not in _VIRTUAL and each.target != "/"]
    for each in reversed(mounted):
        if each.id in keep or each.target == "/":
            continue
        if each.kind in _VIRTUAL and not any(each.target.startswith(above) for above in real):
            # It holds nothing, and nothing is held by it.
            continue
        try:
            libc.unmount(each.target)
            tell(f"unmounted {each.target}")
        except OSError as error:
            ending = _read_only(each) if each.whole else "detached"
            _detach(each)
            tell(f"{each.target}: {error.strerror}; {ending}")


def root_read_only(tell: Callable[[str], None]) -> None:
    root = [each for each in table() if each.target == "/"]
    if root and root[-1].whole and root[-1].kind not in {"rootfs", "ramfs"}:
        tell(f"/ {_read_only(root[-1])}")


def _read_only(mounted: Mounted) -> str:
    try:
        libc.mount("none", mounted.target, None, libc.MS_REMOUNT | libc.MS_RDONLY)
    except OSError as error:
        return f"could not be made read-only: {error.strerror}"
    return "is read-only now"


def _detach(mounted: Mounted) -> None:
    try:
        libc.unmount(mounted.target, libc.MNT_DETACH)
    except OSError:
        # Already told that it could not be unmounted; the machine's end takes it.
        return
