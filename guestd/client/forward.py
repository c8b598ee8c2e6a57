"""A connection to a program in the guest, as a stream: what is sent arrives there, what it says comes back, each end as
an end and each break as a break. Its credit is its own, so one that nobody reads holds up no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from guestd.client.inbox import Inbox, Output
from guestd.errors import BrokenOff, ConnectionLost, GuestdError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from guestd.client.channel import Channel
    from guestd.client.connection import Connection
    from guestd.wire.messages import Fields

_STREAM = "stdout"


class ForwardOperations:
    """The part of a `Client` that reaches ports and sockets of the guest."""

    _connection: Connection

    async def forward(
        self, to: str, *, idle_timeout: float | None = None, window: int | None = None
    ) -> ForwardedStream:
        """Connect in the guest: `tcp:localhost:3000`, `unix:/run/app.sock`. Refused where nobody listens there."""
        fields: dict[str, object] = {"op": "forward", "to": to}
        if idle_timeout is not None:
            fields["idle_timeout"] = idle_timeout
        channel = self._connection.open(fields, _ForwardInbox(), window)
        try:
            await channel.wait_accepted()
        except trio.Cancelled:
            channel.reset(ConnectionLost("the request was given up on this side"))
            raise
        return ForwardedStream(channel)


class ForwardedStream(trio.abc.HalfCloseableStream):
    """See the module. What is broken raises trio.BrokenResourceError, whose cause is an error of guestd's: BrokenOff
    when the program's side broke it, TimedOut when nothing moved for too long, ConnectionLost.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sent = 0
        self._rest = b""
        self._guest_ended = self._ended = self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes; empty when the program has said its end."""
        if self._closed:
            raise trio.ClosedResourceError("this side has closed it")
        if not self._rest and not self._guest_ended:
            try:
                item = await self._channel.take()
            except GuestdError as error:
                raise trio.BrokenResourceError(error.message) from error
            if item is None or (isinstance(item, Output) and not item.data):
                self._guest_ended = True
            elif isinstance(item, Output):
                self._rest = item.data
        else:
            await trio.lowlevel.checkpoint()
        if max_bytes is None or len(self._rest) <= max_bytes:
            data, self._rest = self._rest, b""
        else:
            data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """All of it, as fast as the program takes it."""
        if self._ended or self._closed:
            raise trio.ClosedResourceError("this side has said its end")
        rest = memoryview(data).cast("B")
        if not rest:
            await trio.lowlevel.checkpoint()
        while rest:
            try:
                sent = await self._channel.send(rest, self._sent)
            except GuestdError as error:
                raise trio.BrokenResourceError(error.message) from error
            self._sent += sent
            rest = rest[sent:]

    async def wait_send_all_might_not_block(self) -> None:
        """Until something can be sent, or never will be."""
        while not self._channel.over and self._channel.credit.available <= 0:
            await self._channel.changed.park()
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """The program reads its end of file; what it says still comes."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._ended and not self._channel.over:
            self._channel.event({"event": "eof", "offset": self._sent})
        self._ended = True

    def break_off(self) -> None:
        """The program sees a reset."""
        self._closed = True
        if not self._channel.over:
            self._channel.reset(BrokenOff("it was broken off on this side"))

    async def wait_over(self) -> None:
        """Until the guest has said the last word. The error, if that was one."""
        await self._channel.wait_final()

    async def aclose(self) -> None:
        """An end where both sides have said theirs, else a break."""
        if not (self._ended and self._guest_ended):
            self.break_off()
        self._closed = True
        await trio.lowlevel.checkpoint()


class _ForwardInbox(Inbox):
    """Bytes and the end of them, in order. An output of no bytes is the end."""

    __slots__ = ()

    def event(self, fields: Fields) -> None:
        if fields.raw("event") == "eof":
            self._push(Output(_STREAM, fields.integer("offset"), b""))
