"""One connection: one reader task, one writer task, a heartbeat, and the channels between them.

The reader never waits for whoever uses a channel: what comes is put into that channel's inbox, which its credit
bounds. So a channel nobody reads stalls itself alone.

There is one way out: `post` queues a frame, or sends it at once when nothing is queued; the writer sends the queue.
No user's task is ever in the middle of a frame, so a cancelled user leaves the connection whole. Only the writer can
be cancelled there, and then the connection is over.

When it ends, for whatever reason, every channel ends with that reason.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from guestd.client.channel import Channel, again
from guestd.client.inbox import Inbox
from guestd.errors import BadRequest, ConnectionLost, GuestdError, LimitReached, ProtocolViolation, from_map
from guestd.wire.frames import DATA_HEAD, DATA_LIMIT, HEAD, Kind, data_head, encode
from guestd.wire.hello import Hello
from guestd.wire.messages import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.client.link import Chunk, Link, Outgoing
    from guestd.wire.frames import Frame

#: What one channel may have on its way to us. Bulk reaches full speed at about two DATA frames.
DEFAULT_WINDOW = 1024 * 1024
#: Input waits while this much is queued. Control frames do not: they are few, each answers something.
_QUEUE_LIMIT = 512 * 1024
#: How much the writer hands over at once.
_BATCH = 64
#: After sending has failed, how long the guest's last words may take to be read.
_LAST_WORDS = 1.0
_CLOSE_TIME = 1.0
_CHANNEL_END = 2**32


class Connection:
    """See the module. `start` shakes hands; `aclose` ends it."""

    def __init__(
        self, link: Link, peer: str, *, window: int = DEFAULT_WINDOW, heartbeat: float = 30.0
    ) -> None:
        self.peer = peer
        self.hello: Hello | None = None
        self.data_limit = DATA_LIMIT
        self._link = link
        self._window = window
        self._heartbeat = heartbeat
        self._frame_limit = 0
        self._channels: dict[int, Channel] = {}
        self._next = 1
        self._failure: GuestdError | None = None
        self._last_words: GuestdError | None = None
        self._queue: deque[Outgoing] = deque()
        self._queued = 0
        self._writing = False
        self._deaf = False
        self._sending = trio.CancelScope(shield=True)
        self._filled = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._heard_at = -math.inf
        self._reading = trio.CancelScope(shield=True)
        self._over = trio.Event()

    # -- beginning and end --

    async def start(self, tasks: trio.Nursery, hello: Hello) -> Hello:
        """Say hello and wait for the guest's. The caller sets the deadline."""
        self._send(self._link.preface + encode(Kind.HELLO, 0, pack(hello.to_map())))
        tasks.start_soon(self._write, name="guestd client: writer")
        try:
            frame = await self._link.receive()
            if frame is None:
                raise ConnectionLost(
                    "it was closed without a word; is that guestd, and may this peer connect?"
                )
            fields = unpack(frame)
            if frame.kind is Kind.GOAWAY:
                raise from_map(fields)
            if frame.kind is not Kind.HELLO:
                raise ProtocolViolation(f"its first frame was {frame.kind.name}, not HELLO")
            self.hello = Hello.from_map(fields)
        except (OSError, GuestdError, trio.BrokenResourceError) as error:
            raise self._die(error) from error
        self._frame_limit = self.hello.frame
        self.data_limit = min(DATA_LIMIT, self.hello.frame - HEAD - DATA_HEAD)
        self._link.greeted()
        self._heard_at = trio.current_time()
        tasks.start_soon(self._read, name="guestd client: reader")
        if self._heartbeat < math.inf:
            tasks.start_soon(self._beat, name="guestd client: heartbeat")
        return self.hello

    @property
    def failure(self) -> GuestdError | None:
        """Why it is over; None while it is not."""
        return self._failure

    async def wait_over(self) -> None:
        """Wait until it is over, whoever ends it."""
        await self._over.wait()

    async def aclose(self) -> None:
        """Send what is queued, if that goes quickly, and close."""
        with trio.move_on_after(_CLOSE_TIME, shield=True):
            await self.drain()
        self._die(ConnectionLost("it was closed on this side"))
        self._sending.cancel()
        self._reading.cancel()
        with trio.move_on_after(_CLOSE_TIME, shield=True):
            await self._link.aclose()

    # -- channels --

    def open(
        self, fields: Mapping[str, object], inbox: Inbox | None = None, window: int | None = None
    ) -> Channel:
        """Begin an operation. Waits for nothing."""
        if self._failure is not None:
            raise again(self._failure)
        assert self.hello is not None
        while self._next in self._channels:
            self._next = (self._next + 2) % _CHANNEL_END
        number = self._next
        self._next = (number + 2) % _CHANNEL_END
        if window is not None:
            fields = {**fields, "window": window}
        channel = Channel(
            self,
            number,
            inbox or Inbox(),
            credit=self.hello.window,
            window=self._window if window is None else window,
        )
        channel.open(fields)
        self._channels[number] = channel
        return channel

    # -- out --

    def post(self, kind: Kind, channel: int, fields: Mapping[str, object]) -> None:
        """A control frame. Waits for nothing; on a connection that is over it goes nowhere."""
        frame = encode(kind, channel, pack(fields))
        if len(frame) - 4 > self._frame_limit:
            raise LimitReached(
                f"the request has {len(frame)} bytes; the guest at {self.peer} takes {self._frame_limit} in one frame",
                limit=self._frame_limit,
                setting="limits.frame",
            )
        self._send(frame)

    def post_data(self, channel: int, stream: int, offset: int, data: memoryview) -> None:
        """A DATA frame. The data is not copied when it goes at once, or cannot change later."""
        self._send(data_head(channel, stream, offset, len(data)), data)

    async def drain(self) -> None:
        """Wait until everything that is queued has left, or nothing can leave any more."""
        while (self._queue or self._writing) and self._failure is None and not self._deaf:
            await self._drained.park()

    async def wait_room(self) -> bool:
        waited = False
        while self._queued > _QUEUE_LIMIT and not self._deaf:
            waited = True
            await self._drained.park()
        return waited

    def _send(self, head: Chunk, data: Chunk = b"") -> None:
        if self._deaf:
            return
        if not self._queue and not self._writing:
            try:
                sent = self._link.send_now(head, data)
            except OSError as error:
                self._send_failed(error)
                return
            if sent == len(head) + len(data):
                return
            if sent:
                head, data = memoryview(head)[sent:], memoryview(data)[max(0, sent - len(head)) :]
        if not isinstance(data, bytes) and not isinstance(data.obj, bytes):
            data = bytes(data)
        self._queue.append((head, data))
        self._queued += len(head) + len(data)
        self._filled.unpark_all()

    async def _write(self) -> None:
        """Not cancelled with what is around it: who is cancelled has last words, and `aclose` waits for them a bit."""
        try:
            with self._sending:
                await self._send_all()
        except (OSError, GuestdError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._send_failed(error)
        finally:
            if self._writing:
                # Half a frame may have left: nothing can follow it.
                self._die(ConnectionLost("sending was stopped in the middle of a frame"))

    async def _send_all(self) -> None:
        while not self._deaf:
            if not self._queue:
                await self._filled.park()
                continue
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._writing = True
            await self._link.send(batch)
            self._writing = False
            self._queued -= sum(len(head) + len(data) for head, data in batch)
            self._drained.unpark_all()

    def _send_failed(self, error: Exception) -> None:
        """Nothing can be sent any more. What the guest said last may explain it, so reading goes on a little."""
        self._writing = False
        self._stop_sending()
        self._last_words = self._last_words or _lost(error)
        self._reading.deadline = min(self._reading.deadline, trio.current_time() + _LAST_WORDS)

    def _stop_sending(self) -> None:
        self._deaf = True
        self._queue.clear()
        self._queued = 0
        self._filled.unpark_all()
        self._drained.unpark_all()

    # -- in --

    async def _read(self) -> None:
        """Not cancelled with what is around it either: to whoever is cancelled the connection is not lost, so that they
        still say so; and a guest whose own words are not read reads nothing.
        """
        error: Exception = ConnectionLost("it was closed on this side")
        try:
            with self._reading:
                while (frame := await self._link.receive()) is not None:
                    self._heard_at = trio.current_time()
                    self._on_frame(frame)
                error = ConnectionLost("the guest closed it")
        except BadRequest as caught:
            error = ProtocolViolation(f"the guest sent what cannot be understood: {caught.message}")
        except (OSError, GuestdError, trio.BrokenResourceError, trio.ClosedResourceError) as caught:
            error = caught
        finally:
            self._die(error)

    def _on_frame(self, frame: Frame) -> None:
        if frame.channel == 0:
            self._on_connection_frame(frame)
            return
        channel = self._channels.get(frame.channel)
        if channel is None:
            return  # late, for a channel both sides have ended
        if frame.kind is Kind.DATA:
            channel.on_data(frame.payload)
        else:
            channel.on_frame(frame.kind, unpack(frame))
            if channel.free:
                del self._channels[frame.channel]

    def _on_connection_frame(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.PING:
                # A peer that pings and never reads does not get to fill our memory.
                if self._queued <= _QUEUE_LIMIT:
                    self._send(encode(Kind.PONG, 0, bytes(frame.payload)))
            case Kind.GOAWAY:
                self._last_words = from_map(unpack(frame))
            case _:
                pass

    async def _beat(self) -> None:
        """A peer that is gone without a word (a frozen machine, a forgotten NAT entry) is found out by asking."""
        while True:
            await trio.sleep_until(self._heard_at + self._heartbeat)
            if trio.current_time() < self._heard_at + self._heartbeat:
                continue
            asked = trio.current_time()
            self._send(encode(Kind.PING, 0, b"beat"))
            await trio.sleep(self._heartbeat)
            if self._heard_at < asked:
                self._die(ConnectionLost(f"the guest was silent for {2 * self._heartbeat:.0f} s"))
                self._reading.cancel()
                return

    def _die(self, error: Exception) -> GuestdError:
        """The connection is over. The guest's own last words are a better reason than how the socket ended."""
        if self._failure is None:
            reason = self._last_words or _lost(error)
            if isinstance(reason, ConnectionLost) or self.hello is not None:
                self._failure = ConnectionLost(
                    f"the connection to {self.peer} ended: {reason.message}",
                    address=self.peer,
                    reason=reason.code,
                )
            else:
                # Before the hello nothing was begun: a refusal is that refusal, not a loss.
                reason.details.setdefault("address", self.peer)
                self._failure = reason
        self._writing = False
        self._over.set()
        self._stop_sending()
        for channel in self._channels.values():
            channel.fail(self._failure)
        self._channels.clear()
        return again(self._failure)


def _lost(error: Exception) -> GuestdError:
    if isinstance(error, GuestdError):
        return error
    cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
    return ConnectionLost(getattr(cause, "strerror", None) or str(cause or error) or type(error).__name__)


def identity(hello: Hello) -> dict[str, Any]:
    """Which guest this is, as far as it says. `previous` are ids that its session had before it was resumed."""
    return {name: hello.identity.get(name) for name in ("boot_id", "session_id", "generation", "previous")}
