"""forward: a channel is a connection to a program in the guest. Bytes, ends and breaks go both ways, each as it is.

No task stands between the two sockets where it can be avoided: what comes from the client is sent on from the frame it
came in, and what comes from the guest's program is read when the connection's writer has room for it. Only what a
reader has to wait for is kept, and the channel's credit bounds that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import BadOffset, BadRequest, BrokenOff, GuestdError, TimedOut
from guestd.relay import book
from guestd.relay.ends import connect
from guestd.wire.address import parse_address
from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from guestd.relay.book import Entry
    from guestd.relay.ends import End
    from guestd.relay.forwards import Forwards
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.link import Outgoing
    from guestd.service.session import Session
    from guestd.wire.address import Address
    from guestd.wire.messages import Fields

_TO_GUEST, _FROM_GUEST = 0, 1
_EXPECTED = "tcp:HOST:PORT or unix:PATH, of the guest"
#: How often it is looked whether a connection does nothing, within the time after which that ends it.
_LOOKS = 4


def forward(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Connect in the guest, and pass on."""
    address = _read_address(fields)
    forwards = session.relays.forwards
    idle = fields.seconds("idle_timeout", forwards.settings.idle)
    one = _Forward(channel, forwards, address, forwards.begin(str(address)), idle)
    channel.handler = one
    connection.start_soon(channel, one.run)


def _read_address(fields: Fields) -> Address:
    text = fields.text("to", most=512)
    try:
        address = parse_address(text)
    except BadRequest as error:
        raise BadRequest(error.message, field="to", expected=_EXPECTED) from None
    if address.scheme not in {"tcp", "unix"} or (address.scheme == "tcp" and not address.port):
        raise fields.bad("to", _EXPECTED)
    return address


class _Forward:
    """The handler of the channel, and the task beside it."""

    def __init__(
        self, channel: Channel, forwards: Forwards, address: Address, entry: Entry, idle: float
    ) -> None:
        self._channel = channel
        self._forwards = forwards
        self._address = address
        self._entry = entry
        self._idle = idle
        self._end: End | None = None
        self._scope = trio.CancelScope()
        # To the guest: how far it has come, what waits to be sent, and whether that is all.
        self._received = 0
        self._waiting = bytearray()
        self._client_ended = False
        self._to_send = trio.Event()
        # From the guest: whether there is something to read, and whether that was all.
        self._emptied = trio.Event()
        self._guest_ended = trio.Event()
        self._readable = False
        self._failure: GuestdError | None = None
        self._how, self._why = book.STOPPED, ""
        # Whoever is at the other end waits for an answer, as somebody with a finger on a key does.
        channel.hurries = True

    async def run(self) -> dict[str, Any]:
        """From connecting to the end of both sides."""
        flow = self._entry.flow
        try:
            with self._scope:
                self._how = book.UNREACHABLE
                self._end = await connect(self._address, self._forwards.settings.connect_timeout)
                self._how = book.BROKEN
                self._channel.accept({"to": str(self._address)})
                await self._pass_on(self._end)
            if self._failure is not None:
                raise self._failure
            if self._end is None or self._scope.cancelled_caught:
                self._left()
                return {}
            self._how = book.ENDED
            self._end.settle()
            return {"sent": flow.up.bytes, "received": flow.down.bytes}
        except GuestdError as error:
            self._why = error.message
            raise
        except trio.Cancelled:
            self._left()
            raise
        finally:
            if self._end is not None:
                self._end.close()
            self._forwards.book.end(self._entry, self._how, self._why)

    def _left(self) -> None:
        self._how = book.BROKEN if self._end is not None else book.STOPPED
        self._why = "the client has gone"

    async def _pass_on(self, end: End) -> None:
        async with trio.open_nursery() as nursery:
            if self._idle:
                nursery.start_soon(self._watch)
            async with trio.open_nursery() as both:
                both.start_soon(self._send, end)
                both.start_soon(self._look, end)
            nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        flow = self._entry.flow
        quiet, before = 0, -1
        while quiet < _LOOKS:
            await trio.sleep(self._idle / _LOOKS)
            quiet, before = (quiet + 1 if flow.moved == before else 0), flow.moved
        self._how = book.IDLE
        self._fail(
            TimedOut(
                f"nothing has moved between this side and {self._address} for {self._idle:g} s (forward.idle)"
            )
        )

    def _fail(self, error: GuestdError) -> None:
        self._failure = self._failure or error
        self._scope.cancel()

    def _broke(self, error: OSError) -> None:
        self._fail(
            BrokenOff(f"{self._address} broke the connection off: {error.strerror}", errno=error.errno)
        )

    # ------------------------------------------------------------------------------------------- to the guest

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        if stream != _TO_GUEST:
            raise BadRequest(
                f"data for stream {stream}: only {_TO_GUEST} leads into the guest", field="stream"
            )
        if offset != self._received or self._client_ended:
            raise BadOffset(
                f"data for offset {offset}: a connection goes on at {self._received}, and nowhere else"
            )
        self._received += len(data)
        self._forwards.moved(self._entry)
        sent = 0
        if self._end is not None and not self._waiting:
            try:
                sent = self._end.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self._broke(error)
                return
            self._gone(sent)
        if sent < len(data):
            self._waiting += data[sent:]
            self._to_send.set()

    def on_event(self, fields: Fields) -> None:
        if fields.text("event", most=64) == "eof":
            if fields.integer("offset", self._received) != self._received:
                raise BadOffset(f"an end that is not at {self._received}, where the data ends")
            self._client_ended = True
            self._to_send.set()

    def _gone(self, size: int) -> None:
        self._entry.flow.up.bytes += size
        self._channel.consumed(size)

    async def _send(self, end: End) -> None:
        """What has to wait for the guest's program; and the end."""
        try:
            while True:
                while self._waiting:
                    with memoryview(self._waiting) as view:
                        try:
                            sent = end.send(view)
                        except BlockingIOError:
                            sent = 0
                    del self._waiting[:sent]
                    self._gone(sent)
                    if self._waiting:
                        await end.writable()
                if self._client_ended:
                    end.finish()
                    return
                self._to_send = trio.Event()
                await self._to_send.wait()
        except OSError as error:
            self._broke(error)

    # ----------------------------------------------------------------------------------------- from the guest

    async def _look(self, end: End) -> None:
        """Say when there is something to read. Reading is for `pull`, when there is room for it."""
        while not self._guest_ended.is_set():
            await end.readable()
            self._readable = True
            self._emptied = trio.Event()
            self._channel.wake()
            await self._emptied.wait()

    def pull(self, most: int) -> Outgoing | None:
        room = min(most, self._channel.credit.available)
        if self._end is None or not self._readable or not room:
            return None
        offset = self._entry.flow.down.bytes
        try:
            data = self._end.receive(room)
        except BlockingIOError:
            self._wait_again()
            return None
        except OSError as error:
            self._broke(error)
            return None
        if not data:
            self._guest_ended.set()
            self._wait_again()
            return self._channel.control(Kind.EVENT, {"event": "eof", "offset": offset})
        self._entry.flow.down.bytes += len(data)
        self._forwards.moved(self._entry)
        return self._channel.data(_FROM_GUEST, offset, memoryview(data))

    def _wait_again(self) -> None:
        self._readable = False
        self._emptied.set()

    def closed(self) -> None:
        """The client has gone, or has broken it off; or all is done."""
        self._scope.cancel()
