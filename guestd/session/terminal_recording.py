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
_LITTLE = 2048
#: More than the kernel keeps of a terminal's output.
_IN_KERNEL = 64 * 1024
#: How far a program may run ahead of whoever holds it. A tape's worth, as for a command, would be on the screen
#: for seconds after Ctrl+C.
LEAD = 128 * 1024


class TerminalRecording(Recording):
    """Owns both ends of the terminal: the program's is kept open until the program has ended."""

    def __init__(
        self,
        pty: Pty,
        capacity: int,
        viewers: dict[Viewer, None],
        changed: Callable[[], None],
        *,
        patience: float,
    ) -> None:
        super().__init__(TERMINAL, TERMINAL_NAME, pty.master, capacity, viewers, changed)
        self._patience = patience
        self.master = pty.master
        self._held: tuple[int | None] | None = None
        self._slave: int | None = pty.slave

    def drain(self) -> None:
        self._let_go()
        super().drain()
        if not self.at_end and self._has_no_room:
            # A holder is behind. The kernel tells only of the newest of its two buffers, so take what both hold, now:
            # when somebody else has the terminal still, what comes later is not this program's.
            self.take_rest(self.end + _IN_KERNEL)

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
        # Nobody moves while this task runs: asked once for all that it reads in a row.
        self._held = (super()._held_at(),)
        size = super()._read_once()
        total = size or 0
        # A little is all there is: mostly the echo of a key, and somebody waits for it.
        while size and size >= _LITTLE and total < _AT_A_TIME:
            size = super()._read_once()
            total += size or 0
        self._held = None
        return total or size

    def _held_at(self) -> int | None:
        return super()._held_at() if self._held is None else self._held[0]

    def _room_now(self) -> memoryview:
        held_at = self._held_at()
        tape = self.tape
        room = super()._room_now() if tape is None else tape.room(held_at)
        return room if held_at is None else room[: max(0, held_at + LEAD - self.end)]
