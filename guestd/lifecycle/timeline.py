"""How long the start took, and with what: the moments of a boot, in seconds of the clock that begins with the kernel.

`guestd init` hands on what it has seen (GUESTD_BOOT_TIMES), a supervisor of another's knows only its own. What came
after READY is told to whoever keeps this process (NOTIFY_SOCKET), which tells the host.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.lifecycle.events import Events

BOOT_TIMES = "GUESTD_BOOT_TIMES"
#: In the order in which they come. `kernel` is 0, and known on a machine whose PID 1 is guestd.
PHASES = ("kernel", "init", "listening", "serve", "ready", "workload", "healthy")
_WELL = ("healthy", "busy")


class Timeline:
    """Each phase is noted once. `tell` passes a line on to the keeper of this process."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        listening: float | None,
        ready: float,
        tell: Callable[[str], None],
    ) -> None:
        self._tell = tell
        self._at = read_times(environ.get(BOOT_TIMES, ""))
        if "serve" not in self._at:
            self._at["serve"] = _started()
        if listening is not None:
            self._at.setdefault("listening", listening)
        self._at["ready"] = ready

    def describe(self) -> dict[str, float]:
        """For `status`."""
        return {phase: round(self._at[phase], 6) for phase in PHASES if phase in self._at}

    def follow(self, events: Events) -> None:
        """Note when the workload has started, and when it is well for the first time."""

        def look() -> None:
            event = events.get(events.next - 1)
            if event["event"] == "workload_started":
                self._note("workload", event["mono"])
            elif event["event"] == "workload_health" and event["health"] in _WELL:
                self._note("healthy", event["mono"])
                events.followers.remove(look)

        events.followers.append(look)

    def _note(self, phase: str, at: float) -> None:
        if phase not in self._at:
            self._at[phase] = at
            self._tell(f"X_GUESTD_{phase.upper()}_USEC={at * 1e6:.0f}")


def read_times(text: str) -> dict[str, float]:
    """`init=0.812 listening=0.83`; whatever is no such word is passed over."""
    found: dict[str, float] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        if name in PHASES:
            try:
                found[name] = float(value)
            except ValueError:
                continue
    return found


def _started() -> float:
    """When the kernel began this process, by the monotonic clock; to a hundredth of a second."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        ticks = int(file.read().rpartition(") ")[2].split()[19])
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    # What the machine slept before is in one of the two clocks.
    return ticks / os.sysconf("SC_CLK_TCK") - (boot - time.monotonic())
