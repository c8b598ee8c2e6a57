"""The signals of PID 1: noted when they come, heeded in turn by the loop.

The module _signal, because `signal` turns all numbers into enumerations, for 3 ms of every boot.
"""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingModuleSource]  it is built into Python
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

HUP, INT, TERM, CHLD = _signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGCHLD
USR1, USR2, PWR = _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGPWR
KILL, ABRT, CONT = _signal.SIGKILL, _signal.SIGABRT, _signal.SIGCONT
#: As systemd has them.
HALT, POWER_OFF, REBOOT = (_signal.SIGRTMIN + each for each in (3, 4, 5))
STOPS = (TERM, INT, PWR, HALT, POWER_OFF, REBOOT)
HANDLED = (*STOPS, HUP, USR1, USR2, CHLD)

#: Ignored by Python, or by whoever started us; what is ignored stays so in a program that is executed.
_TO_DEFAULT = (
    *HANDLED, _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGQUIT, _signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU,
)  # fmt: skip

_NAMES = {
    HUP: "SIGHUP", INT: "SIGINT", TERM: "SIGTERM", USR1: "SIGUSR1", USR2: "SIGUSR2", PWR: "SIGPWR",
    HALT: "SIGRTMIN+3", POWER_OFF: "SIGRTMIN+4", REBOOT: "SIGRTMIN+5",
}  # fmt: skip


def name(number: int) -> str:
    return _NAMES.get(number, f"signal {number}")


def block() -> Iterable[int]:
    """Nothing interrupts from here on; returns what to `unblock` to."""
    return _signal.pthread_sigmask(_signal.SIG_SETMASK, _signal.valid_signals())


def unblock(before: Iterable[int]) -> None:
    _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def forget() -> None:
    """In a child that is about to execute something: everything as a program expects it."""
    _signal.set_wakeup_fd(-1)
    for number in _TO_DEFAULT:
        _signal.signal(number, _signal.SIG_DFL)


class Signals:
    """Handlers that note the number, and a pipe that wakes poll(2). Two that are the same at once are one."""

    def __init__(self) -> None:
        self.wake, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._seen: list[int] = []
        _signal.set_wakeup_fd(self._ring, warn_on_full_buffer=False)
        for number in HANDLED:
            _signal.signal(number, self._note)
        # Whoever started us may have had some blocked.
        unblock(())

    def _note(self, number: int, _frame: object) -> None:
        if number != CHLD:
            self._seen.append(number)

    def take(self) -> Iterable[int]:
        """Those that came since, in order."""
        try:
            while len(os.read(self.wake, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        seen = self._seen[:]
        del self._seen[: len(seen)]
        return seen
