"""One channel, seen from the client: what may be sent on it, what came, and how it ended.

The connection's reader calls the methods named `on_…`; they change state at once and never wait, so no channel can hold
up another. Users of the channel wait on `changed`, which wakes all of them to look again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import trio

from guestd.client.inbox import Output, stream_name
from guestd.errors import FlowControl, GuestdError, ProtocolViolation, from_map
from guestd.wire.channel import ChannelState, Credit, Window
from guestd.wire.frames import Kind, read_data
from guestd.wire.messages import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.client.inbox import Inbox, Item

_INPUT = 0


class Sender(Protocol):
    """The connection, as far as a channel needs it."""

    #: The most bytes one DATA frame may carry.
    data_limit: int

    def post(self, kind: Kind, channel: int, fields: Mapping[str, object]) -> None: ...
    def post_data(self, channel: int, stream: int, offset: int, data: memoryview) -> None: ...
    async def wait_room(self) -> bool:
        """Wait until more may be queued. True when that took waiting, so that the world may have changed."""
        ...


class Channel:
    """See the module. `final` is what END carried; `error` is why there will be none."""

    __slots__ = (
        "_sender", "_sending", "_state", "_taken", "_window", "accepted", "changed", "credit", "error", "final",
        "granted", "id", "inbox",
    )  # fmt: skip

    def __init__(self, sender: Sender, number: int, inbox: Inbox, *, credit: int, window: int) -> None:
        self.id = number
        self.inbox = inbox
        self.credit = Credit(credit)
        self.accepted: dict[str, Any] | None = None
        self.final: dict[str, Any] | None = None
        self.error: GuestdError | None = None
        #: Credit that came after the first: so many bytes of input the guest has passed on.
        self.granted = 0
        self.changed = trio.lowlevel.ParkingLot()
        self._sender = sender
        self._sending = False
        # Of what was taken last, until its taker comes back.
        self._taken = 0
        self._state = ChannelState(opener=True)
        self._window = Window(window)

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.final is not None or self.error is not None

    @property
    def free(self) -> bool:
        """Both halves are final: the id may be used again."""
        return self._state.closed

    # -- what the reader says --

    def on_frame(self, kind: Kind, fields: Mapping[str, Any]) -> None:
        """A control frame of this channel."""
        self._state.received(kind)
        match kind:
            case Kind.ACCEPT:
                self.accepted = dict(fields)
                self.inbox.accepted(Fields(fields).mapping("streams"))
                if fields.get("kind") == "shell":
                    self.inbox.attached(Fields(fields))
            case Kind.EVENT if fields.get("event") == "gap":
                self._on_gap(Fields(fields))
            case Kind.EVENT if not self.over:
                self.inbox.event(Fields(fields))
            case Kind.CREDIT:
                size = Fields(fields).integer("bytes")
                self.credit.grant(size)
                self.granted += size
            case Kind.END if not self.over:
                self.final = dict(fields)
            case Kind.REJECT:
                self.fail(from_map(fields))
            case Kind.RESET:
                if self._state.may_send(Kind.RESET):
                    self._post(Kind.RESET, {})
                self.fail(from_map({"message": "the guest ended the channel without a reason", **fields}))
            case _:
                pass
        self.changed.unpark_all()

    def on_data(self, payload: memoryview) -> None:
        """A DATA frame. What it carries is copied out of the receive buffer."""
        self._state.received(Kind.DATA)
        stream, offset, data = read_data(payload)
        if self.over:
            return
        try:
            self._window.received(len(data))
            unwanted = self.inbox.put(stream, offset, data)
        except (FlowControl, ProtocolViolation) as error:
            self.reset(error)
            return
        if unwanted:
            self._grant(unwanted)
        self.changed.unpark_all()

    def _on_gap(self, event: Fields) -> None:
        if not self.over:
            self.inbox.lost(stream_name(event.integer("stream")), event.integer("from"), event.integer("to"))

    def fail(self, error: GuestdError) -> None:
        """There will be no answer. The first reason stays; what had arrived can still be taken."""
        if not self.over:
            self.error = error
        self.changed.unpark_all()

    # -- what users of the channel do --

    async def wait_accepted(self) -> dict[str, Any]:
        """What ACCEPT carried."""
        while self.accepted is None:
            if self.error is not None:
                raise again(self.error)
            await self.changed.park()
        return self.accepted

    async def wait_final(self) -> dict[str, Any]:
        """What END carried."""
        while self.final is None:
            if self.error is not None:
                raise again(self.error)
            await self.changed.park()
        return self.final

    async def take(self) -> Item | None:
        """The next item, None after the last.

        Coming back for more is what lets the guest send more: whoever does has got rid of what it took before.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        owed, self._taken = self._taken, 0
        self._grant(owed)
        while True:
            item = self.inbox.take()
            if item is not None:
                if isinstance(item, Output):
                    self._taken = len(item.data)
                return item
            if self.final is not None:
                return None
            if self.error is not None:
                raise again(self.error)
            await self.changed.park()

    def discard(self) -> None:
        """Nobody wants the output, neither what is here nor what will come."""
        self._grant(self.inbox.discard())

    async def send(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Send as much input as may be sent now, waiting until that is something. Returns how much it was.

        The step that sends does not wait, so a cancel either sends nothing or leaves nothing to be guessed.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this channel")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                self._check_open()
                if self.credit.available <= 0:
                    await self.changed.park()
                elif not await self._sender.wait_room():
                    break
            size = min(len(data), self.credit.available, self._sender.data_limit)
            self._state.sent(Kind.DATA)
            self.credit.spend(size)
            self._sender.post_data(self.id, _INPUT, offset, memoryview(data)[:size])
            return size
        finally:
            self._sending = False

    def event(self, fields: Mapping[str, object]) -> None:
        """Tell the guest something about this channel."""
        self._check_open()
        self._post(Kind.EVENT, fields)

    def reset(self, error: GuestdError) -> None:
        """Give up: the guest forgets the channel, not the job. Whoever waits here gets `error`."""
        if self._state.may_send(Kind.RESET):
            self._post(Kind.RESET, error.to_map())
        self.discard()
        self.fail(error)

    def open(self, fields: Mapping[str, object]) -> None:
        """The first frame."""
        self._post(Kind.OPEN, fields)

    def _check_open(self) -> None:
        if self.error is not None:
            raise again(self.error)
        if self.final is not None:
            raise trio.BrokenResourceError("the job has ended; nobody takes input any more")

    def _grant(self, size: int) -> None:
        grant = self._window.consumed(size)
        if grant and not self.over and self._state.may_send(Kind.CREDIT):
            self._post(Kind.CREDIT, {"bytes": grant})

    def _post(self, kind: Kind, fields: Mapping[str, object]) -> None:
        self._sender.post(kind, self.id, fields)
        self._state.sent(kind)


def again(error: GuestdError) -> GuestdError:
    """The same error for one more task: an exception raised in two places mixes up their tracebacks."""
    return from_map(error.to_map())
