"""Passing on, over ends that misbehave in chosen ways: short sends, no room, breaks at any byte. Nothing is lost or
doubled, an end is an end, a break is a break, and what is held is bounded.
"""

from __future__ import annotations

import errno
from collections import deque
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from guestd import observe
from guestd.errors import Refused
from guestd.relay import pump as pumping
from guestd.relay.book import ENDED, Book
from guestd.relay.ends import connect
from guestd.relay.pump import CHUNK, Flow, Gone, one_way, pump
from guestd.wire.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


class Faulty:
    """One end: what comes from it, and what was sent to it. `random` decides how much goes at once, and whether any."""

    def __init__(
        self,
        says: bytes = b"",
        *,
        random: Random | None = None,
        ends: bool = True,
        breaks_reading: int | None = None,
        breaks_writing: int | None = None,
        room: int | None = None,
    ) -> None:
        self.says = memoryview(says)
        self.taken = bytearray()
        self.finished = False
        self.read = 0
        #: How much it takes before it takes no more; None: no bound.
        self.room = room
        self._ends = ends
        self._random = random
        self._breaks_reading, self._breaks_writing = breaks_reading, breaks_writing
        self._blocks: deque[bool] = deque()
        self.more_room = trio.Event()
        self.waits_for_room = trio.Event()

    def _refuses(self) -> bool:
        return self._random is not None and self._random.random() < 0.3

    def receive_into(self, room: memoryview) -> int:
        if self._breaks_reading is not None and self.read >= self._breaks_reading:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        if self._refuses() or (not self.says and not self._ends):
            raise BlockingIOError
        size = min(len(room), len(self.says))
        if self._random is not None and size:
            size = self._random.randint(1, size)
        if self._breaks_reading is not None:
            size = min(size, self._breaks_reading - self.read)
        room[:size] = self.says[:size]
        self.says = self.says[size:]
        self.read += size
        return size

    def send(self, data: memoryview) -> int:
        assert not self.finished, "something was sent behind the end"
        if self._breaks_writing is not None and len(self.taken) >= self._breaks_writing:
            raise BrokenPipeError(errno.EPIPE, "broken")
        if self._refuses():
            raise BlockingIOError
        size = len(data)
        if self._random is not None:
            size = self._random.randint(1, size)
        if self.room is not None:
            size = min(size, self.room - len(self.taken))
            if not size:
                raise BlockingIOError
        self.taken += data[:size]
        return size

    async def readable(self) -> None:
        if not self.says and not self._ends:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def writable(self) -> None:
        if self.room is not None and len(self.taken) >= self.room:
            self.waits_for_room.set()
            await self.more_room.wait()
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        assert not self.finished
        self.finished = True


@pytest.mark.parametrize("seed", range(30))
async def test_every_byte_arrives_once_in_order_however_the_ends_stutter(seed: int) -> None:
    random = Random(seed)
    near = Faulty(random.randbytes(random.randint(0, 3 * CHUNK)), random=random)
    far = Faulty(random.randbytes(random.randint(0, 3 * CHUNK)), random=random)
    said = bytes(near.says), bytes(far.says)
    flow = Flow()
    assert await pump(near, far, flow)
    assert (bytes(far.taken), bytes(near.taken)) == said
    assert near.finished
    assert far.finished
    assert (flow.up.bytes, flow.down.bytes) == (len(said[0]), len(said[1]))
    assert flow.moved == len(said[0]) + len(said[1])


async def test_many_at_once_share_the_buffer_and_nothing_else() -> None:
    pairs = [
        (Faulty(bytes([number]) * 5000, random=Random(number)), Faulty(b"", random=Random(-number)))
        for number in range(1, 100)
    ]
    async with trio.open_nursery() as nursery:
        for near, far in pairs:
            nursery.start_soon(pump, near, far, Flow())
    assert [bytes(far.taken) for _, far in pairs] == [bytes([number]) * 5000 for number in range(1, 100)]


