"""A job followed across connections that break at any byte: output and input arrive once, nothing starts twice."""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from guestd.client import Backoff, Gap, Notice, Output, Request, follow, over, to_exec
from guestd.client.tasks import background
from guestd.errors import BadRequest, ConnectionLost, NotFound, Unavailable
from guestd.wire.frames import Kind
from tests.aio.scripted import Cut, Peer, accept, control, data_frame, end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from guestd.client import Client, Followed
    from tests.aio.scripted import Seen

TEXT = bytes(range(256)) * 12
STEADY = Backoff(random=lambda: 0.5)


class Guest:
    """One job that outlives connections, and connections that break where a test says.

    `cuts`: how many bytes each connection carries in both directions before it breaks; those after the last hold.
    """

    def __init__(
        self,
        tasks: trio.Nursery,
        *,
        stdout: bytes = b"",
        stderr: bytes = b"",
        wants: int | None = None,
        cuts: Sequence[tuple[float, float]] = (),
        piece: int = 100,
        window: int = 1000,
        boot: Sequence[str] = ("boot",),
    ) -> None:
        self.streams = {1: stdout, 2: stderr}
        self.kept_from = {1: 0, 2: 0}
        # How many bytes of input the command reads before it ends; None when it reads none.
        self.wants = wants
        self.input = b""
        self.passed_on = 0
        self.eof: int | None = None
        self.signals: list[str] = []
        self.started = 0
        self.connections = 0
        self.refuses: dict[str, object] | None = None
        self.down = False
        self.opened: list[Seen] = []
        self._tasks = tasks
        self._cuts = list(cuts)
        self._piece = piece
        self._window = window
        self._boot = list(boot)

    @asynccontextmanager
    async def dial(self) -> AsyncGenerator[Client]:
        if self.down:
            raise Unavailable("cannot reach the guest: it is down")
        near, far = memory_stream_pair()
        sends, receives = self._cuts.pop(0) if self._cuts else (float("inf"), float("inf"))
        boot = self._boot[min(self.connections, len(self._boot) - 1)]
        self.connections += 1
        self._tasks.start_soon(self._serve, Cut(far, sends=sends, receives=receives), boot)
        async with over(near, window=1000, heartbeat=float("inf")) as client:
            yield client

    async def _serve(self, stream: trio.abc.Stream, boot: str) -> None:
        try:
            peer = Peer(stream, window=self._window)
            await peer.greet(boot)
            opened = await peer.receive()
            if opened is not None and opened.kind is Kind.OPEN:
                await self._run(peer, opened)
            while await peer.receive() is not None:
                pass
        except trio.BrokenResourceError:
            pass
        except AssertionError as error:
            # A cut in the client's direction ends in the middle of its frame, which is what was asked for.
            if "in the middle of a frame" not in str(error):
                raise
        finally:
            await trio.aclose_forcefully(stream)

    async def _run(self, peer: Peer, opened: Seen) -> None:
        self.opened.append(opened)
        if self.refuses is not None:
            await peer.send(control(Kind.REJECT, opened.channel, **self.refuses))
            return
        if opened.fields["op"] == "exec":
            self.started += 1
        channel = opened.channel
        start: dict[str, int] = opened.fields.get("from", {})
        at = {number: start.get(name, 0) for number, name in ((1, "stdout"), (2, "stderr"))}
        self.passed_on = len(self.input)
        await peer.send(accept(channel, opened.fields["id"], input={"offset": len(self.input)}))
        credit = 1000
        while any(at[number] < len(text) for number, text in self.streams.items()) or self._reads():
            progress = False
            for number, text in self.streams.items():
                if at[number] < self.kept_from[number]:
                    lost = self.kept_from[number]
                    await peer.send(
                        control(
                            Kind.EVENT,
                            channel,
                            event="gap",
                            stream=number,
                            **{"from": at[number], "to": lost},
                        )
                    )
                    at[number] = lost
                piece = text[at[number] : at[number] + min(self._piece, credit)]
                if piece:
                    await peer.send(data_frame(channel, number, at[number], piece))
                    at[number] += len(piece)
                    credit -= len(piece)
                    progress = True
            if progress:
                continue
            seen = await peer.receive()
            if seen is None:
                return
            credit += await self._take(peer, seen)
        await peer.send(end(channel, opened.fields["id"]))

    def _reads(self) -> bool:
        return self.wants is not None and self.eof is None

    async def _take(self, peer: Peer, seen: Seen) -> int:
        if seen.kind is Kind.CREDIT:
            return int(seen.fields["bytes"])
        if seen.kind is Kind.DATA:
            assert seen.offset <= len(self.input), "the input has a hole"
            self.input += seen.data[len(self.input) - seen.offset :]
            if len(self.input) - self.passed_on >= self._window // 2:
                await peer.send(control(Kind.CREDIT, seen.channel, bytes=len(self.input) - self.passed_on))
                self.passed_on = len(self.input)
        elif seen.kind is Kind.EVENT and seen.fields["event"] == "eof":
            assert seen.fields["offset"] == len(self.input)
            self.eof = len(self.input)
        elif seen.kind is Kind.EVENT:
            self.signals.append(seen.fields["signal"])
            self.eof = len(self.input)
        return 0


