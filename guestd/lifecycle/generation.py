"""The kernel's word that this machine is a copy: its VM generation id has changed.

The kernel seeds its own generator then, and tells user space by a uevent (NEW_VMGENID=1, Linux 5.18 and later).
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("guestd.life")
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_UEVENT_MAX = 64 * 1024
_BUFFER = 1024 * 1024
_NEW = b"NEW_VMGENID=1"


def is_new_generation(message: bytes, sender: int) -> bool:
    """Is that it? `sender`: the netlink port it came from; the kernel's is 0, and nobody else's word counts."""
    return sender == 0 and _NEW in message.split(b"\0")


async def watch_generation(told: Callable[[], None]) -> None:
    """Tell of each change. Ends at once where the kernel tells nobody here."""
    try:
        sock = trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT)
    except OSError:
        return
    with sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            await sock.bind((0, _KERNEL_GROUP))
        except OSError:
            return
        while True:
            try:
                message, (sender, _) = await sock.recvfrom(_UEVENT_MAX)
            except OSError as error:
                # ENOBUFS: more than the socket holds, a storm of devices.
                _log.warning("uevents were lost, among them perhaps that this machine is a copy: %s", error)
                continue
            if is_new_generation(message, sender):
                told()
