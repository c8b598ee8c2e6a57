"""Kills that came before their start: remembered for a while, so that they win."""

from __future__ import annotations

from collections import OrderedDict

import trio

from guestd.session.jobid import check_id

#: For how long: longer than any sane network keeps a request back.
REMEMBERED = 60.0


class EarlyKills:
    """By id, until when each is remembered; `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._until: OrderedDict[str, float] = OrderedDict()

    def remember(self, job_id: str) -> float:
        """Nobody has that id yet. If somebody starts it soon, the kill was first. Returns for how long."""
        check_id(job_id)
        self._until[job_id] = trio.current_time() + REMEMBERED
        while len(self._until) > self._most:
            self._until.popitem(last=False)
        return REMEMBERED

    def take(self, job_id: str) -> bool:
        """Was that one killed already? Asked once."""
        return self._until.pop(job_id, 0.0) > trio.current_time()