async def test_one_half_ends_and_the_other_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    near, far = Faulty(b"request"), Faulty(ends=False)
    async with trio.open_nursery() as nursery:
        flow = Flow()
        nursery.start_soon(pump, near, far, flow)
        await trio.testing.wait_all_tasks_blocked()
        assert (bytes(far.taken), far.finished, near.finished) == (b"request", True, False)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("at", [0, 1, 1000, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("where", ["near reads", "near writes", "far reads", "far writes"])
async def test_what_breaks_anywhere_is_a_break_and_never_an_end(at: int, where: str) -> None:
    side, _, does = where.partition(" ")
    faults = {f"breaks_{'reading' if does == 'reads' else 'writing'}": at}
    data = bytes(4 * CHUNK)
    near = Faulty(data, breaks_reading=faults.get("breaks_reading") if side == "near" else None,
                  breaks_writing=faults.get("breaks_writing") if side == "near" else None, ends=False)  # fmt: skip
    far = Faulty(data, breaks_reading=faults.get("breaks_reading") if side == "far" else None,
                 breaks_writing=faults.get("breaks_writing") if side == "far" else None, ends=False)  # fmt: skip
    assert not await pump(near, far, Flow())
    assert not near.finished
    assert not far.finished


async def test_a_reader_that_stalls_stops_its_writer_and_holds_a_buffer_at_most() -> None:
    near, far = Faulty(bytes(50 * CHUNK)), Faulty(ends=False, room=1000)
    gone = Gone()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_way, near, far, gone)
        await far.waits_for_room.wait()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert (near.read, gone.bytes) == (CHUNK, 1000), "no more was read than one buffer"
        far.room = None
        far.more_room.set()
    assert len(far.taken) == gone.bytes == 50 * CHUNK


async def test_who_always_has_more_lets_others_run() -> None:
    ran = 0

    async def other() -> None:
        nonlocal ran
        while True:
            ran += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await one_way(Faulty(bytes(40 * CHUNK)), Faulty(), Gone())
        nursery.cancel_scope.cancel()
    assert ran >= 40 / pumping._IN_A_ROW - 1


async def test_cancelled_it_leaves_no_task_and_says_no_end() -> None:
    near, far = Faulty(ends=False), Faulty(ends=False)
    with trio.move_on_after(0.01) as scope:
        await pump(near, far, Flow())
    assert scope.cancelled_caught
    assert not near.finished


class Heard:
    """An observer."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, object]]] = []

    def began(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None:
        self.told.append(("began", kind, dict(facts)))

    def ended(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None:
        self.told.append(("ended", kind, dict(facts)))

    def did(self, deed: str, who: str, facts: Mapping[str, object]) -> None: ...


def test_a_book_counts_what_goes_on_and_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr(observe, "observers", [heard])
    book = Book("relay", "x")
    one, other = book.begin("tcp:a:1"), book.begin("tcp:a:1")
    one.flow.up.bytes, other.flow.down.bytes = 5, 7
    assert book.describe() | {"open": 2, "bytes_up": 5, "bytes_down": 7} == book.describe()
    book.end(one, ENDED)
    found = book.describe()
    assert (found["open"], found["most_open"], found["ended"], found["bytes_up"], found["bytes_down"]) == (
        1,
        2,
        1,
        5,
        7,
    )
    assert heard.told == [
        *[("began", "relay", {"name": "x", "to": "tcp:a:1"})] * 2,
        ("ended", "relay", {"how": "ended", "why": None, "bytes_up": 5, "bytes_down": 0}),
    ]
    # The first look finds what had moved before it; only the next one can know that nothing has since.
    assert book.idle(0) == []
    assert book.idle(0) == [other]
    other.flow.up.bytes += 1
    assert book.idle(0) == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp:127.0.0.1:1", "cannot connect to tcp:127.0.0.1:1: nobody listens there (ECONNREFUSED)"),
        ("unix:/nonexistent/x", "cannot connect to unix:/nonexistent/x: there is no such socket (ENOENT)"),
        ("unix:/etc/passwd", "nobody listens there (ECONNREFUSED)"),
        ("tcp:name.invalid:80", "the name 'name.invalid' is not known"),
    ],
)
async def test_whom_nobody_answers_is_told_why(address: str, said: str) -> None:
    with pytest.raises(Refused) as caught:
        await connect(parse_address(address), 30)
    assert said in caught.value.message
    assert caught.value.details["address"] == address


async def test_connecting_is_bounded_and_a_path_is_looked_up_beside_the_loop() -> None:
    """A full backlog of a Unix socket is waited for, and given up."""
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0guestd-test-backlog")
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect("\0guestd-test-backlog")
            with pytest.raises(Refused, match=r"no answer within 0.05 s"):
                await connect(
                    parse_address("unix:/proc/self/fd/0")._replace(path="\0guestd-test-backlog"), 0.05
                )
