"""A connection: one reader, and one writer (guestd.service.writer).

The reader takes frames and hands them to channels; what an operation does at once happens right there,
between two checkpoints. What takes time is a task here, which ends its channel.

Bounds: the reader stops reading while more control frames wait than may. A peer that is too slow is dropped; what it
started goes on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from guestd import observe
from guestd.errors import (
    GuestdError,
    InternalError,
    PeerTooSlow,
    ProtocolViolation,
    Unsupported,
)
from guestd.service.asking import Asking, Waiting
from guestd.service.channel import Channel
from guestd.service.writer import Writer
from guestd.wire.frames import DATA_HEAD, DATA_LIMIT, HEAD, PING_LIMIT, Kind, encode
from guestd.wire.hello import Hello
from guestd.wire.messages import Fields, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from guestd.service.asking import Operations
    from guestd.service.bounds import Bounds
    from guestd.service.link import Link
    from guestd.wire.frames import Frame

_log = logging.getLogger("guestd.connection")

#: Frames handled in one go before others get their turn.
_BATCH = 64
#: For reading what a peer has said before it closed.
_LAST_WORDS = 1.0
_GOODBYE_PATIENCE = 1.0
_OWN_MISTAKE = "guestd made a mistake; its log has the traceback"


class Connection:
    """See the module."""

    def __init__(
        self, link: Link, bounds: Bounds, operations: Operations, hello: Callable[[], Hello],
        admit: Callable[[Hello], None],
    ) -> None:  # fmt: skip
        self.link = link
        self.peer = link.peer
        self._bounds = bounds
        self._operations = operations
        self._own_hello = hello
        self._admit = admit
        self._channels: dict[int, Channel] = {}
        self._writer = Writer(link, bounds)
        # As they are, with no call between: every frame goes this way.
        self.post = self._writer.post
        self.later = self._writer.later
        self._peer_window = 0
        self._nursery: trio.Nursery | None = None
        self._dropped: GuestdError | None = None
        #: Frames that have come, and requests among them.
        self._heard = self._opened = 0
        self._hears = trio.Event()

    @property
    def channels(self) -> int:
        return len(self._channels)

    async def run(self) -> None:
        """Serve until the peer goes, or breaks the protocol, or is too slow. Raises nothing of the peer's."""
        reason: GuestdError | None = None
        if not self._bounds.quiet:
            observe.began("connection", self, who=self.peer)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write)
                try:
                    with trio.fail_after(self._bounds.handshake):
                        await self._greet()
                    await self._read()
                except trio.TooSlowError:
                    reason = self._bounds.too_slow("no hello within", "handshake")
                except GuestdError as error:
                    reason = error
                if reason is not None:
                    await self.goodbye(reason)
                nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError) as group:
            self._note(logging.INFO, "the connection broke", str(group.exceptions[0]))
        except* PeerTooSlow as group:
            reason = PeerTooSlow(str(group.exceptions[0]))
        finally:
            reason = reason or self._dropped
            if reason is not None:
                self._note(logging.WARNING, "dropped", f"{reason.message} ({reason.code})")
            for channel in list(self._channels.values()):
                channel.drop()
            self._channels.clear()
            if not self._bounds.quiet:
                why = None if reason is None else reason.code
                observe.ended("connection", self, why=why, requests=self._opened)

    async def _write(self) -> None:
        """A peer that has closed takes nothing more, and what it has said before is still here to be read: that it
        gives a transfer up, for one. So the reader goes on to the end of it, which is there or comes at once.
        """
        try:
            await self._writer.run()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(_LAST_WORDS):
                await self._writer.discard()
            raise

    def _note(self, level: int, what: str, why: str) -> None:
        _log.log(logging.DEBUG if self._bounds.quiet else level, "%s: %s: %s", self.peer, what, why)

    def start_soon(
        self,
        channel: Channel,
        answer: Callable[[], Awaitable[Mapping[str, object]]],
        *,
        only_asks: bool = False,
    ) -> None:
        """For an operation that takes time: a task that ends the channel with what it returns, or with its
        error. One that only asks for something is given up with its channel; others finish what they began.
        """
        assert self._nursery is not None
        scope = trio.CancelScope()
        if only_asks:
            channel.handler = Asking(channel, scope)
        self._nursery.start_soon(self._answer, channel, answer, scope)

    def begin_later(
        self, channel: Channel, ready: Callable[[], Awaitable[None]], begin: Callable[[], None]
    ) -> None:
        """For an operation that may not begin yet: it does when `ready` returns, and is refused when that raises."""
        assert self._nursery is not None
        scope = trio.CancelScope()
        channel.handler = waiting = Waiting(channel, scope)
        self._nursery.start_soon(self._begin, channel, ready, begin, waiting, scope)

    async def _begin(
        self,
        channel: Channel,
        ready: Callable[[], Awaitable[None]],
        begin: Callable[[], None],
        waiting: Waiting,
        scope: trio.CancelScope,
    ) -> None:
        try:
            with scope:
                await ready()
            if channel.handler is waiting:
                channel.handler = None
                begin()
                waiting.hand_over()
        except GuestdError as error:
            channel.fail(error)
        except Exception:  # noqa: BLE001  one operation's mistake is not the end of the session; the log has it
            _log.exception("%s: operation failed", self.peer)
            channel.fail(InternalError(_OWN_MISTAKE))

    async def _answer(
        self,
        channel: Channel,
        answer: Callable[[], Awaitable[Mapping[str, object]]],
        scope: trio.CancelScope,
    ) -> None:
        try:
            with scope:
                channel.end(await answer())
        except GuestdError as error:
            channel.fail(error)
        except Exception:  # noqa: BLE001  one operation's mistake is not the end of the session; the log has it
            _log.exception("%s: operation failed", self.peer)
            channel.fail(InternalError(_OWN_MISTAKE))

    async def goodbye(self, error: GuestdError) -> None:
        """The last words. Bounded: a peer that does not listen does not hear them."""
        self.post(encode(Kind.GOAWAY, 0, pack(error.to_map())))
        with trio.move_on_after(_GOODBYE_PATIENCE):
            await self._writer.all_sent()

    async def is_there(self, patience: float) -> bool:
        """Does the peer still answer, or take what is sent to it?"""
        heard, unsent = self._heard, self.link.unsent
        self._hears = trio.Event()
        self.post(encode(Kind.PING, 0, b"there?"))
        with trio.move_on_after(patience):
            await self._hears.wait()
        return self._heard != heard or self.link.unsent < unsent

    def drop(self, why: str) -> None:
        """End it without a word: nobody is there to hear one. What the peer started goes on."""
        self._dropped = PeerTooSlow(why)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # -------------------------------------------------------------------------------------- reading

    async def _greet(self) -> None:
        frame = await self.link.receive()
        if frame is None:
            raise ProtocolViolation("the peer closed before its hello")
        if frame.kind is not Kind.HELLO:
            raise ProtocolViolation(f"the first frame was {frame.kind.name}, not HELLO")
        hello = Hello.from_map(unpack(frame))
        self._admit(hello)
        self._peer_window = hello.window
        self._writer.most_data = min(DATA_LIMIT, hello.frame - HEAD - DATA_HEAD)
        self.link.allow(self._bounds.frame)
        self.post(encode(Kind.HELLO, 0, pack(self._own_hello().to_map())))

    async def _read(self) -> None:
        count = 0
        pace, writer = self._bounds.pace, self._writer
        while (frame := await self.link.receive()) is not None:
            self._heard += 1
            self._hears.set()
            if pace is not None:
                await pace()
            self._handle(frame)
            count += 1
            if writer.control_bytes > self._bounds.queue:
                await writer.wait_for_room()
            elif count % _BATCH == 0:
                await trio.lowlevel.checkpoint()

    def _handle(self, frame: Frame) -> None:
        kind = frame.kind
        if kind is Kind.OPEN:
            self._open(frame)
        elif frame.channel:
            channel = self._channels.get(frame.channel)
            # A frame for a channel that is no more: it was on its way when the last word was said.
            if channel is not None:
                channel.received(frame)
        elif kind is Kind.PING:
            if len(frame.payload) > PING_LIMIT:
                raise ProtocolViolation(
                    f"a PING of {len(frame.payload)} bytes; at most {PING_LIMIT} are echoed"
                )
            self.post(encode(Kind.PONG, 0, bytes(frame.payload)))
        elif kind is Kind.HELLO:
            raise ProtocolViolation("a second HELLO")

    def _open(self, frame: Frame) -> None:
        number = frame.channel
        if number % 2 == 0:
            raise ProtocolViolation(f"channel {number} is not a client's to open: odd numbers are")
        if number in self._channels:
            raise ProtocolViolation(f"channel {number} is open already")
        fields = Fields(unpack(frame))
        self._opened += 1
        bounds = self._bounds
        channel = Channel(
            number,
            bounds.window,
            self._peer_window,
            self.post,
            self._writer.channel_ready,
            self._channel_gone,
        )
        self._channels[number] = channel
        try:
            channel.credit.available = fields.integer("window", self._peer_window, most=2**40)
            if len(self._channels) > bounds.channels:
                raise bounds.too_many_channels()
            name = fields.text("op", most=64)
            operation = self._operations.find(name)
            if operation is None:
                known = ", ".join(self._operations.names())
                raise Unsupported(
                    f"there is no operation {name!r}; there are: {known}", field="op", expected=known
                )
            channel.opened()
            if fields.has("traceparent"):
                channel.trace = _trace(fields)
            operation(self, channel, fields)
        except GuestdError as error:
            channel.fail(error)
        except Exception:  # noqa: BLE001  one operation's mistake is not the end of the session; the log has it
            _log.exception("%s: operation failed", self.peer)
            channel.fail(InternalError(_OWN_MISTAKE))

    def _channel_gone(self, channel: Channel) -> None:
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]
        self._writer.forget(channel)


def _trace(fields: Fields) -> dict[str, str]:
    """The trace context of a request, by the names that environments have for it."""
    return {
        name: fields.text(key, most=8192)
        for key, name in (("traceparent", "TRACEPARENT"), ("tracestate", "TRACESTATE"))
        if fields.has(key)
    }
