"""Frames survive any way the bytes may arrive; a bad one costs its sender the connection and nothing else."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.errors import ProtocolViolation
from guestd.wire import frames
from guestd.wire.frames import Decoder, Kind, encode, parse_message, read_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CONNECTION_KINDS = [Kind.HELLO, Kind.GOAWAY, Kind.PING, Kind.PONG]
CHANNEL_KINDS = [kind for kind in Kind if kind not in CONNECTION_KINDS]


class Seen(NamedTuple):
    """A frame whose payload is a copy, so that it can be compared later."""

    kind: Kind
    channel: int
    payload: bytes


SAMPLES = [
    Seen(Kind.HELLO, 0, b"\x81\xa7version\x01"),
    Seen(Kind.PING, 0, b""),
    Seen(Kind.PONG, 0, bytes(range(64))),
    Seen(Kind.GOAWAY, 0, b"\x80"),
    *(Seen(kind, 1, b"\x80") for kind in CHANNEL_KINDS),
    Seen(Kind.DATA, 0xFFFFFFFF, struct.pack("<BQ", 1, 2**64 - 1) + b"\x00guestd\x01"),
    Seen(Kind.EVENT, 0x01020304, bytes(range(256))),
]


def wire(samples: Iterable[Seen]) -> bytes:
    return b"".join(encode(*each) for each in samples)


def by_feed(decoder: Decoder, chunk: bytes) -> None:
    decoder.feed(chunk)


def by_room(decoder: Decoder, chunk: bytes) -> None:
    """As a reader that receives into the decoder's own memory, one chunk never larger than the room."""
    room = decoder.writable()
    assert len(room) >= 1
    assert len(chunk) <= len(room)
    room[: len(chunk)] = chunk
    decoder.wrote(len(chunk))


INLETS = [pytest.param(by_feed, id="feed"), pytest.param(by_room, id="writable+wrote")]


def decode(decoder: Decoder, chunks: Iterable[bytes], put: Callable[[Decoder, bytes], None]) -> list[Seen]:
    """What a connection does: take every whole frame out after each arrival."""
    seen: list[Seen] = []
    for chunk in chunks:
        put(decoder, chunk)
        while (frame := decoder.next()) is not None:
            seen.append(Seen(frame.kind, frame.channel, bytes(frame.payload)))
    return seen


