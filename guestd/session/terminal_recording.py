"""The output of a terminal: read through its master end, onto the tape."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from guestd.session.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.terminal import Pty
    from guestd.session.recording import Viewer

TERMINAL = 3
TERMINAL_NAME = "terminal"
#: The kernel gives 4 KiB at a time; so much is taken before anybody is told.
_AT_A_TIME = 64 * 1024
#: How far a program may run ahead of whoever holds it. A tape's worth, as for a command, would be on the screen
#: for seconds after Ctrl+C.
LEAD = 128 * 1024


class TerminalRecording(Recording):
    """Owns both ends of the terminal: the program's is kept open until the program has ended."""

    def __init__(
        self, pty: Pty, capacity: int, viewers: set[Viewer], changed: Callable[[], None], *, patience: float
    ) -> None:
        super().__init__(TERMINAL, TERMINAL_NAME, pty.master, capacity, viewers, changed)
        self._patience = patience
        self.master = pty.master
        self._slave: int | None = pty.slave

    def drain(self) -> None:
        self._let_go()
        super().drain()

    def hang_up(self) -> None:
        self._let_go()
        super().hang_up()

    def close(self, *, read_on: bool = False) -> None:
        self._let_go()
        super().close(read_on=read_on)

    def _let_go(self) -> None:
        """From now on the terminal ends when the last program has closed it."""
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None

    async def _wait_for_room(self) -> None:
        """A holder that takes nothing for too long (a closed lid, on a line that has not noticed) holds no more."""
        with trio.move_on_after(self._patience) as waiting:
            await super()._wait_for_room()
        if waiting.cancelled_caught:
            for viewer in self._viewers:
                if viewer.holds:
                    viewer.lapse()

    def _read_once(self) -> int | None:
        size = super()._read_once()
        total = size or 0
        while size and total < _AT_A_TIME:
            size = super()._read_once()
            total += size or 0
        return total or size

    def _room_now(self) -> memoryview:
        held_at = self._held_at()
        room = super()._room_now()
        return room if held_at is None else room[: max(0, held_at + LEAD - self.end)]
