"""Something that happens once, and who hears of it without a task of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Once:
    """Calls whoever asked, when it happens."""

    def __init__(self) -> None:
        self.happened = False
        self._calls: list[Callable[[], None]] = []

    def then(self, call: Callable[[], None]) -> None:
        """Call when it happens; now, if it has happened."""
        if self.happened:
            call()
        else:
            self._calls.append(call)

    def happen(self) -> None:
        """Those who are called find it done."""
        self.happened = True
        calls, self._calls = self._calls, []
        for call in calls:
            call()
