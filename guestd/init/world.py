"""Where this runs: on a machine of its own, as PID 1 of a container, or as an ordinary process somebody tries.

It decides what is ours to do. A machine: mounts, hostname, network, power. A container: only the mounts that are
missing and may be made; its end is an exit status. An ordinary process: nothing beyond itself.
"""

from __future__ import annotations

import os

MACHINE, CONTAINER, PROCESS = "machine", "container", "process"

#: PROC_PID_INIT_INO: the kernel's first PID namespace has this number on every kernel.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
_CAP_SYS_BOOT = 22
_MARKS = ("/run/.containerenv", "/.dockerenv", "/run/.dockerenv")


def find(asked: str) -> tuple[str, str]:
    """The kind of world and why it is taken for that. `asked` is the setting: auto, machine or container.

    PID 1 of the kernel's first PID namespace is a machine's, whatever files lie about: an image that was exported
    from a container has that container's marks in it, and exiting on a machine is a kernel panic.
    """
    if os.getpid() != 1:
        return PROCESS, "not PID 1"
    if asked in {MACHINE, CONTAINER}:
        return asked, "init.kind"
    if os.environ.get("container"):  # noqa: SIM112  systemd's, podman's and LXC's name for it is in lower case
        return CONTAINER, "the variable container"
    if not _may_reboot():
        return CONTAINER, "no CAP_SYS_BOOT"
    try:
        first = os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        for mark in _MARKS:
            if os.path.exists(mark):
                return CONTAINER, mark
        return MACHINE, "no sign of a container"
    return (MACHINE, "the first PID namespace") if first else (CONTAINER, "a PID namespace of its own")


def _may_reboot() -> bool:
    """Without /proc nothing tells, and there is /proc in every container."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_SYS_BOOT & 1)
    except OSError:
        pass
    return True
