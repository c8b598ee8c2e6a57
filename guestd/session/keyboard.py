"""What is typed at a shell: the input of a terminal, from any number of people.

Each of them counts their own bytes, so that a person who comes back after a lost connection continues where the
connection broke, whatever others have typed meanwhile. A program that does not read holds up only those who type
at it; and the keys that are signals (Ctrl+C and its like) still get through, past all that waits.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.process.terminal import end_of_file, interrupt, interrupting
from guestd.session.input import Feed, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

#: People whose place is remembered after they have gone. The one who has been away longest is forgotten first.
_REMEMBERED = 256


class Typist:
    """One who types. `offset`: how many of their bytes have arrived."""

    def __init__(self) -> None:
        self.offset = 0


class Keyboard(Feed):
    """See the module. `told` hears when the program stops reading (True), and when it reads again (False)."""

    def __init__(self, fd: int, told: Callable[[bool], None]) -> None:
        super().__init__(fd)
        self._told = told
        self._typists: OrderedDict[str, Typist] = OrderedDict()
        #: Since when something waits, by Trio's clock.
        self.blocked_since: float | None = None

    def typist(self, name: str | None) -> Typist:
        """The one of that name, as they left; somebody new where there is none."""
        if name is None:
            return Typist()
        typist = self._typists.pop(name, None) or Typist()
        self._typists[name] = typist
        while len(self._typists) > _REMEMBERED:
            self._typists.popitem(last=False)
        return typist

    def type(self, typist: Typist, offset: int, data: memoryview, consumed: Callable[[int], None]) -> None:
        """Accept the bytes from that typist's `offset` on."""
        data = unknown(data, offset, typist.offset, consumed)
        if not data:
            return
        if self._queue:
            past = self._interrupt(data)
            if past:
                consumed(past)
                typist.offset += past
                self.offset += past
                data = data[past:]
            if not data:
                return
            self.check_room(len(data), typist.offset)
        typist.offset += len(data)
        self.put(data, consumed)

    def put(self, data: memoryview, consumed: Callable[[int], None]) -> None:
        super().put(data, consumed)
        if self._queue and self.blocked_since is None:
            self.blocked_since = trio.current_time()
            self._told(True)

    def end_of_file(self) -> None:
        """Type what means the end of the input there."""
        if self._fd is not None:
            self.put(memoryview(end_of_file(self._fd)), _nothing)

    def _interrupt(self, data: memoryview) -> int:
        """Do what the last key in `data` that is a signal does; how many bytes that settles."""
        assert self._fd is not None
        signals = interrupting(self._fd)
        for at in range(len(data) - 1, -1, -1):
            number = signals.get(data[at])
            if number is not None:
                # As the terminal does it: what was typed before is dropped.
                self.drop_waiting()
                self._flowing()
                with suppress(OSError):  # it has hung up meanwhile
                    interrupt(self._fd, number)
                return at + 1
        return 0

    def _has_written(self) -> None:
        if not self._queue:
            self._flowing()

    def _flowing(self) -> None:
        if self.blocked_since is not None:
            self.blocked_since = None
            self._told(False)


def _nothing(_: int) -> None:
    pass