async def _all(job: Followed) -> tuple[dict[str, bytes], list[Gap]]:
    got: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    gaps: list[Gap] = []
    async for event in job:
        if isinstance(event, Output):
            assert event.offset == len(got[event.stream]) + sum(
                gap.size for gap in gaps if gap.stream == event.stream
            )
            got[event.stream] += event.data
        else:
            gaps.append(event)
    return got, gaps


async def _feed(job: Followed, data: bytes, sizes: Sequence[int]) -> None:
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        await job.send(data[at : at + size])
        at += size
        turn += 1
    await job.close_stdin()


@settings(max_examples=150)
@given(data=st.data())
def test_wherever_connections_break_every_byte_comes_once_both_ways(data: st.DataObject) -> None:
    stdout = TEXT[: data.draw(st.integers(0, len(TEXT)), "stdout")]
    stderr = TEXT[: data.draw(st.integers(0, 500), "stderr")]
    given_input = TEXT[: data.draw(st.integers(0, len(TEXT)), "input")]
    # From the first byte after the hello on; the hello itself is the first connection's, which has to work.
    limits = st.one_of(st.integers(200, 4000), st.just(float("inf")))
    cuts = data.draw(st.lists(st.tuples(limits, limits), min_size=1, max_size=8), "cuts")
    later = data.draw(st.lists(st.tuples(st.integers(0, 800), st.integers(0, 800)), max_size=4), "later cuts")
    piece = data.draw(st.integers(1, 400), "piece")
    sizes = data.draw(st.lists(st.integers(1, 900), min_size=1, max_size=5), "sizes")

    async def run() -> None:
        async with background() as tasks:
            guest = Guest(
                tasks, stdout=stdout, stderr=stderr, wants=len(given_input), cuts=[*cuts, *later], piece=piece
            )
            async with follow(guest.dial, to_exec(["x"], {"stdin": "stream"}), backoff=STEADY) as job:
                tasks.start_soon(_feed, job, given_input, sizes)
                got, gaps = await _all(job)
                assert (await job.result()).status == 0
            assert got == {"stdout": stdout, "stderr": stderr}
            assert gaps == []
            assert guest.input == given_input
            assert guest.eof == len(given_input)
            # Asked for again only while nothing had been accepted, and always under the one id.
            assert len({opened.fields["id"] for opened in guest.opened}) == 1

    trio.run(run, clock=MockClock(autojump_threshold=0))


async def test_once_accepted_a_job_is_attached_to_and_never_started_again(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, cuts=[(1000, float("inf"))] * 3)
        async with follow(guest.dial, to_exec(["x"], {"hold": False}), backoff=STEADY) as job:
            assert (await _all(job))[0]["stdout"] == TEXT
        assert [opened.fields["op"] for opened in guest.opened] == ["exec", "attach", "attach", "attach"]
        again = guest.opened[1].fields
        assert again["hold"] is False
        assert again["from"]["stderr"] == 0
        assert 0 < again["from"]["stdout"] < len(TEXT)


@pytest.mark.parametrize("size", range(150, 260, 3))
@pytest.mark.parametrize("receiving", [True, False])
async def test_an_exec_that_was_not_accepted_is_asked_again_under_its_id(
    autojump_clock: MockClock, size: int, receiving: bool
) -> None:
    """Breaks within the OPEN, which the guest therefore never sees whole, or within the ACCEPT."""
    async with background() as tasks:
        cut = (float("inf"), size) if receiving else (size, float("inf"))
        guest = Guest(tasks, stdout=b"once", cuts=[cut])
        notices: list[str] = []
        request = to_exec(["x"], {"id": "mine"})
        async with follow(
            guest.dial, request, backoff=STEADY, notice=lambda each: notices.append(each.what)
        ) as job:
            assert (await _all(job))[0]["stdout"] == b"once"
        # Whatever came through, the id is the same, and only what was not accepted is an exec again.
        asked = [opened.fields["op"] for opened in guest.opened]
        assert asked in (["exec"], ["exec", "exec"], ["exec", "attach"])
        assert {opened.fields["id"] for opened in guest.opened} == {"mine"}
        assert guest.connections == 1 + len([each for each in notices if each != "again"])


