"""Installs the peers, each by its own package manager: apt-get (as root), pip into a venv, npm into a folder.

Nothing here is needed to measure guestd, so nothing is installed unless somebody asks. What goes wrong is
printed and ends nothing: the rows name the peers that are absent. Versions are fixed where they can be, so
that figures can be compared between machines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.lab import cache_directory
from bench.peers import sandbox_agent, swe_rex

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

_DEBIAN = {
    "qemu-ga": "qemu-guest-agent",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "dtach": "dtach",
    "screen": "screen",
    "tmux": "tmux",
}
_SBIN = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
_POLICY = "/usr/sbin/policy-rc.d"


def every() -> bool:
    """Install what is absent. True when all of it is there afterwards."""
    cache = cache_directory()
    os.makedirs(cache, exist_ok=True)
    return all([_from_debian(), _from_pypi(cache), _from_npm(cache)])


def _from_debian() -> bool:
    packages = [package for binary, package in _DEBIAN.items() if not shutil.which(binary, path=_SBIN)]
    if not packages:
        return True
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        _say(f"as root on Debian: apt-get install {' '.join(packages)}")
        return False
    with _no_services():
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        return _run(["apt-get", "update", "-qq"]) and _run(command)


def _from_pypi(cache: str) -> bool:
    home = os.path.join(cache, "swe-rex")
    if os.access(os.path.join(home, "bin", "swerex-remote"), os.X_OK):
        return True
    venv.create(home, with_pip=True)
    return _run(
        [os.path.join(home, "bin", "python"), "-m", "pip", "install", "-q", f"swe-rex=={swe_rex.VERSION}"]
    )


def _from_npm(cache: str) -> bool:
    package = sandbox_agent.package()
    if package is None:
        _say("sandbox-agent has no package for this machine")
        return False
    home = os.path.join(cache, "sandbox-agent")
    binary = os.path.join(home, "node_modules", package, "bin", "sandbox-agent")
    if os.access(binary, os.X_OK):
        return True
    if not shutil.which("npm"):
        _say("npm is needed for sandbox-agent")
        return False
    # The package of the binary alone, and without its script, whose only work is the chmod.
    asked = f"{package}@{sandbox_agent.VERSION}"
    done = _run(
        ["npm", "install", "--silent", "--no-fund", "--no-audit", "--ignore-scripts", "--prefix", home, asked]
    )
    if done:
        os.chmod(binary, 0o755)  # a program that everybody may start
    return done


@contextmanager
def _no_services() -> Generator[None]:
    """Debian starts the services of what it installs, unless this says no. The bench starts its own."""
    if os.path.lexists(_POLICY):
        yield
        return
    with open(_POLICY, "w", encoding="ascii") as policy:
        policy.write("#!/bin/sh\nexit 101\n")
    os.chmod(_POLICY, 0o755)
    try:
        yield
    finally:
        os.unlink(_POLICY)


def _run(argv: Sequence[str]) -> bool:
    _say(" ".join(argv))
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Its output goes to stderr: stdout belongs to the table.
    return (
        subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment
        ).returncode
        == 0
    )


def _say(what: str) -> None:
    print(f"bench: installing peers: {what}", file=sys.stderr)
