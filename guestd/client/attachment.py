"""What every attachment to a job has in common: what it says, in order; input, signals and the result the other way.

It is a view of the job, not the job: losing it leaves the job running, unless the job was asked otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import trio

from guestd.client.inbox import Item
from guestd.errors import ConnectionLost
from guestd.wire.messages import Fields
from guestd.wire.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeGuard

    from guestd.client.channel import Channel
    from guestd.errors import GuestdError

ItemT = TypeVar("ItemT", bound=Item)


class Attachment(Generic[ItemT]):
    """See the module. `ItemT` is what iterating over it gives."""

    def __init__(self, channel: Channel, accepted: Mapping[str, Any]) -> None:
        self._channel = channel
        self._accepted = accepted
        self._iterated = False
        self._result: Result | None = None
        self.id = str(accepted.get("id", ""))
        self.kind = str(accepted.get("kind", "command"))
        #: False when the id was known already, so that this attached instead of starting.
        self.created = accepted.get("created") is True
        self.pid: int | None = accepted.get("pid")
        self.started_at: float | None = accepted.get("started_at")
        offset = Fields(Fields(accepted).mapping("input")).integer("offset", 0)
        self._input_start = offset
        #: The offset of the next byte of input.
        self.input_offset = offset
        self._input_ended = False

    @property
    def over(self) -> bool:
        """Its END has come, or the connection is lost. Output may still wait to be taken."""
        return self._channel.over

    @property
    def outcome(self) -> Result | None:
        """The result, if it has come."""
        if self._result is None and self._channel.final is not None:
            self._result = Result.from_map(self._channel.final)
        return self._result

    @property
    def final(self) -> dict[str, Any] | None:
        """All that came with the end: what a result has no place for, too."""
        return self._channel.final

    @property
    def error(self) -> GuestdError | None:
        """Why no result will come here; None while it may."""
        return self._channel.error

    @property
    def began(self) -> dict[str, int]:
        """The offset at which the output of each stream begins here."""
        return dict(self._channel.inbox.began)

    def known_end(self, stream: str) -> int:
        """How far the job's own output of a stream had come when this attachment began."""
        return Fields(Fields(Fields(self._accepted).mapping("streams")).mapping(stream)).integer("end", 0)

    @property
    def positions(self) -> dict[str, int]:
        """How far the output of each stream has arrived."""
        return dict(self._channel.inbox.positions)

    @property
    def input_taken(self) -> int:
        """The guest has passed on the input up to here: these bytes never have to be sent again."""
        return self._input_start + self._channel.granted

    @property
    def changed(self) -> trio.lowlevel.ParkingLot:
        """Wakes whoever waits for anything about this job to change."""
        return self._channel.changed

    def __aiter__(self) -> Self:
        self._iterated = True
        return self

    async def __anext__(self) -> ItemT:
        while (item := await self._channel.take()) is not None:
            if self._wants(item):
                return item
        raise StopAsyncIteration

    def _wants(self, item: Item) -> TypeGuard[ItemT]:
        raise NotImplementedError

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send input, as fast as the guest takes it. When cancelled, `input_offset` says how much has gone."""
        if self._input_ended:
            raise trio.ClosedResourceError("the input of this job was closed")
        rest = memoryview(data).cast("B")
        while rest:
            sent = await self._channel.send(rest, self.input_offset)
            self.input_offset += sent
            rest = rest[sent:]

    async def close_stdin(self) -> None:
        """The command reads end of file after what was sent."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._input_ended:
            self._channel.event({"event": "eof", "offset": self.input_offset})
            self._input_ended = True

    async def signal(self, name: str) -> None:
        """Send a signal, by name (`INT`, `SIGTERM`)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.signal_now(name)

    def signal_now(self, name: str) -> None:
        """The same without waiting for anything."""
        self._channel.event({"event": "signal", "signal": name.upper().removeprefix("SIG")})

    async def result(self) -> Result:
        """How it ended. Output is thrown away from now on if nobody has begun to take it."""
        if not self._iterated:
            self._channel.discard()
        await self._channel.wait_final()
        result = self.outcome
        assert result is not None
        return result

    def discard(self) -> None:
        """Throw away the output, now and from now on; the command runs on as if it was read."""
        self._channel.discard()

    def detach(self) -> None:
        """Leave the job. Whoever waits for it here gets ConnectionLost."""
        self._channel.reset(ConnectionLost(f"this client has detached from {self.id}"))

    async def wait_over(self) -> None:
        """Wait until nothing more will arrive."""
        while not self._channel.over:
            await self._channel.changed.park()
