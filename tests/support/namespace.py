"""The private mount and PID namespace that tests of processes and mounts run in: the one `./image/try` makes.

In it, every process is a test's own, so that one that outlives its test is found whatever became of its parents, and
nothing that a test mounts or leaves running reaches the machine. PID 1 there is image/namespace.py: it reaps orphans.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "image" / "namespace.py"


def unavailable() -> str | None:
    """Why there can be no private namespace here, or None. Asked by trying, since no file tells."""
    trial = subprocess.run(
        [sys.executable, "-S", PROGRAM, "--check"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        None if trial.returncode == 0 else trial.stderr.strip() or f"the trial ended with {trial.returncode}"
    )


def command(argv: list[str]) -> list[str]:
    """The command that runs `argv` in a private namespace and ends with its status."""
    return [sys.executable, "-S", str(PROGRAM), "--", *argv]


@cache
def user_namespaces() -> bool:
    """Whether there can be one here: some kernels' settings and any chroot forbid it, to root as well."""
    return subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0


def forbidding() -> list[str]:
    """What to put before a command so that it can have no namespace of its own, as in many a container."""
    if not user_namespaces():
        return ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    limits = "; ".join(f"echo 0 >/proc/sys/user/max_{kind}_namespaces" for kind in ("user", "mnt", "pid"))
    return ["unshare", "--user", "--map-root-user", "sh", "-c", f'{limits}; exec "$@"', "sh"]


@cache
def entered() -> bool:
    """Whether this process is in a namespace whose PID 1 is image/namespace.py."""
    with open("/proc/1/cmdline", "rb") as f:
        return any(word.endswith(b"image/namespace.py") for word in f.read().split(b"\0"))


def require() -> None:
    """Fails the test that asks, outside: its processes and mounts would be the machine's."""
    if not entered():
        pytest.fail(
            "this tier runs in a private mount and PID namespace: use `./tests/run TIER`, or "
            f"`python {PROGRAM.relative_to(PROGRAM.parents[1])} -- python -m pytest …`",
            pytrace=False,
        )
