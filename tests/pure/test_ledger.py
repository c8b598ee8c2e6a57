"""A ledger is whole at whatever instant its writer is killed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.ledger import HEADER_SIZE, NUMBERS, Ledger, is_ledger, memory_size

MOST = 64


def _new() -> tuple[bytearray, Ledger]:
    memory = bytearray(memory_size(MOST))
    return memory, Ledger(memoryview(memory), MOST)


@given(st.lists(st.binary(max_size=MOST), max_size=12))
def test_the_last_entry_is_in_force_for_whoever_adopts_it(entries: list[bytes]) -> None:
    memory, ledger = _new()
    assert ledger.read() == b""
    for entry in entries:
        ledger.write(entry)
        assert ledger.read() == Ledger.adopt(memoryview(memory)).read() == entry


@given(
    st.lists(st.binary(min_size=2, max_size=MOST), min_size=1, max_size=6),
    st.binary(min_size=2, max_size=MOST),
)
def test_an_entry_that_was_not_written_to_its_end_leaves_the_one_before(
    entries: list[bytes], last: bytes
) -> None:
    memory, ledger = _new()
    for entry in entries:
        ledger.write(entry)
    # The bytes of an entry go to the half that is not in force.
    dying = Ledger.adopt(memoryview(memory))
    before = bytes(memory)
    dying.write(last)
    after = bytes(memory)
    word = slice(24, 32)
    torn = bytearray(after)
    torn[word] = before[word]
    assert Ledger.adopt(memoryview(torn)).read() == entries[-1]
    assert Ledger.adopt(memoryview(bytearray(after))).read() == last


def test_what_is_too_long_is_refused_and_changes_nothing() -> None:
    _, ledger = _new()
    ledger.write(b"kept")
    with pytest.raises(ValueError, match="65 bytes; the ledger takes 64"):
        ledger.write(b"x" * (MOST + 1))
    assert ledger.read() == b"kept"


def test_numbers_stand_apart_from_entries_and_from_each_other() -> None:
    memory, ledger = _new()
    for which in (0, 1, NUMBERS - 1):
        assert ledger.number(which) == 0
        ledger.set_number(which, 2**64 - 1 - which)
    ledger.write(b"x" * MOST)
    ledger.write(b"y" * MOST)
    adopted = Ledger.adopt(memoryview(memory))
    assert [adopted.number(which) for which in (0, 1, 2, NUMBERS - 1)] == [
        2**64 - 1, 2**64 - 2, 0, 2**64 - NUMBERS,
    ]  # fmt: skip
    # Others write a number with only the file at hand.
    memory[Ledger.place(2) : Ledger.place(2) + 8] = (77).to_bytes(8, "little")
    assert adopted.number(2) == 77


@pytest.mark.parametrize(
    "size", [0, 10, HEADER_SIZE - 1, HEADER_SIZE, memory_size(MOST) - 1, memory_size(MOST) + 1]
)
def test_what_is_not_whole_is_none(size: int) -> None:
    memory, _ = _new()
    part = memoryview(bytes(memory) + b"\0")[:size]
    assert not is_ledger(part, len(part))
    with pytest.raises(ValueError, match="does not hold a ledger"):
        Ledger.adopt(part)


def test_a_tape_is_no_ledger() -> None:
    memory = memoryview(b"guestd tape 1\n\0\0".ljust(memory_size(MOST), b"\0"))
    assert not is_ledger(memory, len(memory))