async def test_a_guest_started_anew_before_it_accepted_is_not_asked_again(autojump_clock: MockClock) -> None:
    """Asking the new one could run the command a second time, and saying it never ran could be wrong."""
    async with background() as tasks:
        guest = Guest(tasks, stdout=b"once", cuts=[(200, float("inf"))], boot=["first", "second"])
        with pytest.raises(ConnectionLost, match="nobody can say whether the command ran"):
            await _follow_to_the_end(guest, to_exec(["x"], {}))
        assert guest.started == 1


async def _follow_to_the_end(guest: Guest, request: Request, **options: Any) -> None:  # noqa: ANN401 - follow's own
    async with follow(guest.dial, request, backoff=STEADY, **options) as job:
        await _all(job)


async def test_a_job_the_guest_has_forgotten_is_an_error_and_not_a_second_run(
    autojump_clock: MockClock,
) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, cuts=[(1000, float("inf"))])

        def forget(notice: Notice) -> None:
            assert notice.what == "lost"
            guest.refuses = {"code": "not_found", "message": "there is no such job"}

        with pytest.raises(NotFound):
            await _follow_to_the_end(guest, to_exec(["x"], {}), notice=forget)
        assert guest.started == 1


async def test_what_the_ring_lost_meanwhile_is_one_gap_of_its_size(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, cuts=[(1000, float("inf"))])

        def lose(notice: Notice) -> None:
            if notice.what == "lost":
                guest.kept_from[1] = 2000

        async with follow(guest.dial, to_exec(["x"], {}), backoff=STEADY, notice=lose) as job:
            got, gaps = await _all(job)
        (gap,) = gaps
        assert gap.end == 2000
        assert got["stdout"] == TEXT[: gap.start] + TEXT[2000:]


async def test_attempts_come_after_1_2_4_8_15_and_then_each_30_seconds(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, cuts=[(1000, float("inf"))])
        times: list[float] = []

        def note(notice: Notice) -> None:
            guest.down = len(times) < 8
            if notice.what != "again":
                times.append(notice.delay)

        async with follow(guest.dial, to_exec(["x"], {}), backoff=STEADY, notice=note) as job:
            began = trio.current_time()
            assert (await _all(job))[0]["stdout"] == TEXT
        assert times == [1, 2, 4, 8, 15, 30, 30, 30, 30]
        assert trio.current_time() - began == sum(times)


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_a_delay_strays_by_a_quarter_at_most(attempt: int, chance: float) -> None:
    exact, strayed = STEADY.delay(attempt), Backoff(random=lambda: chance).delay(attempt)
    assert exact * 0.75 <= strayed <= exact * 1.25


async def test_giving_up_comes_when_it_was_said_and_names_the_last_reason(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, cuts=[(1000, float("inf"))])

        def note(_: Notice) -> None:
            guest.down = True

        began = trio.current_time()
        with pytest.raises(Unavailable, match="it is down"):
            await _follow_to_the_end(guest, to_exec(["x"], {}), give_up=20, notice=note)
        assert trio.current_time() - began == 20


async def test_giving_up_at_once_is_possible(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, cuts=[(1000, float("inf"))])
        with pytest.raises(ConnectionLost):
            await _follow_to_the_end(guest, to_exec(["x"], {}), give_up=0)
        assert guest.connections == 1


async def test_the_first_connection_is_tried_once(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks)
        guest.down = True
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await _follow_to_the_end(guest, to_exec(["x"], {}))
        assert trio.current_time() == began


async def test_a_refusal_is_not_tried_again(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks)
        guest.refuses = {"code": "bad_request", "message": "no", "field": "argv"}
        with pytest.raises(BadRequest):
            await _follow_to_the_end(guest, to_exec(["x"], {}))
        assert guest.connections == 1


async def test_a_signal_without_a_connection_waits_for_the_next(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, wants=0, cuts=[(1000, float("inf"))])
        lost = trio.Event()

        def note(notice: Notice) -> None:
            if notice.what == "lost":
                lost.set()

        async with follow(guest.dial, to_exec(["x"], {}), backoff=STEADY, notice=note) as job:

            async def interrupt() -> None:
                await lost.wait()
                await job.signal("SIGINT")
                assert not job.connected

            tasks.start_soon(interrupt)
            assert (await _all(job))[0]["stdout"] == TEXT
        assert guest.signals == ["INT"]


async def test_signals_do_not_wait_behind_input_that_nobody_reads() -> None:
    async with background() as tasks:
        guest = Guest(tasks, wants=0, window=1000)
        stuck = trio.Event()
        take = guest._take

        async def deaf(peer: Peer, seen: Seen) -> int:
            if seen.kind is Kind.DATA:
                stuck.set()
                return 0  # passed on to nobody, so no credit comes back
            return await take(peer, seen)

        guest._take = deaf
        async with follow(guest.dial, to_exec(["x"], {"stdin": "stream"}), backoff=STEADY) as job:
            tasks.start_soon(_feed_until_it_ends, job)
            await stuck.wait()
            await wait_all_tasks_blocked()
            await job.signal("TERM")
            await _all(job)
        assert guest.signals == ["TERM"]


