"""What the jobs hold of memory for their output, and until when those that have ended are kept.

A job that runs has room reserved for its tapes. One that has ended is kept with what it really holds, for a while;
the one that ended first comes first. The sums are kept beside: every start and every end of a job asks for them.
Nothing here forgets a job; who does decides whom, and says so.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import NamedTuple

import trio


class Ended(NamedTuple):
    """An ended job: until when it is kept, and how much of its output."""

    until: float
    size: int


class Holdings:
    """See the module. Everything but the wait happens between two checkpoints."""

    def __init__(self) -> None:
        #: Those that have ended, the oldest first. Changed by the methods alone.
        self.ended: OrderedDict[str, Ended] = OrderedDict()
        self.reserved_bytes = 0
        self.kept_bytes = 0
        self._reserved: dict[str, int] = {}
        self._next_expiry = inf
        self._news = trio.Event()

    def reserve(self, job_id: str, size: int) -> None:
        """It runs, and its tapes may come to hold so much."""
        self._reserved[job_id] = size
        self.reserved_bytes += size

    def keep(self, job_id: str, until: float, size: int) -> None:
        """It has ended, and holds so much until then."""
        self.reserved_bytes -= self._reserved.pop(job_id, 0)
        self.ended[job_id] = Ended(until, size)
        self.kept_bytes += size
        if until < self._next_expiry:
            self._news.set()

    def prolong(self, job_id: str, until: float) -> None:
        """It is kept for longer."""
        self.ended[job_id] = self.ended[job_id]._replace(until=until)

    def rename(self, job_id: str, new_id: str) -> None:
        """An ended one has another id now."""
        self.ended[new_id] = self.ended.pop(job_id)

    def release(self, job_id: str) -> None:
        """It is forgotten."""
        kept = self.ended.pop(job_id, None)
        if kept is not None:
            self.kept_bytes -= kept.size
        self.reserved_bytes -= self._reserved.pop(job_id, 0)

    async def wait_for_expiry(self) -> None:
        """Until one has been kept long enough, or one ended that is to be kept for less than all others."""
        self._news = trio.Event()
        self._next_expiry = min((kept.until for kept in self.ended.values()), default=inf)
        with trio.CancelScope(deadline=self._next_expiry):
            await self._news.wait()
