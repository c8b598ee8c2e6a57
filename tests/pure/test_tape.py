"""A tape keeps the newest bytes under their own offsets, for whoever holds it now or takes it over."""

from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guestd.tape import HEADER_SIZE, LEAST_CAPACITY, Piece, Tape, memory_size

#: What is produced, by offset: random, so that no other part of it looks like the right one.
STREAM = random.Random(1).randbytes(1 << 20)
#: What a producer leaves in the room when it is killed there.
JUNK = b"\xee"


def tape_of(capacity: int = LEAST_CAPACITY) -> tuple[Tape, bytearray]:
    memory = bytearray(memory_size(capacity))
    return Tape(memoryview(memory), capacity), memory


def kept(tape: Tape) -> bytes:
    """All that is kept, read as a viewer does: piece by piece."""
    found = b""
    offset = tape.start
    while True:
        piece = tape.read(offset, tape.capacity * 2)
        assert piece.offset == offset
        if not piece.data:
            return found
        found += piece.data
        offset += len(piece.data)
        assert len(found) <= tape.capacity


class TapeMachine(RuleBasedStateMachine):
    """A tape against the stream itself: whatever the order, what is kept is what was produced, at its offset."""

    @initialize(capacity=st.sampled_from([LEAST_CAPACITY, LEAST_CAPACITY + 3, 8192]))
    def begin(self, capacity: int) -> None:
        self.tape, self.memory = tape_of(capacity)
        self.end = 0
        self.closed = False
        #: How far the holder has read; None while nobody holds.
        self.held_at: int | None = None

    def next_bytes(self, size: int) -> bytes:
        size = min(size, len(STREAM) - self.end)
        found = STREAM[self.end : self.end + size]
        self.end += size
        return found

    @rule(part=st.floats(0, 1))
    def produce(self, part: float) -> None:
        """A producer fills a part of the room and says so."""
        room = self.tape.room(self.held_at)
        data = self.next_bytes(round(len(room) * part))
        room[: len(data)] = data
        self.tape.advance(len(data))

    @precondition(lambda self: self.held_at is None)
    @rule(size=st.integers(0, 20_000))
    def append(self, size: int) -> None:
        self.tape.append(self.next_bytes(size))

    @rule(part=st.floats(0, 1))
    def be_killed_between_filling_and_advance(self, part: float) -> None:
        """Room was written to, and then there was no one to say so. The successor finds everything that was kept."""
        room = self.tape.room(self.held_at)
        room[: round(len(room) * part)] = JUNK * round(len(room) * part)
        self.adopt()

    @rule()
    def adopt(self) -> None:
        self.tape = Tape.adopt(memoryview(self.memory))

    @rule()
    def close(self) -> None:
        self.tape.close()
        self.closed = True

    @precondition(lambda self: self.held_at is None)
    @rule(back=st.integers(0, 8192))
    def hold(self, back: int) -> None:
        self.held_at = max(self.tape.start, self.end - back)

    @precondition(lambda self: self.held_at is not None)
    @rule(most=st.integers(1, 20_000))
    def holder_reads(self, most: int) -> None:
        assert self.held_at is not None
        piece = self.tape.read(self.held_at, most)
        assert piece.offset == self.held_at
        assert piece.data == STREAM[self.held_at : self.held_at + len(piece.data)]
        assert piece.data or self.held_at == self.end
        self.held_at += len(piece.data)

    @rule()
    def let_go(self) -> None:
        self.held_at = None

    @rule(offset=st.integers(0, 1 << 21), most=st.integers(0, 20_000))
    def a_viewer_reads(self, offset: int, most: int) -> None:
        offset = offset % (self.end + 100)
        piece = self.tape.read(offset, most)
        assert piece.offset == max(offset, self.tape.start)
        assert len(piece.data) <= most
        assert piece.data == STREAM[piece.offset : piece.offset + len(piece.data)]
        if most and offset < self.end:
            assert piece.data

    @invariant()
    def it_keeps_the_newest_exactly(self) -> None:
        assert self.tape.end == self.end
        assert self.tape.start == max(0, self.end - self.tape.capacity)
        assert self.tape.closed is self.closed
        assert kept(self.tape) == STREAM[self.tape.start : self.end]

    @invariant()
    def a_successor_would_find_the_same(self) -> None:
        other = Tape.adopt(memoryview(bytes(self.memory)))
        assert (other.start, other.end, other.closed) == (self.tape.start, self.tape.end, self.closed)
        assert kept(other) == STREAM[other.start : other.end]

    @invariant()
    def a_holder_loses_nothing_and_is_never_waited_for_in_vain(self) -> None:
        if self.held_at is None:
            return
        assert self.tape.start <= self.held_at
        if not self.tape.room(self.held_at):
            # No room only when the holder has a whole tape to read.
            assert self.end - self.held_at == self.tape.capacity


