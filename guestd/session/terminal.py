"""The terminal of a shell: its size, who sits at it, what is known of what runs there.

Of all who are attached at most one is the *owner*: whose window decides the size, and for whom the program waits.
*Writers* type as well; *watchers* only look. Who takes the ownership takes it from whoever had it, who is told
and stays as a writer. A size that somebody else's window has never changes the screen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from guestd.process.terminal import USUAL_SIZE, Size, foreground_of, set_size
from guestd.terminal.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.session.keyboard import Keyboard
    from guestd.session.screen import Screen
    from guestd.session.terminal_recording import TerminalRecording
    from guestd.session.timers import Timers

OWNER, WRITER, WATCHER = "owner", "writer", "watcher"
ROLES = (OWNER, WRITER, WATCHER)
#: A program that has not read for so long does not just happen to be busy.
_BLOCKED_AFTER = 1.0
_COMMAND_MAX = 512
#: Programs that are told of two sizes at once look only at the last.
_REDRAW_AFTER = 0.1


class Seat(Protocol):
    """Somebody who is attached to a terminal."""

    role: str
    #: For others: who it is.
    name: str
    since: float
    client: str | None

    def role_changed(self, by: str) -> None: ...
    def size_changed(self, size: Size) -> None: ...
    def input_changed(self, *, blocked: bool, waiting: int) -> None: ...


class Terminal:
    """See the module. It looks at the output as it passes, as a viewer that never holds."""

    holds = False

    def __init__(
        self,
        recording: TerminalRecording,
        size: Size,
        *,
        clock: Callable[[], tuple[float, float]],
        timers: Timers,
    ) -> None:
        self.size = size
        self.recording = recording
        self.marks = Marks()
        self.seats: list[Seat] = []
        self.last_output: float | None = None
        self.last_input: float | None = None
        #: By the monotonic clock: when anything was typed or shown.
        self.last_activity = clock()[1]
        #: By the monotonic clock: when anything was typed.
        self.last_typed: float | None = None
        self.keyboard: Keyboard | None = None
        self.screen: Screen | None = None
        #: Called when a command that was typed has ended.
        self.command_ended: list[Callable[[], None]] = []
        #: Told of what is worth writing down.
        self.changed: Callable[[], None] | None = None
        #: Told how far the output was looked at.
        self.looked_to: Callable[[int], None] | None = None
        self._clock = clock
        self._timers = timers
        self._position = 0

    # -------------------------------------------------------------------------------------- looking

    def position(self, stream: int) -> int:
        del stream
        return self._position

    def news(self) -> None:
        """Output has come."""
        recording, marks = self.recording, self.marks
        self.last_output, self.last_activity = self._clock()
        before = marks.running, marks.count
        while self._position < recording.end:
            piece = recording.read(self._position, recording.capacity)
            if not piece.data:
                break
            if piece.offset > self._position:
                marks.lost()
            # A copy: searching in bytes is much quicker than in a view, and 4 KiB cost nothing.
            marks.feed(piece.offset, bytes(piece.data), self.last_output, self.last_activity)
            self._position = piece.offset + len(piece.data)
        if self.looked_to is not None:
            self.looked_to(self._position)
        if (marks.running, marks.count) != before:
            for call in list(self.command_ended):
                call()

    def begin_at(self, offset: int) -> None:
        """What lies before was looked at by another supervisor."""
        self._position = offset

    def lapse(self) -> None:
        """It never holds."""

    def has_typed(self) -> None:
        """Somebody has."""
        self.last_input, self.last_activity = self._clock()
        self.last_typed = self.last_activity

    @property
    def directory(self) -> str | None:
        """Where the shell says it is."""
        return self.marks.directory

    def foreground(self) -> dict[str, Any] | None:
        """The program in the foreground."""
        if not self.recording.is_open:
            return None
        pid = foreground_of(self.recording.master)
        if pid is None:
            return None
        found: dict[str, Any] = {"pid": pid, "name": None, "command": None}
        with suppress(OSError):
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                found["name"] = file.read().rstrip("\n")
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read(_COMMAND_MAX).rstrip(b"\0").split(b"\0")
            found["command"] = os.fsdecode(b" ".join(words))
        return found

    @property
    def foreground_group(self) -> int | None:
        """The process group in the foreground, by its number alone."""
        return foreground_of(self.recording.master) if self.recording.is_open else None

    # --------------------------------------------------------------------------------------- seats

    @property
    def owner(self) -> Seat | None:
        return next((seat for seat in self.seats if seat.role == OWNER), None)

    def sit(self, seat: Seat) -> None:
        """Somebody comes, in the role that they ask for."""
        self.seats.append(seat)
        if seat.role == OWNER:
            self._dethrone(seat)

    def take_role(self, seat: Seat, role: str) -> None:
        """Somebody who is here asks for another role."""
        seat.role = role
        if role == OWNER:
            self._dethrone(seat)
        seat.role_changed(seat.name)

    def leave(self, seat: Seat) -> None:
        if seat in self.seats:
            self.seats.remove(seat)
            self.last_activity = self._clock()[1]

    def _dethrone(self, new: Seat) -> None:
        for seat in self.seats:
            if seat is not new and seat.role == OWNER:
                seat.role = WRITER
                seat.role_changed(new.name)

    # ---------------------------------------------------------------------------------------- size

    def resize(self, size: Size, by: Seat | None = None) -> None:
        """Give the screen another size, and say so to everybody but who asked."""
        size = self.known(size)
        if size == self.size:
            return
        self.size = size
        if self.changed is not None:
            self.changed()
        self._show_size(size)
        if self.screen is not None:
            self.screen.resized(size)
        for seat in list(self.seats):
            if seat is not by:
                seat.size_changed(size)

    def redraw(self) -> None:
        """Have the program draw its screen anew, by showing it another size for a moment. The screen's own stays as it
        is, and nobody is told.
        """
        if not self.recording.is_open or self._redrawing:
            return

        def back() -> None:
            self._redrawing = False
            self._show_size(self.size)

        self._redrawing = True
        self._show_size(self.size._replace(rows=self.size.rows - 1 or 2))
        self._timers.after(_REDRAW_AFTER, back)

    _redrawing = False

    def _show_size(self, size: Size) -> None:
        if self.recording.is_open:
            with suppress(OSError):  # it has hung up in this moment
                set_size(self.recording.master, size)

    def known(self, size: Size) -> Size:
        """What is meant by a size of which one half is 0: whoever says so does not know it."""
        return size if size.columns and size.rows else (self.size or USUAL_SIZE)

    # --------------------------------------------------------------------------------------- input

    def input_blocked(self, blocked: bool) -> None:  # noqa: FBT001  told by the keyboard, as a callable
        """What is typed waits for the program, or some of it was read."""
        if not blocked:
            if self._told_blocked:
                self._told_blocked = False
                self._tell_input()
        elif not self._watches_input:
            self._watches_input = True
            self._timers.after(_BLOCKED_AFTER, self._look_at_input)

    _told_blocked = _watches_input = False

    def _look_at_input(self) -> None:
        self._watches_input = False
        stuck_for = None if self.keyboard is None else self.keyboard.stuck_for
        if stuck_for is None or self._told_blocked:
            return
        if stuck_for < _BLOCKED_AFTER:
            self._watches_input = True
            self._timers.after(_BLOCKED_AFTER - stuck_for, self._look_at_input)
        else:
            self._told_blocked = True
            self._tell_input()

    def _tell_input(self) -> None:
        waiting = 0 if self.keyboard is None else self.keyboard.waiting
        for seat in list(self.seats):
            if seat.role != WATCHER:
                seat.input_changed(blocked=self._told_blocked, waiting=waiting)

    def describe(self) -> dict[str, Any]:
        """For `ps`."""
        owner = self.owner
        keyboard = self.keyboard
        return {
            "size": {"columns": self.size.columns, "rows": self.size.rows},
            "owner": None if owner is None else owner.name,
            "viewers": [
                {"peer": seat.name, "role": seat.role, "since": seat.since, "client": seat.client}
                for seat in self.seats
            ],
            "foreground": self.foreground(),
            "last_input": self.last_input,
            "last_output": self.last_output,
            "bytes": self.recording.end,
            "title": self.marks.title,
            "typed": {
                "waiting": 0 if keyboard is None else keyboard.waiting,
                "blocked": self._told_blocked,
            },
            "commands": self.marks.count,
        }
