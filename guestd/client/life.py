"""What a client can ask about the life of the session: keep it awake, follow it, stop it, resume it."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from guestd.client.channel import again
from guestd.client.inbox import Inbox
from guestd.errors import ConnectionLost, ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from guestd.client.connection import Connection
    from guestd.wire.messages import Fields

Item = TypeVar("Item")
Action = Literal["poweroff", "reboot", "exit"]
#: Events cost no credit. A guest that sends so many that nobody has taken is broken.
_WAITING_MAX = 65536


class LifeOperations:
    """The part of a `Client` that is about the session as a whole."""

    _connection: Connection

    async def _ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    @asynccontextmanager
    async def busy(self, by: str | None = None) -> AsyncGenerator[None]:
        """Keep the session awake for the length of a block, or as long as the connection lasts. `by`: who it is."""
        channel = self._connection.open(_given(op="busy", by=by))
        await channel.wait_accepted()
        try:
            yield
        finally:
            channel.reset(ConnectionLost("the hold is let go"))

    async def busy_for(self, seconds: float, by: str | None = None) -> dict[str, Any]:
        """Keep the session awake for so long, also without a connection."""
        return await self._ask({"op": "busy", "for": seconds, **_given(by=by)})

    def events(
        self, *, follow: bool = False, last: int | None = None, start: int | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """What has happened, oldest first: all that is kept, the `last` so many, or from number `start` on. With
        `follow` it goes on with what happens. Events that are no longer kept are told as one, `missed`.
        """
        request = {"op": "events", "follow": follow, **_given(last=last, **{"from": start})}
        return self._follow(request, lambda event: event)

    async def _follow(
        self, request: Mapping[str, Any], show: Callable[[dict[str, Any]], Item]
    ) -> AsyncGenerator[Item]:
        inbox = _EventInbox()
        channel = self._connection.open(request, inbox)
        try:
            await channel.wait_accepted()
            while True:
                while inbox.events:
                    yield show(inbox.events.popleft())
                if channel.final is not None:
                    return
                if channel.error is not None:
                    raise again(channel.error)
                await channel.changed.park()
        finally:
            if not channel.over:
                channel.reset(ConnectionLost("nobody follows any more"))

    def audit(
        self, *, follow: bool = False, last: int | None = None, start: int | None = None
    ) -> AsyncGenerator[str]:
        """The lines of the audit log, oldest first, as they are in its file: all, the `last` so many, or from record
        `start` on. With `follow` it goes on with what is done. `guestd.wire.chain` checks them.
        """
        request = {"op": "audit", "follow": follow, **_given(last=last, **{"from": start})}
        return self._follow(request, lambda event: str(event.get("line", "")))

    async def verify_audit(self) -> dict[str, Any]:
        """Have the guest check the chain of its audit log: `whole`, or not; `breaks` say where."""
        return await self._ask({"op": "audit", "verify": True})

    async def timers(
        self, *, idle_timeout: float | None = None, lifetime: float | None = None
    ) -> dict[str, Any]:
        """When the session ends by itself. Seconds that are given are in force from now on; 0 is never."""
        return await self._ask({"op": "timers", **_given(idle_timeout=idle_timeout, lifetime=lifetime)})

    async def stop(
        self, *, grace: float | None = None, action: Action | None = None, by: str | None = None
    ) -> dict[str, Any]:
        """End the session within `grace` seconds. Returns the receipt: what was ended, and which disks have it all."""
        return await self._ask({"op": "stop", **_given(grace=grace, action=action, by=by)})

    async def resume(self, *, now: float | None = None, entropy: bytes | None = None) -> dict[str, Any]:
        """Mend what a pause has broken. `now`: the right time. `entropy`: random bytes that no other copy gets."""
        return await self._ask({"op": "resume", **_given(now=now, entropy=entropy)})


class _EventInbox(Inbox):
    """Events as they come."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        super().__init__()
        self.events: deque[dict[str, Any]] = deque()

    def event(self, fields: Fields) -> None:
        if len(self.events) >= _WAITING_MAX:
            raise ProtocolViolation(f"more than {_WAITING_MAX} events came without being read")
        self.events.append(fields.to_map())


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