async def _feed_until_it_ends(job: Followed) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while True:
            await job.send(TEXT)


async def test_input_waits_for_the_guest_and_not_in_memory(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, wants=0, window=1000)

        async def deaf(peer: Peer, seen: Seen) -> int:
            return 0

        guest._take = deaf
        async with follow(guest.dial, to_exec(["x"], {"stdin": "stream"}), backoff=STEADY) as job:
            with trio.move_on_after(0.1):
                while True:
                    await job.send(bytes(100_000))
            assert len(job._input.kept) == 256 * 1024


async def test_input_of_any_length_comes_through_what_is_kept_of_it(autojump_clock: MockClock) -> None:
    text = TEXT * 300
    async with background() as tasks:
        guest = Guest(tasks, wants=len(text), window=100_000, cuts=[(float("inf"), 400_000)])
        async with follow(guest.dial, to_exec(["x"], {"stdin": "stream"}), backoff=STEADY) as job:
            tasks.start_soon(_feed, job, text, [10_000])
            await _all(job)
        assert guest.input == text
        assert guest.connections == 2


async def test_a_reader_that_stands_still_while_lines_drop_holds_two_windows_at_most(
    autojump_clock: MockClock,
) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT * 4, cuts=[(1300, float("inf"))] * 30)
        async with follow(guest.dial, to_exec(["x"], {}), backoff=STEADY) as job:
            await trio.sleep_until(trio.current_time() + 3600)
            assert len(job._jobs) <= 2
            assert guest.connections <= 3
            assert (await _all(job))[0]["stdout"] == TEXT * 4


async def test_a_result_alone_comes_across_connections_too(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, cuts=[(1000, float("inf"))] * 2)
        async with follow(guest.dial, to_exec(["x"], {}), backoff=STEADY) as job:
            assert (await job.result()).status == 0
        assert guest.connections == 3


async def test_following_a_job_that_exists_goes_on_where_it_is_asked_to(autojump_clock: MockClock) -> None:
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT, wants=3, cuts=[(1000, float("inf"))])
        guest.input = b"abc"
        request = Request("old", start={"stdout": 256, "stderr": 0}, input=True)
        got = b""
        async with follow(guest.dial, request, backoff=STEADY) as job:
            await job.send(b"def")
            await job.close_stdin()
            async for event in job:
                assert isinstance(event, Output)
                assert event.offset == 256 + len(got)
                got += event.data
        assert got == TEXT[256:]
        assert guest.input == b"abcdef"
        assert guest.started == 0


async def test_input_already_there_under_the_same_id_is_not_given_twice(autojump_clock: MockClock) -> None:
    """The same exec again, from the start: its input counts from its first byte, of which the guest has some."""
    async with background() as tasks:
        guest = Guest(tasks, wants=6)
        guest.input = b"abc"
        async with follow(guest.dial, to_exec(["x"], {"id": "a", "stdin": "stream"}), backoff=STEADY) as job:
            await _feed(job, b"abcdef", [2])
            await _all(job)
        assert guest.input == b"abcdef"


async def test_a_guest_that_breaks_the_protocol_is_not_asked_to_do_it_again(
    autojump_clock: MockClock,
) -> None:
    """The buggy version connected again each second for ever: attaching worked, and then the same frame came."""
    async with background() as tasks:
        guest = Guest(tasks, stdout=TEXT)

        async def nonsense(peer: Peer, seen: Seen) -> int:
            await peer.send(b"\xff\xff\xff\xff")
            return 0

        guest._take = nonsense
        with pytest.raises(ConnectionLost, match="over the limit"):
            await _follow_to_the_end(guest, to_exec(["x"], {}))
        assert guest.connections == 1


async def test_connections_that_bring_nothing_count_as_none(autojump_clock: MockClock) -> None:
    """The buggy version began to wait anew after each that could attach, and so never gave up."""
    async with background() as tasks:
        hello_and_accept = 400
        guest = Guest(tasks, stdout=TEXT, piece=1000, cuts=[(hello_and_accept, float("inf"))] * 100)
        began = trio.current_time()
        with pytest.raises(ConnectionLost):
            await _follow_to_the_end(guest, to_exec(["x"], {}), give_up=60)
        assert trio.current_time() - began == 60
        # At 0, 1, 3, 7, 15, 30 and 60 seconds.
        assert guest.connections == 7
        assert {opened.fields["op"] for opened in guest.opened[1:]} == {"attach"}
