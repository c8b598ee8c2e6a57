"""What a machine has and a container has been given: a name, kernel settings, modules.

Every step is tried on its own: a machine without one of these is better than none, and says on its console what it
lacks.
"""

from __future__ import annotations

import _socket
import os
import select
import time

from guestd.init import reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guestd.init.console import Say

_SYSCTL = "/proc/sys"
_MODPROBE = ("/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe")
#: One run of modprobe for all modules takes some tens of milliseconds; a driver that hangs must not stop the boot.
_MODPROBE_SECONDS = 10.0
#: The kernel gives init HOME and TERM alone.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def name_it(asked: str, say: Say) -> None:
    """The hostname: the one that is asked for, else that of /etc/hostname where the kernel was given none."""
    name = asked
    if not name and os.uname().nodename in {"(none)", "localhost", ""}:
        name = _first_line("/etc/hostname")
    if not name:
        return
    try:
        _socket.sethostname(name)
    except OSError as error:
        say(f"the hostname {name} could not be set: {error.strerror}")


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file]
    except OSError:
        return ""
    return next((line for line in lines if line and not line.startswith("#")), "")


def set_kernel(values: Mapping[str, str], say: Say) -> None:
    """sysctl: dots part the names, unless there is a slash; then slashes do, as sysctl(8) has it."""
    for name, value in values.items():
        path = name if "/" in name else name.replace(".", "/")
        whole = os.path.normpath(f"{_SYSCTL}/{path}")
        try:
            if not whole.startswith(f"{_SYSCTL}/"):
                raise FileNotFoundError(2, "no such setting")
            with open(whole, "w", encoding="utf-8") as file:
                file.write(value)
        except OSError as error:
            say(f"sysctl {name} = {value}: {error.strerror}")


def load_modules(names: Iterable[str], say: Say) -> None:
    """All in one run, in the order given; modprobe knows what each depends on, and leaves out what is loaded."""
    wanted = [name for name in names if not os.path.isdir(f"/sys/module/{name.replace('-', '_')}")]
    if not wanted:
        return
    program = next((path for path in _MODPROBE if os.access(path, os.X_OK)), None)
    if program is None:
        say(f"modules {' '.join(wanted)}: there is no modprobe in the image")
        return
    # Nobody else waits here yet.
    pid = os.posix_spawn(program, [program, "-a", *wanted], os.environ)  # noqa: TID251  PID 1 runs it before there is a serve
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    begun = time.monotonic()
    if not poll.poll(_MODPROBE_SECONDS * 1000):
        say(f"modprobe has not ended after {_MODPROBE_SECONDS:.0f} s; going on without it")
    else:
        status = reap.wait_for(pid)
        took = (time.monotonic() - begun) * 1000
        if status:
            say(f"modprobe -a {' '.join(wanted)}: {reap.in_words(status)}")
        else:
            say(f"loaded {' '.join(wanted)} in {took:.0f} ms")
    os.close(ended)
