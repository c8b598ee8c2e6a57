"""One connection: frames at any split, one way out, credit kept on both sides, and one slow channel stalling nobody."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from guestd.client import Gap, Output, over
from guestd.client.connection import Connection
from guestd.client.link import StreamLink
from guestd.client.tasks import background
from guestd.errors import (
    ConnectionLost,
    FlowControl,
    LimitReached,
    NotFound,
    ProtocolViolation,
    Unauthorized,
    Unavailable,
)
from guestd.wire.frames import PREFACE, Decoder, Kind, encode
from guestd.wire.messages import pack
from guestd.wire.result import Outcome
from tests.aio.scripted import Peer, accept, client_and_peer, control, data_frame, end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guestd.client import Client, Job
    from tests.aio.scripted import Seen

EVERY_BYTE = bytes(range(256))


# ------------------------------------------------------------------------------------------------------ frames


async def test_every_answer_is_understood_at_every_split() -> None:
    async with client_and_peer() as (client, peer):
        answer = b"".join(
            (
                accept(1),
                data_frame(1, 1, 0, EVERY_BYTE),
                control(Kind.EVENT, 1, event="gap", stream=2, **{"from": 0, "to": 7}),
                data_frame(1, 2, 7, b"err"),
                end(1, code=3),
            )
        )
        for split in range(len(answer) + 1):
            async with trio.open_nursery() as nursery:

                async def reply(split: int = split) -> None:
                    opened = await peer.expect(Kind.OPEN)
                    # The same answer, for whatever channel it is this time.
                    whole = _renumber(answer, opened.channel)
                    await peer.send(whole[:split])
                    await wait_all_tasks_blocked()
                    await peer.send(whole[split:])

                nursery.start_soon(reply)
                job = await client.exec(["x"])
                events = [event async for event in job]
                result = await job.result()
            assert events == [
                Output("stdout", 0, EVERY_BYTE),
                Gap("stderr", 0, 7),
                Output("stderr", 7, b"err"),
            ]
            assert (result.outcome, result.code) == (Outcome.EXITED, 3)


def _renumber(frames: bytes, channel: int) -> bytes:
    decoder = Decoder(preface=False)
    decoder.feed(frames)
    whole = b""
    while (frame := decoder.next()) is not None:
        whole += encode(frame.kind, channel, bytes(frame.payload))
    return whole


async def test_channel_ids_are_odd_and_free_again_after_both_last_words() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        seen: list[int] = []

        async def answer() -> None:
            for _ in range(3):
                opened = await peer.expect(Kind.OPEN)
                seen.append(opened.channel)
                await peer.send(
                    control(Kind.ACCEPT, opened.channel) + control(Kind.END, opened.channel, jobs=[])
                )

        nursery.start_soon(answer)
        for _ in range(3):
            assert await client.ps() == []
        assert seen == [1, 3, 5]
        assert client._connection._channels == {}


async def test_frames_for_channels_nobody_has_are_late_and_ignored() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        await peer.send(data_frame(99, 1, 0, b"late") + end(99))

        async def answer() -> None:
            opened = await peer.expect(Kind.OPEN)
            await peer.send(
                control(Kind.ACCEPT, opened.channel) + control(Kind.END, opened.channel, here=True)
            )

        nursery.start_soon(answer)
        assert await client.status() == {"here": True}


async def test_a_ping_is_answered_with_its_own_bytes() -> None:
    async with client_and_peer() as (_, peer):
        await peer.send(encode(Kind.PING, 0, b"are you there"))
        assert (await peer.expect(Kind.PONG)).data == b"are you there"


# ------------------------------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("ticks", range(12))
async def test_cancelling_a_send_anywhere_leaves_whole_frames_and_an_exact_offset(ticks: int) -> None:
    """The buggy version wrote from the user's task: a cancel there left half a frame, and the next one behind it."""
    text = EVERY_BYTE * 1024  # the whole window, and not a byte more
    async with client_and_peer(input_window=len(text)) as (client, peer), trio.open_nursery() as nursery:
        job = await _started(client, peer, nursery)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_after, scope, ticks)
            await job.send(text * 2)
        assert scope.cancelled_caught
        # The connection is whole: another channel works, and what had gone is what `input_offset` says.
        got = b""
        async with trio.open_nursery() as inner:

            async def answer() -> None:
                nonlocal got
                while (seen := await peer.receive()) is not None:
                    if seen.kind is Kind.OPEN:
                        await peer.send(
                            control(Kind.ACCEPT, seen.channel) + control(Kind.END, seen.channel, jobs=[])
                        )
                        return
                    assert seen.kind is Kind.DATA
                    assert seen.offset == len(got)
                    got += seen.data

            inner.start_soon(answer)
            assert await client.ps() == []
        assert got == text[: job.input_offset]
        await peer.send(end(1))


