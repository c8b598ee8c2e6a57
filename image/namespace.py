"""Runs a command in a mount and PID namespace of its own (and a user namespace where it takes one), as its PID 1.

    python image/namespace.py [--check] [--] COMMAND…

Promises. Inside, `/mnt/workspace` is an empty directory in memory, `/proc` shows the namespace, and orphans are reaped.
The command's exit status is this program's: 128+N for signal N, 125 when no namespace could be had (the reasons are
on stderr). SIGTERM and SIGHUP sent to this program reach the command. When the command ends, or any of the processes
here is killed, all that runs in the namespace is gone, and its mounts with it: nothing is left on the machine.

Three processes: the caller's (outer), which stays where it was; the keeper, which has entered the new namespaces and
is the parent of PID 1, because a PID namespace begins with the next child; and PID 1. Each dies with the one above.

Standard library only, with the system calls by ctypes: os.unshare came with Python 3.12, and a program like unshare(1)
ignores SIGTERM, does not reap, and leaves the workspace to somebody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1

WORKSPACE = "/mnt/workspace"
FAILED = 125
#: What a command must not inherit as ignored: Python ignores the first two, PID 1 the rest.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)


class Unavailable(Exception):
    """No private namespace can be had here, and nothing was run; says why, for each way that was tried."""


def run(command: Sequence[str]) -> int:
    """Runs the command in there and returns its status; raises Unavailable if there is no there.

    Root tries without a user namespace first: in one only a single user would exist, and no other could be run as.
    """
    modes = [_CLONE_NEWUSER] if os.geteuid() else [0, _CLONE_NEWUSER]
    reasons: list[str] = []
    for mode in modes:
        status, reason = _attempt(command, mode)
        if reason is None:
            return status
        reasons.append(f"{'with' if mode else 'without'} a user namespace: {reason}")
    raise Unavailable("; ".join(reasons))


def _attempt(command: Sequence[str], mode: int) -> tuple[int, str | None]:
    report, tell = (
        os.pipe()
    )  # both ends close on exec; end of file without a word means that the command was started
    # From before the fork, so that a signal in between is late rather than lost.
    forwarded = _Forwarding()
    outer = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        os.close(report)
        _exit_with(lambda: _keep(command, mode, outer, tell), tell)
    os.close(tell)
    forwarded.to(keeper)
    try:
        with open(report, encoding="utf-8") as f:
            reason = f.read()
        _, status = os.waitpid(keeper, 0)
    finally:
        forwarded.end()
    return _exit_status(status), reason or None


def _keep(command: Sequence[str], mode: int, outer: int, tell: int) -> int:
    """In the keeper: enters the namespaces, starts PID 1, and ends as it ends."""
    # The ids are read before they change: in the new user namespace they are nobody's until the maps are written.
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _libc.unshare(mode | _CLONE_NEWNS | _CLONE_NEWPID))
    if mode:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
    # Not earlier: gaining the capabilities of a user namespace clears it.
    _die_with(outer)
    forwarded = _Forwarding()
    alive, keep = (
        os.pipe()
    )  # the child cannot see its parent's pid across the namespace; it sees this pipe close
    first = os.fork()
    if first == 0:
        os.close(keep)
        _exit_with(lambda: _first(command, alive, tell), tell)
    os.close(tell)
    os.close(alive)
    forwarded.to(first)
    _, status = os.waitpid(first, 0)
    return _exit_status(status)


def _first(command: Sequence[str], alive: int, tell: int) -> int:
    """In PID 1: makes the place, starts the command, reaps everything, and ends with the command's status."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_blocking(alive, False)
    with contextlib.suppress(BlockingIOError):
        os.read(alive, 1)
        return FAILED  # end of file: the keeper died before the line above
    forwarded = _Forwarding()
    # Both come from the terminal to everybody at once; only the command is meant.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _make_workspace()
    try:
        child = os.posix_spawnp(command[0], [*command], os.environ, setsigdef=_RESET)
    except OSError as e:
        print(f"{command[0]}: {e.strerror}", file=sys.stderr)
        return 127 if e.errno == errno.ENOENT else 126
    finally:
        os.close(tell)
    forwarded.to(child)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return _exit_status(status)


def _make_workspace() -> None:
    """Puts a tmpfs over /mnt with what is there bound into it again, and an empty workspace beside it.

    The machine's own /mnt may have no workspace and may not be writable, and it may hold this very checkout.
    """
    below = os.open("/mnt", os.O_PATH | os.O_DIRECTORY)
    names = os.listdir("/mnt")
    _mount("guestd", "/mnt", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    for name in names:
        if name != "workspace":
            _bind(f"/proc/self/fd/{below}/{name}", f"/mnt/{name}")
    os.close(below)
    os.mkdir(WORKSPACE)


def _bind(source: str, target: str) -> None:
    mode = os.lstat(source).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), target)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    _mount(source, target, None, _MS_BIND | _MS_REC)


class _Forwarding:
    """Passes SIGTERM and SIGHUP on to one child. What comes before the child is known waits for it."""

    def __init__(self) -> None:
        self._child: int | None = None
        self._waiting: list[int] = []
        self._before = {number: signal.signal(number, self._pass_on) for number in _FORWARDED}
        # The keyboard's signals reach the command by themselves.
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, signal.SIG_IGN)

    def _pass_on(self, number: int, _frame: object) -> None:
        if self._child is None:
            self._waiting.append(number)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)

    def to(self, child: int) -> None:
        self._child = child
        for number in self._waiting:
            self._pass_on(number, None)

    def end(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(FAILED)  # it died before the line above


def _exit_with(work: Callable[[], int], tell: int) -> NoReturn:
    """Ends a forked process with what `work` returns, or with the reason for its failure in the pipe."""
    status = FAILED
    try:
        status = work()
    except OSError as e:
        with contextlib.suppress(OSError):
            os.write(tell, f"{e.strerror} ({errno.errorcode.get(e.errno or 0, e.errno)})".encode())
    finally:
        sys.stderr.flush()
        # Not sys.exit: the clean-up of the process that was forked from is not this one's to do.
        os._exit(status)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )
    _call(f"mount {target}", done)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as f:
        f.write(text)


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def main(arguments: Sequence[str]) -> int:
    checking = arguments[:1] == ["--check"]
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print("which command? usage: namespace.py [--check] [--] COMMAND…", file=sys.stderr)
        return FAILED
    try:
        return run([sys.executable, "-S", "-c", ""] if checking else command)
    except Unavailable as e:
        print(f"no private namespace: {e}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
