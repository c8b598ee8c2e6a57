"""Starting `serve`: fork, place the descriptors, execute. Nothing here waits, and nothing is left half done.

fork is right here and nowhere else in guestd: this process has one thread and few pages. All signals are blocked around
it, so that none reaches Python's handlers in the child, whose wake-up descriptor is the parent's too.
"""

from __future__ import annotations

import fcntl
import os
import resource

from guestd.init import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

_FIRST = 3
_NOT_EXECUTED = 127


def start(
    argv: Sequence[str],
    environ: Mapping[str, str],
    fds: Sequence[tuple[int, str]],
    *,
    files: tuple[int, int],
    oom_score_adj: str,
) -> int:
    """The pid of the new process, which has `fds` at 3 and above and LISTEN_PID as they should be.

    `files`, `oom_score_adj`: RLIMIT_NOFILE, and the score if it
    was changed, as they were given to us. OSError when the
    kernel has no room for a process.
    """
    before = signals.block()
    try:
        pid = os.fork()  # noqa: TID251  see above
        if pid == 0:
            _become(argv, dict(environ), fds, files, oom_score_adj)
    finally:
        signals.unblock(before)
    return pid


def _become(
    argv: Sequence[str],
    environ: dict[str, str],
    fds: Sequence[tuple[int, str]],
    files: tuple[int, int],
    oom_score_adj: str,
) -> NoReturn:
    try:
        # A session of its own: what is typed at a terminal is for PID 1, which tells serve what it means.
        os.setsid()
        signals.forget()
        place([fd for fd, _ in fds])
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        if oom_score_adj:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(oom_score_adj)
        environ["LISTEN_PID"] = environ["WATCHDOG_PID"] = str(os.getpid())
        environ["LISTEN_FDS"] = str(len(fds))
        environ["LISTEN_FDNAMES"] = ":".join(name for _, name in fds)
        signals.unblock(())
        os.execve(argv[0], list(argv), environ)  # noqa: S606  no shell is meant
    except OSError as error:
        os.write(2, f"guestd init: {argv[0]} could not be executed: {error.strerror}\n".encode())
    finally:
        os._exit(_NOT_EXECUTED)


def place(fds: Sequence[int]) -> None:
    """Move the descriptors to 3 and above, in order. Whoever calls executes something else next."""
    sources = list(fds)
    end = _FIRST + len(sources)
    places = {fd: at for at, fd in enumerate(sources)}
    for at in range(len(sources)):
        target = _FIRST + at
        sitting = places.get(target, at)
        if sitting > at:
            # One that is still to be moved sits there: out of the way, for now.
            sources[sitting] = fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, end)
            places[sources[sitting]] = sitting
        if sources[at] == target:
            os.set_inheritable(target, True)
        else:
            os.dup2(sources[at], target)
