"""The heartbeat that whoever started this process asks for (WATCHDOG_USEC), by systemd's protocol.

It beats from a thread of its own, so a loop that is busy for a while is not taken for a dead one. And it beats only
while the loop turns: the loop leaves the time of its last turn, and when that is too long ago the thread falls silent.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Beats in the time that is allowed between two.
_BEATS = 3
#: The loop leaves word so many times as often as it has to.
_TURNS = 6


class Watchdog:
    """See the module. `beat` sends one, from the thread."""

    def __init__(self, environ: Mapping[str, str], beat: Callable[[], None]) -> None:
        text = environ.get("WATCHDOG_USEC", "")
        #: How long may be between two beats; None where nobody waits for them.
        self.allowed = int(text) / 1_000_000 if text.isdecimal() and int(text) > 0 else None
        self._beat = beat
        self._turned = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guestd-watchdog", daemon=True)

    async def run(self) -> None:
        """The loop's part, until cancelled."""
        if self.allowed is None:
            return
        self._turned = time.monotonic()
        self._thread.start()
        try:
            while True:
                await trio.sleep(self.allowed / _TURNS)
                self._turned = time.monotonic()
        finally:
            self._stopped.set()

    def _run(self) -> None:
        assert self.allowed is not None
        while not self._stopped.wait(self.allowed / _BEATS):
            if time.monotonic() - self._turned < self.allowed:
                self._beat()
