"""One channel of one connection, from the side that was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from guestd.errors import GuestdError, ProtocolViolation
from guestd.service.link import Outgoing
from guestd.wire.channel import ChannelState, Credit, Window
from guestd.wire.frames import Kind, data_head, encode, read_data
from guestd.wire.messages import Fields, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.wire.frames import Frame


class Handler(Protocol):
    """What an operation does while its channel is open. Nothing here blocks; what takes time is a task."""

    def on_data(self, stream: int, offset: int, data: memoryview) -> None: ...
    def on_event(self, fields: Fields) -> None: ...
    def pull(self, most: int) -> Outgoing | None:
        """The next frame to send, with at most `most` bytes of data. None when there is nothing (now)."""
        ...

    def closed(self) -> None:
        """The channel is no more: the connection was lost, or one of the two sides has reset it, or all is
        done.
        """
        ...


class Channel:
    """State, credit, and the frames an operation sends. `post` queues a control frame, `wake` asks to be
    pulled.
    """

    def __init__(
        self,
        number: int,
        window: int,
        credit: int,
        post: Callable[[bytes, bool], None],
        wake: Callable[[Channel], None],
        gone: Callable[[Channel], None],
    ) -> None:
        self.number = number
        self.handler: Handler | None = None
        #: What its request turned out to be about, for the record: the id of a job.
        self.subject: str | None = None
        #: The trace context that came with it, for its spans.
        self.trace: dict[str, str] | None = None
        self.credit = Credit(credit)
        self.ready = False
        #: What it has next is to leave at once: somebody waits for it with a finger on a key.
        self.hurries = False
        self._state = ChannelState(opener=False)
        self._window = Window(window)
        self._post = post
        self._wake = wake
        self._gone = gone

    def opened(self) -> None:
        """Its OPEN has come."""
        self._state.received(Kind.OPEN)

    # -------------------------------------------------------------------------------------- sending

    @property
    def is_open(self) -> bool:
        """May results still be sent here?"""
        return self._state.may_send(Kind.END) or self._state.may_send(Kind.ACCEPT)

    def accept(self, fields: Mapping[str, object], *, urgent: bool = True) -> None:
        self._send(Kind.ACCEPT, fields, urgent=urgent)

    def event(self, fields: Mapping[str, object]) -> None:
        self._send(Kind.EVENT, fields)

    def end(self, fields: Mapping[str, object]) -> None:
        self._send(Kind.END, fields)

    def fail(self, error: GuestdError) -> None:
        """REJECT where nothing was promised yet, RESET afterwards."""
        self._send(Kind.REJECT if self._state.may_send(Kind.REJECT) else Kind.RESET, error.to_map())

    def data(self, stream: int, offset: int, data: memoryview) -> Outgoing:
        """A frame for `pull` to return; spends credit."""
        self._state.sent(Kind.DATA)
        self.credit.spend(len(data))
        return Outgoing(data_head(self.number, stream, offset, len(data)), data)

    def control(self, kind: Kind, fields: Mapping[str, object]) -> Outgoing:
        """A control frame for `pull` to return, where its order among the data matters."""
        frame = encode(kind, self.number, pack(fields))
        self._state.sent(kind)
        if self._state.closed:
            self._close()
        return Outgoing(frame)

    def relayed(self, kind: Kind, payload: bytes | memoryview) -> Outgoing:
        """A control frame for `pull` to return, whose map is packed already."""
        frame = encode(kind, self.number, bytes(payload))
        self._state.sent(kind)
        if self._state.closed:
            self._close()
        return Outgoing(frame)

    def wake(self) -> None:
        """There is something to pull."""
        if not self.ready:
            self.ready = True
            self._wake(self)

    def consumed(self, size: int) -> None:
        """That much input was passed on: the peer may send more."""
        grant = self._window.consumed(size)
        if grant and self._state.may_send(Kind.CREDIT):
            self._send(Kind.CREDIT, {"bytes": grant})

    def _send(self, kind: Kind, fields: Mapping[str, object], *, urgent: bool = True) -> None:
        if not self._state.may_send(kind):
            return  # reset meanwhile: nobody listens any more
        self._post(self.control(kind, fields).head, urgent)

    # ------------------------------------------------------------------------------------ receiving

    def received(self, frame: Frame) -> None:
        """A frame of the peer's. A mistake that concerns only this channel resets it; others end the
        connection.
        """
        self._state.received(frame.kind)
        if frame.kind is Kind.RESET:
            if self._state.may_send(Kind.RESET):
                self._send(Kind.RESET, {})
            else:
                self._close()
            return
        try:
            self._dispatch(frame)
        except ProtocolViolation:
            raise
        except GuestdError as error:
            self.fail(error)
            self._detach()

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind is Kind.CREDIT:
            self.credit.grant(Fields(unpack(frame)).integer("bytes", least=1, most=2**40))
            self.wake()
        elif frame.kind is Kind.DATA:
            stream, offset, data = read_data(frame.payload)
            self._window.received(len(data))
            if self.handler is None:
                self.consumed(len(data))
            else:
                self.handler.on_data(stream, offset, data)
        elif frame.kind is Kind.EVENT:
            fields = Fields(unpack(frame))
            if self.handler is not None:
                self.handler.on_event(fields)

    def drop(self) -> None:
        """The connection is gone."""
        self._detach()

    def _close(self) -> None:
        self._gone(self)
        self._detach()

    def _detach(self) -> None:
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.closed()
