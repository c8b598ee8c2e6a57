"""Descriptors that whoever started this process has handed to it, by name: systemd's protocol, which `guestd init`
speaks too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST = 3
#: What systemd calls sockets without a name, and `guestd init` its own.
UNNAMED = "unknown"
#: The socket over which `guestd init` tells of processes, and is told.
INIT = "init"
#: Sockets for the guest's own programs to connect to.
AGENT = "agent"
#: What begins the names of sockets that relays listen on.
RELAY = "relay."


def take_handed(environ: Mapping[str, str]) -> dict[str, list[int]]:
    """Everything that was handed over. From now on it is not inherited by anybody else."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(environ.get("LISTEN_FDS", "0"))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for number in range(count):
        os.set_inheritable(_FIRST + number, False)
        name = (names[number] if number < len(names) else "") or UNNAMED
        found.setdefault(name, []).append(_FIRST + number)
    return found