TestTape = TapeMachine.TestCase


class TestEdges:
    """Single steps that the machine above passes through rarely."""

    def test_a_new_tape_is_empty(self) -> None:
        tape, _ = tape_of()
        assert (tape.start, tape.end, tape.closed) == (0, 0, False)
        assert tape.read(0, 100) == Piece(0, memoryview(b""))
        assert 0 < len(tape.room()) <= tape.capacity

    @pytest.mark.parametrize(
        "size", [LEAST_CAPACITY - 1, LEAST_CAPACITY, LEAST_CAPACITY + 1, 5 * LEAST_CAPACITY]
    )
    def test_around_the_capacity(self, size: int) -> None:
        tape, _ = tape_of()
        tape.append(STREAM[:size])
        assert tape.start == max(0, size - LEAST_CAPACITY)
        assert kept(tape) == STREAM[tape.start : size]

    @pytest.mark.parametrize("chunk", [1, 2, 1023, 1024, 1025, 4095, 4096, 4097, 5119, 5120, 5121])
    def test_any_chunk_size_all_the_way_round(self, chunk: int) -> None:
        tape, memory = tape_of()
        for at in range(0, 12_000, chunk):
            tape.append(STREAM[at : at + chunk])
        assert kept(Tape.adopt(memoryview(memory))) == STREAM[tape.start : tape.end]

    def test_a_viewer_that_fell_behind_learns_where_the_kept_bytes_begin(self) -> None:
        tape, _ = tape_of()
        tape.append(STREAM[:10_000])
        piece = tape.read(17, 10)
        assert piece.offset == 10_000 - LEAST_CAPACITY
        assert piece.data == STREAM[piece.offset : piece.offset + 10]

    def test_a_viewer_ahead_of_the_end_waits_where_it_is(self) -> None:
        tape, _ = tape_of()
        tape.append(b"abc")
        assert tape.read(5, 10) == Piece(5, memoryview(b""))

    @pytest.mark.parametrize("end", range(5000, 16_000, 501))
    def test_a_holder_who_was_already_too_late_holds_from_what_is_kept(self, end: int) -> None:
        tape, _ = tape_of()
        tape.append(STREAM[:end])
        assert len(tape.room(held_at=0)) == len(tape.room(held_at=tape.start)) == 0
        assert 0 < len(tape.room(held_at=tape.start + 10)) <= 10

    def test_a_slow_holder_gets_every_byte(self) -> None:
        """The producer waits with an empty room; a watcher beside the holder changes nothing."""
        tape, _ = tape_of()
        at = produced = waited = 0
        received = b""
        while produced < 50_000:
            room = tape.room(at)
            if room:
                size = min(len(room), 50_000 - produced)
                room[:size] = STREAM[produced : produced + size]
                tape.advance(size)
                produced += size
            else:
                waited += 1
                piece = tape.read(at, 100)
                received += piece.data
                at += len(piece.data)
            tape.read(0, 100)
        while at < tape.end:
            piece = tape.read(at, 1000)
            received += piece.data
            at += len(piece.data)
        assert received == STREAM[:50_000]
        assert waited > 0

    def test_offsets_beyond_four_gigabytes(self) -> None:
        tape, memory = tape_of()
        tape.advance(2**33 + 11)
        tape.append(STREAM[:100])
        tape = Tape.adopt(memoryview(memory))
        assert tape.end == 2**33 + 111
        assert tape.read(2**33 + 11, 200).data == STREAM[:100]

    def test_nothing_is_copied(self) -> None:
        tape, memory = tape_of()
        tape.append(b"here")
        assert tape.read(0, 4).data.obj is memory
        assert tape.room().obj is memory


class TestRefused:
    @pytest.mark.parametrize("capacity", [-1, 0, LEAST_CAPACITY - 1])
    def test_a_tape_that_would_be_too_small(self, capacity: int) -> None:
        with pytest.raises(ValueError, match=f"a tape of {capacity} bytes"):
            Tape(memoryview(bytearray(max(0, memory_size(capacity)))), capacity)

    @pytest.mark.parametrize("more", [-1, 1])
    def test_memory_that_does_not_fit(self, more: int) -> None:
        with pytest.raises(ValueError, match=f"needs {memory_size(LEAST_CAPACITY)} bytes"):
            Tape(memoryview(bytearray(memory_size(LEAST_CAPACITY) + more)), LEAST_CAPACITY)

    def test_memory_that_holds_something_else(self) -> None:
        _, memory = tape_of()
        for wrong in [
            b"",
            memory[:3],
            memory[:HEADER_SIZE],
            memory[:-1],
            memory + b"\0",
            b"another" + memory[7:],
            bytes(len(memory)),
            memory[:16] + b"\xff" * 8 + memory[24:],
        ]:
            with pytest.raises(ValueError, match="does not hold a tape"):
                Tape.adopt(memoryview(bytearray(wrong)))
