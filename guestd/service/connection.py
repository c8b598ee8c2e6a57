"""A connection: one reader, one writer.

The reader takes frames and hands them to channels; what an operation does at once happens right there,
between two checkpoints. The writer is the only one that sends: control frames first, then one frame from each
channel that has something and credit for it, in turn. So a channel that is full, or whose client has given no
credit, holds up only itself.

Bounds: control frames wait in a queue, and the reader stops reading while that queue is full. A peer that
takes nothing for `write_stall` is dropped; what it started goes on.
"""

from __future__ import annotations

import logging
from collections import deque
from math import inf
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
from guestd.service.link import Outgoing
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
#: Data gathered for one write.
_GATHER = 2 * DATA_LIMIT
#: Little output in quick succession is sent together: at most one frame each 2 ms, unless there is a lot, and
#: the first at once.
COALESCE_TIME = 0.002
COALESCE_BYTES = 16 * 1024
#: How long the ACCEPT of a command waits: most of those that are over sooner need one write instead of two.
LINGER = 0.001
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
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._less_control = trio.Event()
        self._ready: deque[Channel] = deque()
        self._later: dict[Channel, float] = {}
        self._news = trio.Event()
        self._idle = trio.Event()
        self._parked = False
        # What went wrong where the writer was not.
        self._failure: Exception | None = None
        # The link has been given more than has left.
        self._flushing = False
        self._patience = trio.CancelScope()
        self._peer_window = 0
        self._most_data = DATA_LIMIT
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
            while self._control or not self._parked:
                await self._idle.wait()

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
        self._most_data = min(DATA_LIMIT, hello.frame - HEAD - DATA_HEAD)
        self.link.allow(self._bounds.frame)
        self.post(encode(Kind.HELLO, 0, pack(self._own_hello().to_map())))

    async def _read(self) -> None:
        count = 0
        pace = self._bounds.pace
        while (frame := await self.link.receive()) is not None:
            self._heard += 1
            self._hears.set()
            if pace is not None:
                await pace()
            self._handle(frame)
            count += 1
            if self._control_bytes > self._bounds.queue:
                self._less_control = trio.Event()
                await self._less_control.wait()
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
            number, bounds.window, self._peer_window, self.post, self._channel_ready, self._channel_gone
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

    # -------------------------------------------------------------------------------------- writing

    def post(self, frame: bytes, urgent: bool = True) -> None:  # noqa: FBT001, FBT002  channels get it as a callable
        """Queue a control frame. One that is not urgent waits up to a millisecond for others to leave with it."""
        self._control.append(frame)
        self._control_bytes += len(frame)
        if urgent or not self._parked:
            self._wake()
        else:
            self._patience.deadline = min(self._patience.deadline, trio.current_time() + LINGER)

    def _channel_ready(self, channel: Channel) -> None:
        self._ready.append(channel)
        if channel.hurries and self._parked and not self._control:
            self._send_at_once()
        else:
            self._wake()

    def _send_at_once(self) -> None:
        """Send from here what the writer, who sleeps, would send a moment later: a moment that whoever typed a key
        would wait for its echo.
        """
        self._parked = False  # what gets ready meanwhile is for the writer
        try:
            batch = self._gather()
            if batch:
                self._flushing = not self.link.send_now(batch)
        except Exception as error:  # noqa: BLE001  whoever read the output must not hear of it, but the writer
            self._failure = error
        if self._ready or self._flushing or self._later or self._failure is not None:
            self._news.set()
        else:
            self._parked = True

    def _channel_gone(self, channel: Channel) -> None:
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]
        self._later.pop(channel, None)

    def _wake(self) -> None:
        if self._parked:
            self._parked = False
            self._news.set()

    def later(self, channel: Channel, when: float) -> None:
        """The channel has something, but not before that time, unless it is woken."""
        self._later[channel] = when

    async def _write(self) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._flushing:
                await self._flush()
                continue
            batch = self._gather()
            if not batch and self._ready:
                # A whole round of channels that had nothing after all; there are others, whom nobody will wake again.
                await trio.lowlevel.checkpoint()
            elif not batch:
                await self._park()
            elif self.link.send_now(batch):
                await trio.lowlevel.checkpoint()
            else:
                self._flushing = True

    async def _flush(self) -> None:
        """Until all has left that was given to the link."""
        stall = self._bounds.write_stall
        left = False
        while not left:
            before = self.link.unsent
            with trio.move_on_after(stall) as patience:
                left = await self.link.flush()
            if patience.cancelled_caught and self.link.unsent >= before:
                raise self._bounds.too_slow("the peer took nothing for", "write_stall")
        self._flushing = False

    def _gather(self) -> list[Outgoing]:
        batch: list[Outgoing] = []
        while self._control and len(batch) < _BATCH:
            frame = self._control.popleft()
            self._control_bytes -= len(frame)
            batch.append(Outgoing(frame))
        if self._control_bytes <= self._bounds.queue:
            self._less_control.set()
        if self._later:
            self._wake_due()
        size = 0
        for _ in range(min(len(self._ready), _BATCH)):
            channel = self._ready.popleft()
            channel.ready = False
            if channel.handler is None:
                continue
            frame = channel.handler.pull(self._most_data)
            if frame is not None:
                batch.append(frame)
                channel.wake()
                size += 0 if frame.data is None else len(frame.data)
                if size >= _GATHER:
                    break
        return batch

    def _wake_due(self) -> None:
        now = trio.current_time()
        for channel in [channel for channel, when in self._later.items() if when <= now]:
            del self._later[channel]
            channel.wake()

    async def _park(self) -> None:
        self._news = trio.Event()
        self._parked = True
        self._idle.set()
        self._idle = trio.Event()
        with trio.CancelScope(deadline=min(self._later.values(), default=inf)) as self._patience:
            await self._news.wait()
        self._parked = False


def _trace(fields: Fields) -> dict[str, str]:
    """The trace context of a request, by the names that environments have for it."""
    return {
        name: fields.text(key, most=8192)
        for key, name in (("traceparent", "TRACEPARENT"), ("tracestate", "TRACESTATE"))
        if fields.has(key)
    }
