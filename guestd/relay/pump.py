"""Passing bytes on between two ends, in both directions at once, until both have said their end.

What is read is sent in the same breath, from one buffer that all share; so a connection that does nothing costs no
memory, and one whose reader does not read costs what was read for it and could not be sent: a buffer at most. Nothing
more is read for it then, and the kernel holds its writer.

An end is passed on as an end, and the other direction goes on. What breaks on one side is broken on the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from typing import Protocol

    class Pumped(Protocol):
        """What of an End is used here."""

        def receive_into(self, room: memoryview) -> int: ...
        def send(self, data: memoryview) -> int: ...
        async def readable(self) -> None: ...
        async def writable(self) -> None: ...
        def finish(self) -> None: ...


#: What one read takes. A stalled direction holds as much.
CHUNK = 128 * 1024
#: Reads in a row of a connection that always has more, before others get their turn.
_IN_A_ROW = 4
_room = memoryview(bytearray(CHUNK))


class Gone:
    """How many bytes have gone one way."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Flow:
    """How many bytes have gone each way: `up` from the one who connected, `down` to it."""

    __slots__ = ("down", "up")

    def __init__(self) -> None:
        self.up = Gone()
        self.down = Gone()

    @property
    def moved(self) -> int:
        return self.up.bytes + self.down.bytes


async def pump(near: Pumped, far: Pumped, flow: Flow) -> bool:
    """Pass on until it is over. True when both sides have said their end, False when one of them broke."""
    whole = True
    async with trio.open_nursery() as nursery:

        async def run(source: Pumped, sink: Pumped, gone: Gone) -> None:
            nonlocal whole
            try:
                await one_way(source, sink, gone)
            except OSError:
                whole = False
                nursery.cancel_scope.cancel()

        nursery.start_soon(run, near, far, flow.up)
        nursery.start_soon(run, far, near, flow.down)
    return whole


async def one_way(source: Pumped, sink: Pumped, gone: Gone) -> None:
    """Until the source has said its end, and the sink was told. OSError: one of the two is broken."""
    in_a_row = 0
    while True:
        try:
            size = source.receive_into(_room)
        except BlockingIOError:
            in_a_row = 0
            await source.readable()
            continue
        if not size:
            sink.finish()
            return
        try:
            sent = sink.send(_room[:size])
        except BlockingIOError:
            sent = 0
        gone.bytes += sent
        if sent < size:
            # The buffer is everybody's: what stays is copied before anybody else runs.
            in_a_row = 0
            await send_rest(sink, memoryview(bytes(_room[sent:size])), gone)
        in_a_row += 1
        if in_a_row >= _IN_A_ROW:
            in_a_row = 0
            await trio.lowlevel.checkpoint()


async def send_rest(sink: Pumped, rest: memoryview, gone: Gone) -> None:
    """What could not be sent at once, as it can."""
    while rest:
        await sink.writable()
        try:
            sent = sink.send(rest)
        except BlockingIOError:
            continue
        rest = rest[sent:]
        gone.bytes += sent
