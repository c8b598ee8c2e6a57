"""What a peer has said before it closed is heard, also when nothing can be sent to it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from guestd.service.bounds import Bounds
from guestd.service.connection import Connection
from guestd.wire.frames import Frame, Kind
from guestd.wire.hello import Hello
from guestd.wire.messages import Fields, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.service.channel import Channel
    from guestd.service.link import Outgoing

BOUNDS = Bounds(handshake=5, frame=65536, window=65536, channels=16, write_stall=5)
HELLO = Hello(agent="test", features=(), frame=65536, window=65536, channels=16, identity={})


class _Closed:
    """A link whose peer has said everything and closed: what it said can be read when the first send has failed."""

    peer = "the peer"
    unsent = 0

    def __init__(self, words: list[Frame]) -> None:
        self._words = words
        self._failed = trio.Event()

    def allow(self, limit: int) -> None: ...

    async def receive(self) -> Frame | None:
        await trio.lowlevel.checkpoint()
        if self._words and self._words[0].kind is Kind.RESET:
            await self._failed.wait()
            await trio.testing.wait_all_tasks_blocked()
        return self._words.pop(0) if self._words else None

    def send_now(self, frames: Sequence[Outgoing]) -> bool:
        self._failed.set()
        raise BrokenPipeError("nobody takes it")

    async def flush(self) -> bool:
        raise AssertionError

    async def close(self) -> None: ...


class _Begun:
    """The only operation: its handler notes whether the channel was still open when it was closed."""

    def __init__(self) -> None:
        self.lost: list[bool] = []

    def find(self, name: str) -> Callable[[Connection, Channel, Fields], None] | None:
        return self.begin

    def names(self) -> list[str]:
        return ["begin"]

    def begin(self, connection: Connection, channel: Channel, fields: Fields) -> None:
        self.channel = channel
        channel.handler = self
        channel.accept({})

    def on_data(self, stream: int, offset: int, data: memoryview) -> None: ...
    def on_event(self, fields: Fields) -> None: ...
    def pull(self, most: int) -> Outgoing | None: ...

    def closed(self) -> None:
        self.lost.append(self.channel.is_open)


async def _serve(words: list[Frame]) -> list[bool]:
    operations = _Begun()
    said = [
        Frame(Kind.HELLO, 0, memoryview(pack(HELLO.to_map()))),
        Frame(Kind.OPEN, 1, memoryview(pack({"op": "begin"}))),
        *words,
    ]
    connection = Connection(_Closed(said), BOUNDS, operations, lambda: HELLO, lambda _: None)
    with trio.fail_after(30):
        await connection.run()
    return operations.lost


async def test_what_was_given_up_before_the_end_is_given_up_and_not_lost() -> None:
    reset = Frame(Kind.RESET, 1, memoryview(pack({"code": "cancelled", "message": "given up"})))
    assert await _serve([reset]) == [False]


async def test_without_a_last_word_it_is_lost() -> None:
    assert await _serve([]) == [True]
