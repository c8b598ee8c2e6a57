"""This process itself, as its kernel and its keeper see it: its descriptors, its limits, and what it tells them."""

from __future__ import annotations

import os
import resource
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from guestd.process.plan import write_oom_score_adj

if TYPE_CHECKING:
    from collections.abc import Mapping

_STDERR_FD = 2


def protect(oom_score_adj: int) -> None:
    """The supervisor is the last to be killed for memory, where it has the right to say so."""
    with suppress(PermissionError, FileNotFoundError):
        write_oom_score_adj("self", oom_score_adj)


def own_descriptors() -> None:
    """Have something at 0, 1 and 2, where every child's own are put; and hand none of the others on to children."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR_FD:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Python has none where there was no descriptor when it began.
    sys.stderr = sys.stderr or open(_STDERR_FD, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  for good
    for name in os.listdir("/proc/self/fd"):
        if int(name) > _STDERR_FD:
            with suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def raise_fd_limit(wanted: int) -> None:
    """The usual soft limit of 1024 is there for programs that use select(2), and the kernel's own hard one, 4096, is
    too low for as many jobs as the settings allow. Where it stays lower, fewer can run.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with suppress(ValueError, OSError):  # no right to
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell the service manager, by systemd's protocol, where there is one."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.send(state.encode())