async def _cancel_after(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


class HalfSender(trio.abc.Stream):
    """Sends half of what it is given at the chosen call, and then stands still."""

    def __init__(self, stream: trio.abc.Stream, stuck_at: float) -> None:
        self._stream = stream
        self._left = stuck_at
        self.sent = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._left == 0:
            half = bytes(data[: len(data) // 2])
            self.sent += half
            self._left = -1
            await self._stream.send_all(half)
            await trio.sleep_forever()
        assert self._left > 0, "something was sent behind half a frame"
        self._left -= 1
        self.sent += bytes(data)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_nothing_follows_half_a_frame(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_stream_pair()
    stream, peer = HalfSender(near, 1), Peer(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.greet)
        async with over(stream) as client:
            for _ in range(2):
                nursery.start_soon(_expect_loss, client.ps)
                await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    decoder = Decoder()
    decoder.feed(stream.sent)
    assert decoder.next() is not None
    assert decoder.next() is None
    assert decoder.pending > 0


async def test_a_writer_that_is_cancelled_in_the_middle_of_a_frame_takes_the_connection_with_it() -> None:
    """The buggy version let the next request follow the half frame: the guest took it for the rest of the first."""
    near, _far = memory_stream_pair()
    stream = HalfSender(near, 0)
    connection = Connection(StreamLink(stream), "the guest")
    # The writer alone: in use the reader goes with it.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection._write)
        connection.post_data(1, 0, 0, memoryview(b"the first"))
        await wait_all_tasks_blocked()
        connection._sending.cancel()
    with pytest.raises(ConnectionLost, match="in the middle of a frame"):
        connection.open({"op": "ps"})
    connection.post_data(1, 0, 9, memoryview(b"the second"))
    await wait_all_tasks_blocked()
    assert 0 < len(stream.sent) < 9 + 18
    await connection.aclose()


async def _expect_loss(ask: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(ConnectionLost):
        await ask()


async def test_a_cancelled_request_is_reset_so_that_the_guest_does_not_answer_for_nobody() -> None:
    async with client_and_peer() as (client, peer):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.wait, "job")
                await peer.expect(Kind.OPEN)
                scope.cancel()
        assert (await peer.expect(Kind.RESET)).channel == 1


async def test_a_request_is_reset_also_where_its_whole_client_is_cancelled() -> None:
    """The reader was cancelled too, and took it for a lost connection: where it was first, nobody said anything."""
    for _ in range(20):  # which of the tasks is first is chance
        near, far = memory_stream_pair()
        peer = Peer(far)
        scope = trio.CancelScope()

        async def ask(near: trio.abc.Stream = near, scope: trio.CancelScope = scope) -> None:
            with scope:
                async with over(near) as client:
                    await client.wait("job")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await peer.greet()
            await peer.expect(Kind.OPEN)
            scope.cancel()
            assert (await peer.expect(Kind.RESET)).channel == 1
            assert await peer.receive() is None


# ------------------------------------------------------------------------------------------------------- credit


async def test_a_channel_nobody_reads_stalls_itself_alone() -> None:
    window = 64 * 1024
    async with client_and_peer(window=window) as (client, peer), trio.open_nursery() as nursery:
        stalled = await _started(client, peer, nursery)
        await peer.send(data_frame(1, 1, 0, bytes(window)))  # all that it may have
        nursery.start_soon(_expect_open_and_answer, peer, EVERY_BYTE * 4096, window)
        done = await client.run(["other"])
        assert done.stdout == EVERY_BYTE * 4096
        assert stalled._channel.inbox.held == window
        # It is still whole: what was held comes, and then its end.
        nursery.start_soon(peer.send, end(1))
        assert sum([len(event.data) async for event in stalled if isinstance(event, Output)]) == window


async def _expect_open_and_answer(peer: Peer, text: bytes, window: int) -> None:
    opened = await peer.expect(Kind.OPEN)
    await peer.send(accept(opened.channel))
    at, credit = 0, window
    while at < len(text):
        size = min(credit, len(text) - at, 10_000)
        if size == 0:
            credit += (await peer.expect(Kind.CREDIT)).fields["bytes"]
            continue
        await peer.send(data_frame(opened.channel, 1, at, text[at : at + size]))
        at += size
        credit -= size
    await peer.send(end(opened.channel))


async def test_sending_more_than_was_allowed_resets_that_channel_only() -> None:
    async with client_and_peer(window=1000) as (client, peer), trio.open_nursery() as nursery:
        job = await _started(client, peer, nursery)
        await peer.send(data_frame(1, 1, 0, bytes(1000)) + data_frame(1, 1, 1000, b"x"))
        reset = await peer.expect(Kind.RESET)
        assert (reset.channel, reset.fields["code"]) == (1, "flow_control")
        with pytest.raises(FlowControl):
            await job.result()
        nursery.start_soon(_expect_open_and_answer, peer, b"fine", 1000)
        assert (await client.run(["x"])).stdout == b"fine"


@settings(max_examples=60)
@given(data=st.data())
def test_credit_is_never_overrun_and_never_lost(data: st.DataObject) -> None:
    window = data.draw(st.integers(1, 5000), "window")
    input_window = data.draw(st.integers(1, 5000), "input window")
    output = EVERY_BYTE * data.draw(st.integers(0, 60), "output")
    given_input = EVERY_BYTE * data.draw(st.integers(0, 60), "input")
    sizes = data.draw(st.lists(st.integers(1, 3000), min_size=1, max_size=20), "sizes")
    grants = data.draw(st.lists(st.integers(1, 3000), min_size=1, max_size=20), "grants")

    async def run() -> None:
        async with (
            client_and_peer(window=window, input_window=input_window) as (client, peer),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(
                _strict_guest, peer, output, len(given_input), window, input_window, sizes, grants
            )
            done = await client.run(["x"], input=given_input)
            assert done.stdout == output

    trio.run(run)


async def _strict_guest(
    peer: Peer,
    output: bytes,
    input_size: int,
    window: int,
    input_window: int,
    sizes: list[int],
    grants: list[int],
) -> None:
    """Sends what it may, insists that the client does so too, and grants in odd amounts."""
    opened = await peer.expect(Kind.OPEN)
    await peer.send(accept(opened.channel))
    sent = received = ungranted = 0
    credit, allowed = window, input_window
    ended = False
    turn = 0
    while sent < len(output) or not ended:
        size = min(credit, len(output) - sent, sizes[turn % len(sizes)])
        if size:
            await peer.send(data_frame(opened.channel, 1, sent, output[sent : sent + size]))
            sent += size
            credit -= size
        grant = min(ungranted, grants[turn % len(grants)])
        if grant:
            await peer.send(control(Kind.CREDIT, opened.channel, bytes=grant))
            ungranted -= grant
            allowed += grant
        turn += 1
        if size or grant:
            continue
        seen = await peer.receive()
        assert seen is not None
        if seen.kind is Kind.CREDIT:
            credit += seen.fields["bytes"]
            assert credit <= window, "more was granted than was sent"
        elif seen.kind is Kind.DATA:
            assert len(seen.data) <= allowed, "the client overran its credit"
            assert seen.offset == received
            allowed -= len(seen.data)
            ungranted += len(seen.data)
            received += len(seen.data)
        else:
            assert (seen.kind, seen.fields) == (Kind.EVENT, {"event": "eof", "offset": input_size})
            assert received == input_size
            ended = True
    await peer.send(end(opened.channel))


async def test_a_result_without_iterating_throws_output_away_and_grants_for_it() -> None:
    async with client_and_peer(window=1000) as (client, peer), trio.open_nursery() as nursery:
        nursery.start_soon(_expect_open_and_answer, peer, bytes(50_000), 1000)
        job = await client.exec(["x"])
        assert (await job.result()).status == 0


async def test_run_keeps_what_it_was_allowed_and_counts_the_rest() -> None:
    async with client_and_peer(window=1000) as (client, peer), trio.open_nursery() as nursery:
        nursery.start_soon(_expect_open_and_answer, peer, EVERY_BYTE * 10, 1000)
        done = await client.run(["x"], capture=300)
        assert done.stdout == (EVERY_BYTE * 2)[:300]
        assert done.truncated == {"stdout": 2260}


# ------------------------------------------------------------------------------------------- input and signals


async def test_input_ends_where_the_last_byte_was() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        job = await _started(client, peer, nursery)
        await job.send(b"hello ")
        await job.send(memoryview(b"you"))
        await job.close_stdin()
        await job.signal("sigusr1")
        got: list[Seen] = [await peer.expect(Kind.DATA), await peer.expect(Kind.DATA)]
        assert [(seen.offset, seen.data) for seen in got] == [(0, b"hello "), (6, b"you")]
        assert (await peer.expect(Kind.EVENT)).fields == {"event": "eof", "offset": 9}
        assert (await peer.expect(Kind.EVENT)).fields == {"event": "signal", "signal": "USR1"}
        with pytest.raises(trio.ClosedResourceError):
            await job.send(b"more")
        await peer.send(end(1))
        await job.result()
        with pytest.raises(trio.BrokenResourceError):
            await job.signal("INT")


async def test_two_tasks_cannot_mix_their_input() -> None:
    async with client_and_peer(input_window=4) as (client, peer), trio.open_nursery() as nursery:
        job = await _started(client, peer, nursery)
        nursery.start_soon(job.send, b"12345678")
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await job.send(b"x")
        await peer.send(control(Kind.CREDIT, 1, bytes=4))
        await wait_all_tasks_blocked()
        await peer.send(end(1))


async def test_a_buffer_that_is_used_again_after_send_does_not_change_what_was_sent() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        job = await _started(client, peer, nursery)
        buffer = bytearray(b"first")
        await job.send(buffer)
        buffer[:] = b"wrong"
        assert (await peer.expect(Kind.DATA)).data == b"first"
        await peer.send(end(1))


# ------------------------------------------------------------------------------------------------------ failures


async def test_what_the_guest_refuses_comes_out_as_it_is_and_not_in_a_group() -> None:
    """The buggy version let its nursery wrap it, so that `except NotFound` around the connection never matched."""
    near, far = memory_stream_pair()

    async def refuse() -> None:
        peer = Peer(far)
        await peer.greet()
        opened = await peer.expect(Kind.OPEN)
        await peer.send(control(Kind.REJECT, opened.channel, code="not_found", message="no job 'x'", id="x"))

    async def ask() -> None:
        async with over(near) as client:
            await client.attach("x")

    async with background() as tasks:
        tasks.start_soon(refuse)
        with pytest.raises(NotFound, match="no job 'x'") as caught:
            await ask()
    assert caught.value.details["id"] == "x"


async def test_a_request_longer_than_the_guest_takes_is_refused_here_by_name() -> None:
    async with client_and_peer(frame=16 * 1024) as (client, _):
        with pytest.raises(LimitReached) as caught:
            await client.exec(["x" * 20_000])
        assert caught.value.details == {"limit": 16384, "setting": "limits.frame"}


async def test_every_waiting_task_learns_why_the_connection_ended() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        messages: list[str] = []

        async def wait() -> None:
            with pytest.raises(ConnectionLost) as caught:
                await client.wait("job")
            messages.append(caught.value.message)

        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await peer.send(control(Kind.GOAWAY, 0, code="shutting_down", message="the guest is stopping"))
        await peer.close()
        await wait_all_tasks_blocked()
        assert messages == ["the connection to the other end of the stream ended: the guest is stopping"] * 3
        with pytest.raises(ConnectionLost):
            await client.ps()


async def test_what_had_arrived_before_the_end_can_still_be_taken() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        job = await _started(client, peer, nursery)
        await peer.send(data_frame(1, 1, 0, b"last words") + data_frame(1, 1, 10, b"...")[:-1])
        await peer.close()
        await wait_all_tasks_blocked()
        taking = aiter(job)
        assert await anext(taking) == Output("stdout", 0, b"last words")
        with pytest.raises(ConnectionLost, match="in the middle of a frame"):
            await anext(taking)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (PREFACE + control(Kind.GOAWAY, 0, code="unauthorized", message="a token is needed"), Unauthorized),
        (PREFACE + control(Kind.PING, 0), ProtocolViolation),
        (PREFACE + encode(Kind.HELLO, 0, pack({"version": 0})), ProtocolViolation),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolViolation),
        (PREFACE + b"\xff\xff\xff\x7f", ProtocolViolation),
        (b"", ConnectionLost),
    ],
)
async def test_a_peer_that_does_not_greet_is_named_for_what_it_did(
    answer: bytes, error: type[Exception]
) -> None:
    near, far = memory_stream_pair()
    await far.send_all(answer)
    await far.send_eof()
    with pytest.raises(error):
        async with over(near):
            raise AssertionError("there was no hello")


async def test_a_peer_that_never_greets_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    near, _far = memory_stream_pair()
    with pytest.raises(Unavailable, match="took the connection and said nothing within 5 s"):
        async with over(near, timeout=5):
            raise AssertionError("there was no hello")


async def test_nonsense_after_the_hello_ends_the_connection_with_a_reason() -> None:
    async with client_and_peer() as (client, peer):
        await peer.send(encode(Kind.DATA, 0, b"")[:4] + b"\x77\0\0\0\0")
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionLost, match="0x77"):
            await client.ps()


async def test_a_guest_that_went_silent_is_found_out(autojump_clock: trio.testing.MockClock) -> None:
    async with client_and_peer(heartbeat=10) as (client, _):
        began = trio.current_time()
        with pytest.raises(ConnectionLost, match="silent for 20 s"):
            await client.wait("job")
        assert trio.current_time() - began == pytest.approx(20)


async def test_a_guest_that_answers_pings_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with client_and_peer(heartbeat=10) as (client, peer), trio.open_nursery() as nursery:

        async def answer() -> None:
            opened = await peer.expect(Kind.OPEN)
            for _ in range(50):
                ping = await peer.expect(Kind.PING)
                await peer.send(encode(Kind.PONG, 0, ping.data))
            await peer.send(control(Kind.ACCEPT, opened.channel) + end(opened.channel))

        nursery.start_soon(answer)
        assert (await client.wait("job")).status == 0
        assert trio.current_time() >= 500


async def test_the_guests_last_words_are_heard_after_sending_has_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The buggy version reported the broken pipe, which says nothing, over the reason that was there to be read."""

    class DeafAfterHello(HalfSender):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            if self.sent:
                raise trio.BrokenResourceError
            await super().send_all(data)

    near, far = memory_stream_pair()
    peer = Peer(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.greet)
        async with over(DeafAfterHello(near, math.inf)) as client:
            nursery.start_soon(_expect_last_words, client.ps)
            await wait_all_tasks_blocked()
            await peer.send(control(Kind.GOAWAY, 0, code="protocol", message="you said nonsense"))
            await wait_all_tasks_blocked()


async def _expect_last_words(ask: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(ConnectionLost, match="you said nonsense"):
        await ask()


async def _started(client: Client, peer: Peer, nursery: trio.Nursery) -> Job:
    """A job on the first channel, accepted."""

    async def answer() -> None:
        opened = await peer.expect(Kind.OPEN)
        await peer.send(accept(opened.channel))

    nursery.start_soon(answer)
    return await client.exec(["x"], stdin="stream")
