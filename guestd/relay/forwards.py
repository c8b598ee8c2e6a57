"""Connections of the host's into the guest: how many there may be, what they count as, and that they are use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from guestd.errors import LimitReached
from guestd.relay.book import Book

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.config import Settings
    from guestd.relay.book import Entry

#: Bytes that move are noted as use of the session so often at most: it is written down for a successor each time.
_NOTED = 0.25


class Forwards:
    """See the module. `used` is told when bytes move."""

    def __init__(self, settings: Settings, used: Callable[[str], None]) -> None:
        self.settings = settings.forward
        self.book = Book("forward")
        self._used = used
        self._noted = 0.0

    def begin(self, to: str) -> Entry:
        """One more. LimitReached when there are too many."""
        most = self.settings.connections
        if len(self.book.open) >= most:
            raise LimitReached(
                f"{most} connections are forwarded into the guest already; close some, or raise forward.connections",
                limit=most, setting="forward.connections",
            )  # fmt: skip
        return self.book.begin(to)

    def moved(self, entry: Entry) -> None:
        """Bytes of it have moved."""
        now = time.monotonic()
        if now - self._noted >= _NOTED:
            self._noted = now
            self._used(entry.to)

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {"limit": self.settings.connections, **self.book.describe()}
