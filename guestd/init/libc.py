"""The system calls that Python has no function for. ctypes is imported by the first of them: it costs 2 ms."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
RB_DISABLE_CAD, RB_HALT, RB_POWER_OFF, RB_RESTART = 0, 0xCDEF0123, 0x4321FEDC, 0x01234567
PR_SET_CHILD_SUBREAPER = 36

_loaded: list[ctypes.CDLL] = []


def _call(name: str, what: str, *arguments: object) -> None:
    import ctypes

    if not _loaded:
        _loaded.append(ctypes.CDLL(None, use_errno=True))
    words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if getattr(_loaded[0], name)(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    kind_bytes = None if kind is None else kind.encode()
    options_bytes = None if options is None else os.fsencode(options)
    _call("mount", target, os.fsencode(source), os.fsencode(target), kind_bytes, flags, options_bytes)


def unmount(target: str, flags: int = 0) -> None:
    _call("umount2", target, os.fsencode(target), flags | UMOUNT_NOFOLLOW)


def reboot(how: int) -> None:
    """The C libraries add the magic numbers."""
    _call("reboot", "reboot", how)


def adopt_orphans() -> None:
    """What PID 1 does by itself: whatever loses its parent below this process becomes its child."""
    _call("prctl", "PR_SET_CHILD_SUBREAPER", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
