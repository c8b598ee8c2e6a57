"""What is typed at a shell: the input of a terminal, from any number of people.

Each of them counts their own bytes, so that a person who comes back after a lost connection continues where the
connection broke, whatever others have typed meanwhile. A program that does not read holds up only those who type
at it; and the keys that are signals (Ctrl+C and its like) still get through, past all that waits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import trio

from guestd.process.terminal import drop_typed, end_of_file, interrupt, interrupting, keeps_typed, unread
from guestd.session.input import Feed, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

#: People whose place is remembered after they have gone. The one who has been away longest is forgotten first.
REMEMBERED = 256
_LAST_CONTROL, _DELETE = 0x1F, 0x7F


class Typist:
    """One who types. `offset`: how many of their bytes have arrived; `settled`: how many are dealt with for good."""

    def __init__(self, slot: int | None = None, offset: int = 0) -> None:
        #: Where it is written down, if it is.
        self.slot = slot
        self.offset = offset
        self.settled = offset
        # What settles theirs, made anew only for another channel: keys that wait are put together by it.
        self.told: Callable[[int], None] | None = None
        self.settle: Callable[[int], None] = _nothing


class TypingRecord(Protocol):
    """Where it is written down how much of what everybody typed is dealt with."""

    def settled(self, typist: Typist) -> None:
        """So much of theirs, and it does not change now."""
        ...

    def sending(self, typist: Typist | None, passed_on: int) -> None:
        """From here on, counted by the journal, what goes in is theirs."""
        ...

    def joined(self) -> None:
        """There is somebody new."""
        ...


class Keyboard(Feed):
    """See the module. `told` hears when the program stops reading (True), and when it reads again (False)."""

    def __init__(self, fd: int | None, told: Callable[[bool], None]) -> None:
        super().__init__(fd)
        self._told = told
        self._typists: OrderedDict[str, Typist] = OrderedDict()
        #: Where all this is written down, where it is.
        self.record: TypingRecord | None = None
        self._writer: Typist | None = None
        # Since when nothing of what waits was read, by Trio's clock.
        self._stuck_since: float | None = None

    def typist(self, name: str | None) -> Typist:
        """The one of that name, as they left; somebody new where there is none."""
        if name is None:
            return Typist()
        typist = self._typists.pop(name, None)
        if typist is not None:
            self._typists[name] = typist
            return typist
        slot: int | None = len(self._typists)
        if slot >= REMEMBERED:
            _, gone = self._typists.popitem(last=False)
            slot = gone.slot
        self._typists[name] = typist = Typist(slot)
        if self.record is not None:
            self.record.settled(typist)
            self.record.joined()
        return typist

    def recall(self, name: str, slot: int, offset: int) -> None:
        """Somebody who was here under another supervisor."""
        self._typists[name] = Typist(slot, offset)

    @property
    def slots(self) -> dict[str, int]:
        """Where each of those who have a name is written down."""
        return {name: typist.slot for name, typist in self._typists.items() if typist.slot is not None}

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
        self.put(data, self._settling(typist, consumed), typist)

    def _settling(self, typist: Typist, consumed: Callable[[int], None]) -> Callable[[int], None]:
        if self.record is None:
            return consumed
        if typist.told != consumed:

            def settle(size: int) -> None:
                typist.settled += size
                consumed(size)

            typist.told, typist.settle = consumed, settle
        return typist.settle

    def put(self, data: memoryview, consumed: Callable[[int], None], who: object = None) -> None:
        super().put(data, consumed, who)
        if self._queue and self._stuck_since is None:
            self._stuck_since = trio.current_time()
            self._told(True)

    def end_of_file(self, typist: Typist) -> None:
        """Type what means the end of the input there."""
        if self._fd is not None:
            self.check_room(1, typist.offset)
            self.put(memoryview(end_of_file(self._fd)), _nothing)

    def _is_sending(self, who: object) -> None:
        typist = who if isinstance(who, Typist) else None
        if self.record is None or self.journal is None or (typist is self._writer and typist is not None):
            return
        if self._writer is not None:
            self.record.settled(self._writer)
        self._writer = typist
        self.record.sending(typist, self.journal.passed_on)

    def _has_skipped(self) -> None:
        """What was typed is dealt with, and has not gone to the program."""
        if self.record is None or self.journal is None:
            return
        for typist in self._typists.values():
            self.record.settled(typist)
        self._writer = None
        self.record.sending(None, self.journal.passed_on)

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
        keys = interrupting(self._fd)
        if keeps_typed(self._fd):
            # Signals, and the rest as if they had not been there.
            self.check_room(len(data), typist.offset)
            for at in signals:
                interrupt(self._fd, keys[data[at]])
            skipped = len(signals)
            rest = bytes(each for at, each in enumerate(data) if at not in signals)
        else:
            # As the terminal does it: what was typed before is dropped.
            self.drop_waiting()
            self._flowing()
            drop_typed(self._fd)
            skipped = signals[-1]
            rest = bytes(data[skipped:])
        typist.offset += len(data)
        typist.settled += skipped
        self.offset += skipped
        self._has_skipped()
        consumed(skipped)
        self.put(memoryview(rest), self._settling(typist, consumed), typist)

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