def halves(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    return ((data[:at], data[at:]) for at in range(len(data) + 1))


@pytest.mark.parametrize("put", INLETS)
@pytest.mark.parametrize("preface", [frames.PREFACE, b""])
class TestEveryArrival:
    """One list of samples, however it is cut."""

    def decoder(self, preface: bytes) -> Decoder:
        return Decoder(preface=bool(preface))

    def test_whole(self, put: Callable[[Decoder, bytes], None], preface: bytes) -> None:
        decoder = self.decoder(preface)
        assert decode(decoder, [preface + wire(SAMPLES)], put) == SAMPLES
        assert decoder.pending == 0

    def test_byte_by_byte(self, put: Callable[[Decoder, bytes], None], preface: bytes) -> None:
        data = preface + wire(SAMPLES)
        assert decode(self.decoder(preface), (data[at : at + 1] for at in range(len(data))), put) == SAMPLES

    def test_at_every_split(self, put: Callable[[Decoder, bytes], None], preface: bytes) -> None:
        for left, right in halves(preface + wire(SAMPLES)):
            assert decode(self.decoder(preface), [left, right], put) == SAMPLES

    @pytest.mark.parametrize("sample", SAMPLES, ids=str)
    def test_with_trailing_data(
        self, put: Callable[[Decoder, bytes], None], preface: bytes, sample: Seen
    ) -> None:
        """The start of a next frame, cut anywhere, is kept and is not mistaken for a frame."""
        following = encode(Kind.EVENT, 9, b"the next one")
        for trailing, rest in halves(following):
            decoder = self.decoder(preface)
            assert decode(decoder, [preface + wire([sample]) + trailing], put) == (
                [sample] if rest else [sample, Seen(Kind.EVENT, 9, b"the next one")]
            )
            assert decoder.pending == (len(trailing) if rest else 0)


def repeated(size: int, byte: int) -> bytes:
    return bytes([byte]) * size


payloads = st.binary(max_size=300) | st.builds(repeated, st.integers(0, 200_000), st.integers(0, 255))
sent_frames = st.lists(
    st.builds(Seen, st.sampled_from(CHANNEL_KINDS), st.integers(1, 2**32 - 1), payloads)
    | st.builds(Seen, st.sampled_from([Kind.HELLO, Kind.GOAWAY]), st.just(0), st.binary(max_size=300))
    | st.builds(Seen, st.sampled_from([Kind.PING, Kind.PONG]), st.just(0), st.binary(max_size=64)),
    max_size=12,
)


@given(sent=sent_frames, cuts=st.lists(st.integers(0, 10**7), max_size=12), preface=st.booleans())
@example(sent=[Seen(Kind.DATA, 1, bytes(200_000))] * 4, cuts=[65536, 65540, 400_000], preface=True)
def test_decode_undoes_encode_under_any_chunking(sent: list[Seen], cuts: list[int], preface: bool) -> None:
    data = (frames.PREFACE if preface else b"") + wire(sent)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    decoder = Decoder(limit=frames.FRAME_LIMIT, preface=preface)
    assert decode(decoder, chunks, by_feed) == sent
    assert decoder.pending == 0

    # The same through the decoder's own room, as large as each arrival may be.
    decoder = Decoder(limit=frames.FRAME_LIMIT, preface=preface)
    seen: list[Seen] = []
    for chunk in chunks:
        rest = chunk
        while rest:
            size = min(len(rest), len(decoder.writable()))
            seen += decode(decoder, [rest[:size]], by_room)
            rest = rest[size:]
    assert seen == sent


def test_frames_of_one_arrival_are_all_good_until_the_next() -> None:
    """Payloads are views of one buffer; taking a second frame out must not spoil the first."""
    decoder = Decoder(preface=False)
    sent = [Seen(Kind.DATA, 1, bytes([number]) * 1000) for number in range(30)]
    decoder.feed(wire(sent))
    taken = [decoder.next() for _ in sent]
    assert [Seen(f.kind, f.channel, bytes(f.payload)) for f in taken if f] == sent


def test_payloads_are_not_copied() -> None:
    decoder = Decoder(preface=False)
    decoder.feed(encode(Kind.DATA, 1, b"123456789bulk"))
    frame = decoder.next()
    assert frame is not None
    assert frame.payload.obj is decoder._buffer


class TestBounds:
    """What a peer may make the decoder hold."""

    @pytest.mark.parametrize("limit", [64, frames.HANDSHAKE_FRAME_LIMIT, frames.FRAME_LIMIT])
    def test_a_frame_of_exactly_the_limit_is_taken(self, limit: int) -> None:
        decoder = Decoder(limit=limit, preface=False)
        decoder.feed(encode(Kind.EVENT, 1, bytes(limit - frames.HEAD)))
        frame = decoder.next()
        assert frame is not None
        assert len(frame.payload) == limit - frames.HEAD

    @pytest.mark.parametrize("limit", [64, frames.HANDSHAKE_FRAME_LIMIT, frames.FRAME_LIMIT])
    def test_one_byte_more_is_refused_by_its_length_alone(self, limit: int) -> None:
        decoder = Decoder(limit=limit, preface=False)
        decoder.feed(struct.pack("<I", limit + 1))
        with pytest.raises(
            ProtocolViolation, match=rf"a frame of {limit + 1} bytes is over the limit of {limit}"
        ):
            decoder.next()

    @pytest.mark.parametrize("put", INLETS)
    @pytest.mark.parametrize("length", [frames.FRAME_LIMIT + 1, 2**31, 2**32 - 1])
    def test_a_giant_length_costs_nothing(self, put: Callable[[Decoder, bytes], None], length: int) -> None:
        decoder = Decoder(limit=frames.FRAME_LIMIT)
        tracemalloc.start()
        try:
            put(decoder, frames.PREFACE + struct.pack("<I", length) + bytes(1000))
            with pytest.raises(ProtocolViolation):
                decoder.next()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 * 1024

    def test_the_limit_holds_while_more_is_fed_than_was_asked_for(self) -> None:
        """A caller that feeds a megabyte at once does not get it buffered behind a length that is refused."""
        decoder = Decoder(preface=False)
        with pytest.raises(ProtocolViolation):
            decoder.feed(struct.pack("<I", 2**32 - 1) + bytes(1_000_000))
        assert len(decoder._buffer) == frames.READ_SIZE

    def test_a_raised_limit_holds_for_what_came_behind_the_hello(self) -> None:
        """A client pipelines: its OPEN may be longer than a hello may be, and arrive in the same read."""
        decoder = Decoder()
        large = Seen(Kind.OPEN, 1, bytes(100_000))
        data = frames.PREFACE + encode(Kind.HELLO, 0, b"\x80") + wire([large])
        by_room(decoder, data[:60_000])
        hello = decoder.next()
        assert hello is not None
        assert hello.kind is Kind.HELLO
        decoder.limit = frames.FRAME_LIMIT
        rest = data[60_000:]
        assert decoder.next() is None
        assert decode(decoder, [rest], by_room) == [large]

    def test_the_buffer_grows_to_the_frame_and_shrinks_behind_it(self) -> None:
        decoder = Decoder(limit=frames.FRAME_LIMIT, preface=False)
        data = encode(Kind.OPEN, 1, bytes(frames.FRAME_LIMIT - frames.HEAD))
        largest = count = 0
        while data:
            size = min(len(data), len(decoder.writable()))
            count += len(decode(decoder, [data[:size]], by_room))
            data = data[size:]
            largest = max(largest, len(decoder._buffer))
        assert count == 1
        assert largest <= frames.FRAME_LIMIT + 4
        decoder.writable()
        assert len(decoder._buffer) <= frames.BULK_READ_SIZE

    def test_an_endless_stream_of_frames_needs_no_more_than_one(self) -> None:
        decoder = Decoder(limit=frames.FRAME_LIMIT, preface=False)
        one = encode(Kind.DATA, 1, bytes(frames.DATA_HEAD + frames.DATA_LIMIT))
        stream = one * 20
        count = 0
        while stream:
            size = min(len(stream), len(decoder.writable()), 200_000)
            count += len(decode(decoder, [stream[:size]], by_room))
            stream = stream[size:]
            assert len(decoder._buffer) <= frames.BULK_READ_SIZE
        assert count == 20


class TestRefused:
    """Each malformed frame is a ProtocolViolation that says what is wrong."""

    @pytest.mark.parametrize("length", range(frames.HEAD))
    def test_a_length_that_does_not_hold_kind_and_channel(self, length: int) -> None:
        decoder = Decoder(preface=False)
        decoder.feed(struct.pack("<I", length))
        with pytest.raises(ProtocolViolation, match=f"a frame length of {length} is too short"):
            decoder.next()

    @pytest.mark.parametrize("kind", sorted(set(range(256)) - set(Kind)))
    def test_a_kind_that_is_none(self, kind: int) -> None:
        decoder = Decoder(preface=False)
        decoder.feed(struct.pack("<IBI", 5, kind, 1))
        with pytest.raises(ProtocolViolation, match=f"frame kind 0x{kind:02x}"):
            decoder.next()

    @pytest.mark.parametrize("kind", CHANNEL_KINDS)
    def test_channel_kinds_on_channel_0(self, kind: Kind) -> None:
        decoder = Decoder(preface=False)
        decoder.feed(encode(kind, 0))
        with pytest.raises(ProtocolViolation, match=f"{kind.name} does not belong on channel 0"):
            decoder.next()

    @pytest.mark.parametrize("kind", CONNECTION_KINDS)
    @pytest.mark.parametrize("channel", [1, 2, 2**32 - 1])
    def test_connection_kinds_on_a_channel(self, kind: Kind, channel: int) -> None:
        decoder = Decoder(preface=False)
        decoder.feed(encode(kind, channel))
        with pytest.raises(ProtocolViolation, match=f"{kind.name} does not belong on channel {channel}"):
            decoder.next()

    @pytest.mark.parametrize("kind", [Kind.PING, Kind.PONG])
    def test_an_echo_of_more_than_64_bytes(self, kind: Kind) -> None:
        """What is echoed has to be buffered: a large ping would be a way to make the other side hold it."""
        decoder = Decoder(preface=False)
        decoder.feed(encode(kind, 0, bytes(65)))
        with pytest.raises(ProtocolViolation, match="carries 65 bytes; at most 64"):
            decoder.next()

    @pytest.mark.parametrize("at", range(len(frames.PREFACE)))
    def test_a_wrong_preface_as_soon_as_it_is_wrong(self, at: int) -> None:
        wrong = bytearray(frames.PREFACE)
        wrong[at] ^= 0x20
        decoder = Decoder()
        for byte in wrong[:at]:
            decoder.feed(bytes([byte]))
            assert decoder.next() is None
        decoder.feed(bytes([wrong[at]]))
        with pytest.raises(ProtocolViolation, match="not with the preface"):
            decoder.next()

    @pytest.mark.parametrize("size", range(frames.DATA_HEAD))
    def test_data_without_stream_and_offset(self, size: int) -> None:
        with pytest.raises(ProtocolViolation, match=f"a DATA frame of {size} bytes is too short"):
            read_data(memoryview(bytes(size)))


@given(stream=st.integers(0, 255), offset=st.integers(0, 2**64 - 1), data=st.binary(max_size=200))
def test_data_head_and_read_data_agree(stream: int, offset: int, data: bytes) -> None:
    decoder = Decoder(preface=False)
    decoder.feed(frames.data_head(7, stream, offset, len(data)) + data)
    frame = decoder.next()
    assert frame is not None
    assert (frame.kind, frame.channel) == (Kind.DATA, 7)
    found = read_data(frame.payload)
    assert (found.stream, found.offset, bytes(found.data)) == (stream, offset, data)


@given(
    start=st.sampled_from([b"", frames.PREFACE, frames.PREFACE + encode(Kind.PING, 0)]),
    garbage=st.binary(max_size=400),
    cut=st.integers(0, 400),
)
def test_garbage_raises_only_protocol_violation(start: bytes, garbage: bytes, cut: int) -> None:
    decoder = Decoder()
    try:
        decode(decoder, [start + garbage[:cut], garbage[cut:]], by_feed)
    except ProtocolViolation as error:
        # Said to the peer in GOAWAY: it may not repeat more than a little of the garbage.
        assert len(error.message) < 200  # noqa: PT017 - most garbage is the beginning of a frame, and no error


@given(message=st.binary(max_size=200))
@example(message=bytes(encode(Kind.EVENT, 1, bytes(95))[4:]))
@example(message=bytes(encode(Kind.EVENT, 1, bytes(96))[4:]))
def test_a_message_is_a_frame_without_its_length(message: bytes) -> None:
    """The WebSocket dialect and the native one judge the same bytes the same way."""
    decoder = Decoder(limit=100, preface=False)
    results: list[Seen | str] = []
    try:
        results += decode(decoder, [struct.pack("<I", len(message)) + message], by_feed)
    except ProtocolViolation as error:
        results.append(error.code)
    try:
        frame = parse_message(memoryview(message), 100)
    except ProtocolViolation as error:
        assert results == [error.code]  # noqa: PT017 - either both refuse it or both take it
    else:
        assert results == [Seen(frame.kind, frame.channel, bytes(frame.payload))]
