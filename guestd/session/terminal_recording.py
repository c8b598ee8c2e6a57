"""The output of a terminal: read through its master end, onto the tape."""

from __future__ import annotations

import fcntl
import os
import termios
from typing import TYPE_CHECKING

import trio

from guestd.session.recording import NO_FD, Recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.terminal import Pty
    from guestd.session.memory import TapeMemory
    from guestd.session.recording import Viewer

TERMINAL = 3
TERMINAL_NAME = "terminal"
#: The kernel gives 4 KiB at a time; so much is taken before anybody is told.
_AT_A_TIME = 64 * 1024
_LITTLE = 2048
_SPLICE_F_NONBLOCK = 2
#: More than the kernel keeps of a terminal's output.
_IN_KERNEL = 64 * 1024
#: How far a program may run ahead of whoever holds it. A tape's worth, as for a command, would be on the screen
#: for seconds after Ctrl+C.
LEAD = 128 * 1024


class TerminalRecording(Recording):
    """Owns both ends of the terminal: the program's is kept open until the program has ended."""

    def __init__(
        self, pty: Pty, capacity: int, viewers: dict[Viewer, None], changed: Callable[[], None], *,
        patience: float,
        memory: TapeMemory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(TERMINAL, TERMINAL_NAME, pty.master, capacity, viewers, changed, memory=memory)
        self._patience = patience
        self.master = pty.master
        self._held: tuple[int | None] | None = None
        self._slave: int | None = None if pty.slave == NO_FD else pty.slave
        #: A pipe between the terminal and the tape: the kernel moves bytes onto a file only from a pipe.
        self.relay: tuple[int, int] | None = None

    def unread(self) -> int:
        return (
            super().unread()
            if self.relay is None or self.at_end
            else super().unread() + _waiting(self.relay[0])
        )

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

    def _end(self) -> None:
        super()._end()
        relay, self.relay = self.relay, None
        for fd in relay or ():
            os.close(fd)

    def _source(self) -> int:
        if self.relay is None:
            self.relay = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            if self.survives is not None:
                self.survives.keep_relay(self.relay)
        read, write = self.relay
        if not _waiting(read):
            os.splice(self.master, write, _AT_A_TIME, flags=_SPLICE_F_NONBLOCK)
        return read

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


def _waiting(pipe: int) -> int:
    """How many bytes are in it."""
    count = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return int.from_bytes(count, "little")
