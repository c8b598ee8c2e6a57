"""The machine's clocks: setting them, and noticing that they have jumped.

Nothing runs for that: the kernel wakes whoever has asked for it (TFD_TIMER_CANCEL_ON_SET) when the wall clock was set,
and when the machine wakes from a suspend. A machine that was paused by its host, or made of a snapshot, sees nothing of
it by itself; there the host says so (`resume`), or the generation changes, or the host's own clock can be read (PTP).
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from contextlib import suppress
from typing import NamedTuple

import trio

#: Below this a clock is not set: what a message takes on its way is of that order.
TOLERANCE = 0.1
#: Interval and first time, in seconds and nanoseconds.
_ITIMERSPEC = struct.Struct("llll")
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
#: A time that does not come.
_FAR = 2**33
_libc = ctypes.CDLL(None, use_errno=True)


class Reading(NamedTuple):
    """Three clocks, read together."""

    wall: float
    mono: float
    boot: float

    @classmethod
    def now(cls) -> Reading:
        return cls(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))


class Jump(NamedTuple):
    """What happened between two readings: how far the wall clock was set, and how long the machine slept."""

    set_by: float
    slept: float


def between(before: Reading, after: Reading) -> Jump:
    """Both clocks that count on are right; the wall clock may have been moved by anybody."""
    slept = (after.boot - before.boot) - (after.mono - before.mono)
    set_by = (after.wall - before.wall) - (after.boot - before.boot)
    return Jump(set_by, slept)


class ClockWatch:
    """Waits for jumps."""

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "no timerfd")
        self._before = Reading.now()

    def close(self) -> None:
        """No more."""
        with suppress(RuntimeError):
            trio.lowlevel.notify_closing(self._fd)
        os.close(self._fd)

    async def jumped(self) -> Jump:
        """The next jump that is worth a word."""
        while True:
            spec = _ITIMERSPEC.pack(0, 0, _FAR, 0)
            if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET, spec, None):
                raise OSError(ctypes.get_errno(), "the timerfd cannot be set")
            # It may have happened before the timer was set.
            jump = self._look()
            if jump is None:
                await trio.lowlevel.wait_readable(self._fd)
                with suppress(OSError):  # ECANCELED: the clock was set; that is all it has to say
                    os.read(self._fd, 8)
                jump = self._look()
            if jump is not None:
                return jump

    def _look(self) -> Jump | None:
        now = Reading.now()
        jump = between(self._before, now)
        if abs(jump.set_by) <= TOLERANCE and jump.slept <= TOLERANCE:
            return None
        self._before = now
        return jump

    def forget(self) -> None:
        """What has happened until now is known."""
        self._before = Reading.now()


def set_wall(now: float) -> float:
    """Set the wall clock if it is off; returns by how much it was. Raises PermissionError."""
    off = now - time.time()
    if abs(off) > TOLERANCE:
        time.clock_settime(time.CLOCK_REALTIME, now)
    return off


def host_wall() -> float | None:
    """The host's wall clock, where the machine has a clock device that shows it."""
    with suppress(OSError):
        for name in sorted(os.listdir("/sys/class/ptp")):
            with open(f"/sys/class/ptp/{name}/clock_name", encoding="utf-8") as file:
                is_hosts = "KVM" in file.read() or "hyperv" in name
            if is_hosts:
                fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    # The kernel's way to name a clock by its descriptor.
                    return time.clock_gettime((~fd << 3) | 3)
                finally:
                    os.close(fd)
    return None
