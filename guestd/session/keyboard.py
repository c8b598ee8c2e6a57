"""What is typed at a shell: the input of a terminal, from any number of people.

Each of them counts their own bytes, so that a person who comes back after a lost connection continues where the
connection broke, whatever others have typed meanwhile. A program that does not read holds up only those who type
at it; and the keys that are signals (Ctrl+C and its like) still get through, past all that waits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

from guestd.process.terminal import drop_typed, end_of_file, interrupt, interrupting, keeps_typed, unread
from guestd.session.input import Feed, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

#: People whose place is remembered after they have gone. The one who has been away longest is forgotten first.
_REMEMBERED = 256
_LAST_CONTROL, _DELETE = 0x1F, 0x7F


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
        # Since when nothing of what waits was read, by Trio's clock.
        self._stuck_since: float | None = None

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
        signals = self._signals(data)
        if signals:
            self._interrupt(typist, data, signals, consumed)
            return
        if self._queue:
            self.check_room(len(data), typist.offset)
        typist.offset += len(data)
        self.put(data, consumed)

    def put(self, data: memoryview, consumed: Callable[[int], None]) -> None:
        super().put(data, consumed)
        if self._queue and self._stuck_since is None:
            self._stuck_since = trio.current_time()
            self._told(True)

    def end_of_file(self, typist: Typist) -> None:
        """Type what means the end of the input there."""
        if self._fd is not None:
            self.check_room(1, typist.offset)
            self.put(memoryview(end_of_file(self._fd)), _nothing)

    @property
    def stuck_for(self) -> float | None:
        """How long nothing of what waits has been read; None when nothing waits."""
        return None if self._stuck_since is None else trio.current_time() - self._stuck_since

    def _signals(self, data: memoryview) -> list[int]:
        """Where in `data` keys are that are signals and would not get through by themselves."""
        # Nearly everything typed is no control character; nobody makes a letter interrupt.
        if self._fd is None or (not self._queue and min(data) > _LAST_CONTROL and _DELETE not in bytes(data)):
            return []
        keys = interrupting(self._fd)
        found = [at for at, each in enumerate(data) if each in keys]
        return found if found and (self._queue or unread(self._fd)) else []

    def _interrupt(
        self, typist: Typist, data: memoryview, signals: list[int], consumed: Callable[[int], None]
    ) -> None:
        """Let the last of these keys through, past all that waits here and in the kernel."""
        assert self._fd is not None
        if keeps_typed(self._fd):
            # Signals, and the rest as if they had not been there.
            self.check_room(len(data), typist.offset)
            keys = interrupting(self._fd)
            for at in signals:
                interrupt(self._fd, keys[data[at]])
            rest = bytes(each for at, each in enumerate(data) if at not in signals)
            consumed(len(signals))
        else:
            # As the terminal does it: what was typed before is dropped.
            self.drop_waiting()
            self._flowing()
            drop_typed(self._fd)
            consumed(signals[-1])
            rest = bytes(data[signals[-1] :])
        typist.offset += len(data)
        self.offset += len(data) - len(rest)
        self.put(memoryview(rest), consumed)

    def _has_written(self) -> None:
        self._flowing()
        if self._queue:
            self._stuck_since = trio.current_time()
            self._told(True)

    def _flowing(self) -> None:
        if self._stuck_since is not None:
            self._stuck_since = None
            self._told(False)


def _nothing(_: int) -> None:
    pass
