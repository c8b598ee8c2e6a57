"""How long to wait before connecting again, and what is told of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.errors import GuestdError


@dataclass(frozen=True)
class Backoff:
    """How long to wait before each attempt: a few quick ones, then patience, never all clients at once."""

    delays: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 15.0)
    last: float = 30.0
    spread: float = 0.25
    random: Callable[[], float] = random.random

    def delay(self, attempt: int) -> float:
        """Before attempt number `attempt`, the first being 0."""
        base = self.delays[attempt] if attempt < len(self.delays) else self.last
        return base * (1 + self.spread * (2 * self.random() - 1))


class Notice(NamedTuple):
    """Something happened to the connection. `delay` is how long until the next attempt."""

    what: Literal["lost", "failed", "again"]
    error: GuestdError | None = None
    delay: float = 0.0
