"""Following what a session says of its life."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tests.support import server as servers

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.peer import Peer
    from tests.support.server import Server


@contextlib.contextmanager
def serving(*listen: str, **options: Any) -> Generator[Server]:  # noqa: ANN401  as the one it stands for
    """A guestd that makes no mistake of its own: those of a task that looks after something are only in its log."""
    with servers.serving(*listen, **options) as server:
        yield server
        server.stop()
        assert "Traceback" not in server.log, server.log


class Follower:
    """The events of a session, one after another."""

    def __init__(self, peer: Peer, **fields: object) -> None:
        self._call = peer.open("events", follow=True, **fields)
        self._read = 0
        self._call.accepted()

    def next(self) -> dict[str, Any]:
        while self._read == len(self._call.events):
            self._call.step()
        self._read += 1
        return self._call.events[self._read - 1]

    @property
    def seen(self) -> list[dict[str, Any]]:
        """All that were read."""
        return self._call.events[: self._read]

    def until(self, name: str, **details: object) -> dict[str, Any]:
        """The next one of that name, with these details; whatever comes before it is passed over."""
        while True:
            event = self.next()
            if event["event"] == name and all(event[each] == value for each, value in details.items()):
                return event
