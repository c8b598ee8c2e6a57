"""The writer of a connection: the only one that sends.

Control frames go first, then one frame from each channel that has something and credit for it, in turn. So a channel
that is full, or whose client has given no credit, holds up only itself. A peer that takes nothing for `write_stall` is
too slow, and the writer ends with that.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING

import trio

from guestd.service.link import Outgoing
from guestd.wire.frames import DATA_LIMIT

if TYPE_CHECKING:
    from guestd.service.bounds import Bounds
    from guestd.service.channel import Channel
    from guestd.service.link import Link

#: Frames sent in one go before others get their turn.
_BATCH = 64
#: Data gathered for one write.
_GATHER = 2 * DATA_LIMIT
#: Little output in quick succession is sent together: at most one frame each 2 ms, unless there is a lot, and
#: the first at once.
COALESCE_TIME = 0.002
COALESCE_BYTES = 16 * 1024
#: How long the ACCEPT of a command waits: most of those that are over sooner need one write instead of two.
_LINGER = 0.001


class Writer:
    """See the module."""

    def __init__(self, link: Link, bounds: Bounds) -> None:
        self._link = link
        self._bounds = bounds
        #: The most data that the peer takes in one frame.
        self.most_data = DATA_LIMIT
        self._control: deque[bytes] = deque()
        #: Bytes of control frames that have not left.
        self.control_bytes = 0
        self._less = trio.Event()
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

    async def run(self) -> None:
        """Until the link breaks, or the peer takes nothing for too long."""
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
            elif self._link.send_now(batch):
                await trio.lowlevel.checkpoint()
            else:
                self._flushing = True

    async def discard(self) -> None:
        """Throw away what is to be sent, until cancelled: nobody takes it any more."""
        while True:
            self._control.clear()
            self.control_bytes = 0
            self._less.set()
            for channel in self._ready:
                channel.ready = False
            self._ready.clear()
            self._later.clear()
            await self._park()

    def post(self, frame: bytes, urgent: bool = True) -> None:  # noqa: FBT001, FBT002  channels get it as a callable
        """Queue a control frame. One that is not urgent waits up to a millisecond for others to leave with it."""
        self._control.append(frame)
        self.control_bytes += len(frame)
        if urgent or not self._parked:
            self._wake()
        else:
            self._patience.deadline = min(self._patience.deadline, trio.current_time() + _LINGER)

    def channel_ready(self, channel: Channel) -> None:
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
                self._flushing = not self._link.send_now(batch)
        except Exception as error:  # noqa: BLE001  whoever read the output must not hear of it, but the writer
            self._failure = error
        if self._ready or self._flushing or self._later or self._failure is not None:
            self._news.set()
        else:
            self._parked = True

    def _wake(self) -> None:
        if self._parked:
            self._parked = False
            self._news.set()

    def later(self, channel: Channel, when: float) -> None:
        """The channel has something, but not before that time, unless it is woken."""
        self._later[channel] = when

    async def _flush(self) -> None:
        """Until all has left that was given to the link."""
        stall = self._bounds.write_stall
        left = False
        while not left:
            before = self._link.unsent
            with trio.move_on_after(stall) as patience:
                left = await self._link.flush()
            if patience.cancelled_caught and self._link.unsent >= before:
                raise self._bounds.too_slow("the peer took nothing for", "write_stall")
        self._flushing = False

    def _gather(self) -> list[Outgoing]:
        batch: list[Outgoing] = []
        while self._control and len(batch) < _BATCH:
            frame = self._control.popleft()
            self.control_bytes -= len(frame)
            batch.append(Outgoing(frame))
        if self.control_bytes <= self._bounds.queue:
            self._less.set()
        if self._later:
            self._wake_due()
        size = 0
        for _ in range(min(len(self._ready), _BATCH)):
            channel = self._ready.popleft()
            channel.ready = False
            if channel.handler is None:
                continue
            frame = channel.handler.pull(self.most_data)
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

    def forget(self, channel: Channel) -> None:
        """The channel is no more."""
        self._later.pop(channel, None)

    async def wait_for_room(self) -> None:
        """Until no more control frames wait than may."""
        self._less = trio.Event()
        await self._less.wait()

    async def all_sent(self) -> None:
        """Until nothing is left to be sent."""
        while self._control or not self._parked:
            await self._idle.wait()
