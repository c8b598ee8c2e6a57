"""The guest's side of a stream, by hand: what a test sends is exactly what the client gets.

`Peer` is one end that speaks frames. `Cut` is a stream that breaks after so many bytes, in either direction.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from trio.testing import memory_stream_pair

from guestd.client import Client, over
from guestd.client.tasks import background
from guestd.wire.frames import FRAME_LIMIT, PREFACE, Decoder, Kind, data_head, encode, read_data
from guestd.wire.hello import DEFAULT_WINDOW, Hello
from guestd.wire.messages import pack, unpack

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Seen(NamedTuple):
    """A frame the client sent. `fields` is empty for DATA, `data` for everything else."""

    kind: Kind
    channel: int
    fields: dict[str, Any]
    data: bytes = b""
    offset: int = 0


def control(kind: Kind, channel: int, /, **fields: object) -> bytes:
    return encode(kind, channel, pack(fields))


def data_frame(channel: int, stream: int, offset: int, data: bytes) -> bytes:
    return data_head(channel, stream, offset, len(data)) + data


RUNNING = {
    "kind": "command",
    "created": True,
    "pid": 4242,
    "state": "running",
    "input": {"offset": 0},
    "streams": {"stdout": {"start": 0, "end": 0}, "stderr": {"start": 0, "end": 0}},
}


def accept(channel: int, /, id: str = "job", **fields: object) -> bytes:
    return control(Kind.ACCEPT, channel, **{**RUNNING, "id": id, **fields})


def end(channel: int, /, id: str = "job", **fields: object) -> bytes:
    return control(Kind.END, channel, **{"id": id, "outcome": "exited", "code": 0, **fields})


class Peer:
    """The guest's end of one connection."""

    def __init__(
        self, stream: trio.abc.Stream, *, window: int = DEFAULT_WINDOW, frame: int = FRAME_LIMIT
    ) -> None:
        self.stream = stream
        self.window = window
        self.frame = frame
        self.received = 0
        self.hello: Hello | None = None
        self._decoder = Decoder(limit=FRAME_LIMIT)

    async def greet(self, boot_id: str = "boot", **identity: object) -> None:
        seen = await self.receive()
        assert seen is not None
        assert seen.kind is Kind.HELLO
        self.hello = Hello.from_map(seen.fields)
        mine = Hello(
            agent="scripted", frame=self.frame, window=self.window, identity={"boot_id": boot_id, **identity}
        )
        await self.send(PREFACE + encode(Kind.HELLO, 0, pack(mine.to_map())))

    async def receive(self) -> Seen | None:
        """The next frame of the client; None when it has closed."""
        while (frame := self._decoder.next()) is None:
            data = await self.stream.receive_some(65536)
            if not data:
                assert self._decoder.pending == 0, "the client left in the middle of a frame"
                return None
            self.received += len(data)
            self._decoder.feed(data)
        if frame.kind is Kind.DATA:
            stream, offset, data = read_data(frame.payload)
            assert stream == 0
            return Seen(frame.kind, frame.channel, {}, bytes(data), offset)
        if frame.kind in {Kind.PING, Kind.PONG}:
            return Seen(frame.kind, frame.channel, {}, bytes(frame.payload))
        return Seen(frame.kind, frame.channel, unpack(frame))

    async def expect(self, kind: Kind) -> Seen:
        seen = await self.receive()
        assert seen is not None, f"the client closed instead of sending {kind.name}"
        assert seen.kind is kind, seen
        return seen

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Cut(trio.abc.Stream):
    """A stream that breaks for both ends after it has carried so many bytes."""

    def __init__(
        self, stream: trio.abc.Stream, *, sends: float = math.inf, receives: float = math.inf
    ) -> None:
        self._stream = stream
        self.sends = sends
        self.receives = receives

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) <= self.sends:
            self.sends -= len(data)
            await self._stream.send_all(data)
            return
        size, self.sends = int(self.sends), 0
        await self._stream.send_all(memoryview(data)[:size])
        await self.aclose()
        raise trio.BrokenResourceError("cut while sending")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.receives <= 0:
            await self.aclose()
            raise trio.BrokenResourceError("cut while receiving")
        data = await self._stream.receive_some(max_bytes)
        kept = data[: int(min(self.receives, len(data)))]
        self.receives -= len(kept)
        return kept

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


@asynccontextmanager
async def client_and_peer(
    *,
    window: int = 1024 * 1024,
    heartbeat: float = math.inf,
    input_window: int = DEFAULT_WINDOW,
    frame: int = FRAME_LIMIT,
) -> AsyncGenerator[tuple[Client, Peer]]:
    """A client that has shaken hands with a peer."""
    near, far = memory_stream_pair()
    peer = Peer(far, window=input_window, frame=frame)
    async with background() as tasks:
        tasks.start_soon(peer.greet)
        async with over(near, window=window, heartbeat=heartbeat) as client:
            yield client, peer
