"""How processes ended that are not this process's children: those of the supervisor before this one.

Their parent is whoever is PID 1 now, and only a parent is told. `guestd init` passes it on, over a socket, for each
once and also what it learned while no supervisor was there. With another PID 1 the kernel is asked: since 6.15 it
remembers for whoever holds the process's pidfd. Where it does not, the status is lost, and that is what is said.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import socket
import struct
from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import trio

from guestd.init.reap import RECORD, RECORD_VERSION
from guestd.process.members import bears, read_member
from guestd.process.reaper import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("guestd.statuses")
_RECORD_MAX = 4096
#: How many are remembered that nobody has asked for. Who was adopted is asked for at once.
_REMEMBERED = 8192
#: How far the word of `guestd init` may be behind the kernel's, on a machine that has no time.
_PATIENCE = 20.0
#: The first version of struct pidfd_info: a mask, ids and the cgroup, and at its end the wait status.
_PIDFD_GET_INFO = 0xC040FF0B
_INFO_SIZE, _STATUS_AT, _INFO_EXIT = 64, 60, 1 << 3
_MASK, _STATUS = struct.Struct("<Q"), struct.Struct("<i")
_USAGE_FIELDS = 16


class _Record(NamedTuple):
    status: int
    usage: resource.struct_rusage
    wall: float
    mono: float


class Statuses:
    """See the module. `channel`: the socket that `guestd init` has passed on, if it is there."""

    def __init__(self, channel: int | None, clock: Callable[[], tuple[float, float]]) -> None:
        self._socket = None if channel is None else socket.socket(fileno=channel)
        if self._socket is not None:
            self._socket.setblocking(False)
        self._clock = clock
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._noting: dict[int, tuple[float, Callable[[int], None]]] = {}
        self._unknown = 0
        self._news = trio.lowlevel.ParkingLot()

    @property
    def are_told(self) -> bool:
        """Is there somebody who passes them on?"""
        return self._socket is not None

    async def run(self) -> None:
        """Listen, until cancelled."""
        while self._socket is not None:
            await trio.lowlevel.wait_readable(self._socket)
            while self._unknown:
                await self._news.park()
            try:
                # Looked at first, and taken off when whoever waits for it has written it down: what this process has
                # not taken when it dies, the next one is told again.
                data = self._socket.recv(_RECORD_MAX, socket.MSG_PEEK)
                if len(data) == RECORD.size and data[0] == RECORD_VERSION:
                    self._take(data)
                self._socket.recv(_RECORD_MAX)
            except BlockingIOError:
                continue
            if not data:
                self.close()  # the other end is gone: whoever is PID 1 now, it is not who it was
                return

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._news.unpark_all()

    def tell(self, words: bytes) -> bool:
        """Something to `guestd init`. False when it is not there, or does not listen."""
        if self._socket is None:
            return False
        try:
            self._socket.send(words)
        except OSError as error:
            _log.warning("guestd init does not listen: %s", error.strerror)
            return False
        return True

    def expect(self, pid: int, since: float, noted: Callable[[int], None]) -> None:
        """`noted` hears the status of that process, begun after `since`, before it is taken from whoever tells it."""
        self._noting[pid] = since, noted

    def hold(self) -> None:
        """Somebody does not know yet which process is theirs: until they `release`, nothing is taken."""
        self._unknown += 1

    def release(self) -> None:
        self._unknown -= 1
        self._news.unpark_all()

    async def ending(self, pid: int, since: float, pidfd: int | None) -> Exit:
        """How that process, which was expected, ended, once it has. `since`: a moment before it was started, by the
        monotonic clock.
        """
        record = self._known(pid, since)
        if record is None and pidfd is not None:
            await trio.lowlevel.wait_readable(pidfd)
        while self._unknown and self._socket is not None:
            # Nothing is taken meanwhile, so nothing can come.
            await self._news.park()
        with trio.move_on_after(_PATIENCE):
            while (record := self._known(pid, since)) is None and self._socket is not None:
                await self._news.park()
        self._noting.pop(pid, None)
        if record is not None:
            del self._records[pid]
            return Exit(record.status, record.usage, record.wall, record.mono, None)
        wall, mono = self._clock()
        return Exit(None if pidfd is None else _kernels_word(pidfd), None, wall, mono, None)

    def _known(self, pid: int, since: float) -> _Record | None:
        record = self._records.get(pid)
        return record if record is not None and record.mono >= since else None

    def _take(self, data: bytes) -> None:
        _, pid, status, user, system, peak, wall, mono = RECORD.unpack(data)
        usage = resource.struct_rusage((user, system, peak, *([0] * (_USAGE_FIELDS - 3))))
        since, noted = self._noting.get(pid, (inf, None))
        if noted is not None and mono >= since:
            noted(status)
        self._records.pop(pid, None)
        self._records[pid] = _Record(status, usage, wall, mono)
        while len(self._records) > _REMEMBERED:
            self._records.popitem(last=False)
        self._news.unpark_all()


def _kernels_word(pidfd: int) -> int | None:
    """The wait status of a process that has ended, where the kernel remembers it."""
    info = bytearray(_INFO_SIZE)
    _MASK.pack_into(info, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    return _STATUS.unpack_from(info, _STATUS_AT)[0] if _MASK.unpack_from(info)[0] & _INFO_EXIT else None


def open_pidfd(pid: int, started: int, mark: str) -> int | None:
    """A descriptor of the process that has this number and began then, or bears that mark; None when it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    member = read_member(pid)
    if member is None or (member.started != started if started else not bears(pid, mark)):
        os.close(pidfd)
        return None
    return pidfd
