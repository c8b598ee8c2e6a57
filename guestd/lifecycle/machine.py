"""What PID 1 is to do when guestd has ended, told over the socket that it has given to guestd for that."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

POWEROFF, REBOOT, EXIT = "poweroff", "reboot", "exit"
ACTIONS = (POWEROFF, REBOOT, EXIT)
_FIRST_FD = 3
_STATUS_MAX = 255
#: The name of the descriptor, among those that are passed on.
SOCKET_NAME = "init"


def tell_init(environ: Mapping[str, str], action: str, status: int) -> bool:
    """Ask for it. False where PID 1 is none that can be asked: then it does what it always does."""
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if SOCKET_NAME not in names or environ.get("LISTEN_PID") != str(os.getpid()):
        return False
    word = {POWEROFF: b"p", REBOOT: b"b", EXIT: b"x" + bytes([min(max(status, 0), _STATUS_MAX)])}[action]
    with suppress(OSError):
        fd = os.dup(_FIRST_FD + names.index(SOCKET_NAME))
        with socket.socket(fileno=fd) as sock:
            return sock.send(word, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(word)
    return False
