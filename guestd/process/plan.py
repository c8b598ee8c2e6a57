"""A process to be: everything that is asked of it, and how its failure to start is told."""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guestd.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.cgroup import Cgroup
    from guestd.process.identity import Identity

#: What guestd was started with, and gives to its children. It raises its own, and programs that use
#: select(2), or close every descriptor they could have, would suffer from that.
CHILD_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)


@dataclass(slots=True, kw_only=True)
class Plan:
    """A process to be. `cwd` lists directories to try, the first of which is the one that matters."""

    program: str
    argv: list[bytes]
    env: dict[bytes, bytes]
    cwd: list[str]
    identity: Identity
    #: The child's descriptors: one of this process's, or None for closed.
    fds: dict[int, int | None]
    umask: int = 0o022
    rlimits: list[tuple[int, tuple[int, int]]] = field(default_factory=list[tuple[int, tuple[int, int]]])
    nice: int = 0
    oom_score_adj: int = 0
    no_new_privs: bool = False
    drop_capabilities: list[int] = field(default_factory=list[int])
    #: Its descriptor 0 is a terminal, which is to control it.
    terminal: bool = False
    #: A file, and where in it the new process writes its number before it does anything else.
    witness: tuple[int, int] | None = None
    #: Called when it is about to be asked for: from then on it may come to be, whatever becomes of this process.
    is_asked_for: Callable[[], None] | None = None
    #: To be born into, where it is the launcher that spawns. None afterwards if that could not be.
    cgroup: Cgroup | None = None


def read_oom_score_adj(pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/oom_score_adj") as file:
        return int(file.read())


def write_oom_score_adj(pid: int | str, value: int) -> None:
    fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def explain(plan: Plan, stage: str, number: int, text: str) -> StartFailed:
    """An error a person can act on: what was asked, what is wrong, what would be right."""
    name = errno.errorcode.get(number, str(number))
    match stage:
        case "exec" if number == errno.E2BIG:
            what = "argv and environment together are longer than the kernel takes; pass the data by stdin or a file"
        case "exec" if number == errno.ENOEXEC:
            what = f"{plan.program!r} has no format the kernel can run; a script needs a first line like #!/bin/sh"
        case "exec" if number == errno.ENOENT and "/" in plan.program:
            what = f"no such file: {plan.program!r}, or the interpreter that it names does not exist"
        case "exec":
            what = f"{plan.program!r}: {text}"
        case "cwd":
            what = f"the directory {plan.cwd[0]!r}: {text}"
        case "user":
            what = f"becoming user {plan.identity.name!r} (uid {plan.identity.uid}): {text}"
        case "fork" if number in {errno.EAGAIN, errno.ENOMEM}:
            what = f"no new process: {text}; the machine, or a limit on processes, is exhausted"
        case _:
            what = f"{stage}: {text}"
    return StartFailed(f"could not start: {what} ({stage}, {name})", stage=stage, errno=number)
