"""The kernel's word that this machine is a copy: its VM generation id has changed.

The kernel seeds its own generator then, and programs hear of it in one of two ways:
- It says so in its log (Linux 5.18 and later, with CONFIG_VMGENID). Nobody has promised that these words stay; they are
  the same in each release so far, and most of them have nothing better.
- It sends a uevent (NEW_VMGENID=1). Linux 6.8 did, and had it taken out again; some makers' kernels kept it.

Nobody but the kernel can say either: what a program writes into the log is marked as a program's, and a uevent says who
sent it.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.process.kernel_log import open_kernel_log

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("guestd.life")
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_UEVENT_MAX = 64 * 1024
_BUFFER = 1024 * 1024
_NEW = b"NEW_VMGENID=1"

_RECORD_MAX = 8192
#: A log that is written faster than anybody can read it gets no more of the loop than that at a time.
_RECORDS = 64
_FORKED = b"random: crng reseeded due to virtual machine fork"
#: The kernel says both within one function. Far below the time that another copy takes to be made and started.
_SAME = 5.0


def is_new_generation(message: bytes, sender: int) -> bool:
    """Is that it? `sender`: the netlink port it came from; the kernel's is 0, and nobody else's word counts."""
    return sender == 0 and _NEW in message.split(b"\0")


def says_new_generation(record: bytes) -> bool:
    """Does that record of /dev/kmsg («priority,sequence,time,flags;text») say it? Facility 0 is the kernel's own."""
    head, _, text = record.partition(b";")
    priority = head.partition(b",")[0]
    return priority.isdigit() and int(priority) >> 3 == 0 and text.partition(b"\n")[0] == _FORKED


class Changes:
    """Tells once of what may be heard in two ways."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._last: tuple[str, float] | None = None

    def heard(self, way: str, now: float) -> None:
        """In that way. The same change in the other one is no news; in the same way it is another change."""
        if self._last is not None and self._last[0] != way and now - self._last[1] < _SAME:
            return
        self._last = way, now
        self._told()


async def watch_generation(told: Callable[[], None]) -> None:
    """Tell of each change. Ends at once where the kernel tells nobody here."""
    changes = Changes(told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_log, changes)
        nursery.start_soon(_watch_uevents, changes)


async def _watch_log(changes: Changes) -> None:
    try:
        fd = open_kernel_log()
    except OSError:
        # A container has none, or may not read it.
        return
    try:
        while True:
            await trio.lowlevel.wait_readable(fd)
            if not _read_records(fd, changes):
                return
    finally:
        with suppress(RuntimeError):
            trio.lowlevel.notify_closing(fd)
        os.close(fd)


def _read_records(fd: int, changes: Changes) -> bool:
    """What is there, up to a bound. False when there will be no more."""
    for _ in range(_RECORDS):
        try:
            record = os.read(fd, _RECORD_MAX)
        except BlockingIOError:
            break
        except BrokenPipeError:
            # Overwritten before they were read; the next one is still there. A warning would be another record of the
            # log that runs over.
            continue
        except OSError as error:
            _log.warning(
                "the kernel's log cannot be read, so copies of this machine may not be noticed: %s", error
            )
            return False
        if not record:
            return False
        if says_new_generation(record):
            changes.heard("log", trio.current_time())
    return True


async def _watch_uevents(changes: Changes) -> None:
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
                changes.heard("uevent", trio.current_time())
