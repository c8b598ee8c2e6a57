"""Reaping, and handing over how processes ended: the other half of `serve`'s crash survival.

PID 1 becomes the parent of everything that outlives a `serve`, so it alone learns how those processes ended. It tells
each `serve` over a SOCK_SEQPACKET socket, the descriptor named `init` among those it starts it with:

PID 1 → serve: one record a message, `RECORD`, for each child that was reaped and is not PID 1's own.
  What no serve has read yet (there was none, the socket was full, it died before it read) comes to the next one first,
  in the order of the ends, each once; the newest KEPT are kept. A serve that wants to lose nothing to its own death
  reads with MSG_PEEK, writes the status down, and then takes the message off: what PID 1 finds unread, it sends again,
  so such a serve forgets what it has already under the same pid and the same `mono`.
serve → PID 1: one command a message, its first byte says which. A command that is not known is ignored, with a line on
  the console.
    RELOAD      read the settings again
    UPGRADE     this serve will exit with status HAND_OVER: start the next one at once. What follows, if anything, is
                the program and its first arguments, parted by NUL (b"/opt/new/bin/guestd"); when that one does not
                become READY, the one before it is started again
    POWER_OFF   when this serve has ended, end in order; a machine powers off, a container exits with 0
    REBOOT      the same, and a machine starts again; a container exits with RESTART_STATUS
    EXIT        the same as POWER_OFF; the byte that follows is the status with which a container exits
"""

from __future__ import annotations

import _socket
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: version, pid, wait status, user seconds, system seconds, peak resident KiB, time.time(), time.monotonic()
RECORD = struct.Struct("<BIIddQdd")
RECORD_VERSION = 1
#: The name of the socket among the descriptors (LISTEN_FDNAMES).
SOCKET_NAME = "init"
KEPT = 4096

RELOAD, UPGRADE, POWER_OFF, REBOOT, EXIT = b"r", b"u", b"p", b"b", b"x"
COMMAND_MAX = 4096
#: The exit status of a serve that makes room for the next one.
HAND_OVER = 75
#: What systemd's containers exit with when they want to be started again; nothing else uses it.
RESTART_STATUS = 133


class Ended:
    """A child that was reaped."""

    __slots__ = ("pid", "record", "status")

    def __init__(self, pid: int, status: int, record: bytes) -> None:
        self.pid = pid
        self.status = status
        self.record = record


def reap(before: Callable[[int], None] | None = None) -> Iterator[Ended]:
    """All that has ended, one at a time; ChildProcessError when there is no child at all.

    `before` is told of each while it is still a zombie, and its pid surely its own: what a process said before it
    died can be ascribed to it until it is reaped.
    """
    while True:
        look = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # noqa: TID251  PID 1's own reaper
        if look is None:
            return
        if before is not None:
            before(look.si_pid)
        pid, status, used = os.wait4(look.si_pid, 0)  # noqa: TID251  PID 1's own reaper
        record = RECORD.pack(
            RECORD_VERSION, pid, status, used.ru_utime, used.ru_stime, used.ru_maxrss, time.time(), time.monotonic()
        )  # fmt: skip
        yield Ended(pid, status, record)


def wait_for(pid: int) -> int:
    """The wait status of one child of PID 1's own that has ended."""
    return os.waitpid(pid, 0)[1]  # noqa: TID251  PID 1's own reaper


def in_words(status: int) -> str:
    """A wait status as a person reads it."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"status {os.waitstatus_to_exitcode(status)}"


def as_exit_status(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def pair() -> tuple[_socket.socket, _socket.socket]:
    """For the records of one serve. Ours does not block; theirs is as a program expects it, and serve's own affair."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    ours.setblocking(False)
    return ours, theirs


class Statuses:
    """The records on their way to a serve, in order. The newest KEPT; what is older is gone, and counted."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self._lost = 0
        self._losing = False

    def add(self, record: bytes) -> None:
        self.waiting.append(record)
        self._bound()

    def send(self, sock: _socket.socket) -> None:
        """As many as the socket takes now."""
        sent = 0
        try:
            for record in self.waiting:
                sock.send(record)
                sent += 1
        except OSError:
            # Full, or nobody there any more: the rest is for later.
            pass
        del self.waiting[:sent]

    def take_back(self, theirs: _socket.socket) -> None:
        """What lies unread at the end of a serve that has died."""
        unread: list[bytes] = []
        try:
            while record := theirs.recv(RECORD.size, _socket.MSG_DONTWAIT):
                unread.append(record)
        except BlockingIOError:
            pass
        self.waiting[:0] = unread
        self._bound()

    def _bound(self) -> None:
        too_many = len(self.waiting) - KEPT
        if too_many > 0:
            del self.waiting[:too_many]
            self._lost += too_many

    def news(self) -> str:
        """What a person is to know: that some are being lost, and, when nothing waits any more, how many were."""
        if self._lost and not self._losing:
            self._losing = True
            return f"exit statuses are being lost: {KEPT} wait for a serve that takes them"
        if self._losing and not self.waiting:
            lost, self._lost, self._losing = self._lost, 0, False
            return f"{lost} exit statuses are lost"
        return ""
