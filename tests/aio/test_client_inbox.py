"""What arrived comes out exact: each byte once, in order, each hole by its size, memory bounded by what is held."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.client.inbox import Gap, Inbox, Item, Output, Start
from guestd.errors import ProtocolViolation

TEXT = bytes(range(256)) * 8


def drain(inbox: Inbox) -> list[Item]:
    items: list[Item] = []
    while (item := inbox.take()) is not None:
        items.append(item)
    return items


pieces = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.integers(0, len(TEXT) - 1), st.integers(0, 300), st.booleans()),
    max_size=60,
)


@given(pieces, st.integers(0, 100))
def test_whatever_is_repeated_or_left_out_every_byte_comes_once_or_is_a_gap(
    sent: list[tuple[int, int, int, bool]],
    start: int,
) -> None:
    inbox = Inbox({"stdout": start, "stderr": start})
    items: list[Item] = []
    freed = 0
    for stream, offset, size, taking in sent:
        data = TEXT[offset : offset + size]
        freed += inbox.put(stream, offset, memoryview(data))
        if taking:
            items += drain(inbox)
    items += drain(inbox)
    at = {"stdout": start, "stderr": start}
    for item in items:
        assert isinstance(item, Output | Gap)
        if isinstance(item, Output):
            assert item.offset == at[item.stream]
            assert item.data
            assert item.data == TEXT[item.offset : item.offset + len(item.data)]
            at[item.stream] += len(item.data)
        else:
            assert item.start == at[item.stream]
            assert item.size > 0
            at[item.stream] = item.end
    assert at == inbox.positions
    assert inbox.held == 0
    taken = sum(len(item.data) for item in items if isinstance(item, Output))
    # Every byte that came is either taken or was freed at once: nothing of the credit is lost.
    assert taken + freed == sum(len(TEXT[offset : offset + size]) for _, offset, size, _ in sent)


def test_single_bytes_are_joined_so_that_a_full_window_costs_its_size() -> None:
    inbox = Inbox()
    for offset in range(200_000):
        inbox.put(1, offset, memoryview(b"x"))
    items = drain(inbox)
    assert len(items) <= 4
    assert b"".join(item.data for item in items if isinstance(item, Output)) == b"x" * 200_000


def test_large_pieces_travel_as_they_came() -> None:
    inbox = Inbox()
    inbox.put(1, 0, memoryview(b"a" * 100_000))
    inbox.put(1, 100_000, memoryview(b"b" * 100_000))
    assert drain(inbox) == [Output("stdout", 0, b"a" * 100_000), Output("stdout", 100_000, b"b" * 100_000)]


def test_what_is_put_is_copied_because_the_receive_buffer_is_used_again() -> None:
    buffer = bytearray(b"abc" * 20_000)
    inbox = Inbox()
    inbox.put(1, 0, memoryview(buffer)[:50_000])
    inbox.put(2, 0, memoryview(buffer)[:3])
    buffer[:] = b"?" * len(buffer)
    assert drain(inbox) == [Output("stdout", 0, (b"abc" * 20_000)[:50_000]), Output("stderr", 0, b"abc")]


def test_neighbouring_gaps_are_one() -> None:
    inbox = Inbox()
    inbox.lost("stdout", 0, 10)
    inbox.lost("stdout", 10, 30)
    inbox.lost("stdout", 5, 20)
    assert drain(inbox) == [Gap("stdout", 0, 30)]


def test_a_gap_before_what_arrived_is_no_loss() -> None:
    inbox = Inbox()
    inbox.put(1, 0, memoryview(b"12345"))
    inbox.lost("stdout", 2, 8)
    inbox.put(1, 8, memoryview(b"9"))
    assert drain(inbox) == [Output("stdout", 0, b"12345"), Gap("stdout", 5, 8), Output("stdout", 8, b"9")]


@pytest.mark.parametrize(
    ("start", "positions"),
    [
        ("start", {"stdout": 100, "stderr": 0}),
        ("end", {"stdout": 900, "stderr": 7}),
        ({"stdout": 500}, {"stdout": 500, "stderr": 0}),
    ],
)
def test_where_output_begins_is_settled_when_the_guest_says_what_it_keeps(
    start: dict[str, int] | Start,
    positions: dict[str, int],
) -> None:
    inbox = Inbox(start)
    inbox.accepted({"stdout": {"start": 100, "end": 900}, "stderr": {"start": 0, "end": 7}})
    assert inbox.positions == positions


def test_discarding_frees_what_is_held_and_what_comes() -> None:
    inbox = Inbox()
    inbox.put(1, 0, memoryview(b"12345"))
    assert inbox.discard() == 5
    assert inbox.put(1, 5, memoryview(b"678")) == 3
    inbox.lost("stdout", 8, 20)
    assert drain(inbox) == []
    assert inbox.positions == {"stdout": 20}


def test_a_peer_that_sends_endless_gaps_is_refused() -> None:
    inbox = Inbox()

    def flood() -> None:
        for at in range(0, 200_000, 2):
            inbox.put(1, at, memoryview(b"x"))

    with pytest.raises(ProtocolViolation):
        flood()
