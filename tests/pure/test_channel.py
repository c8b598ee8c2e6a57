"""Two peers that follow the tables agree about each channel, whatever crosses; credit never leaks or jams."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guestd.errors import FlowControl, InternalError, ProtocolViolation
from guestd.wire.channel import ChannelState, Credit, Half, Window
from guestd.wire.frames import Kind

#: Written out once more, as the protocol's description has it, so that a slip in the code's own table shows.
OPENER = {
    Half.NEW: {Kind.OPEN},
    Half.LIVE: {Kind.DATA, Kind.EVENT, Kind.CREDIT, Kind.RESET},
    Half.FINAL: set[Kind](),
}
ANSWERER = {
    Half.NEW: {Kind.ACCEPT, Kind.REJECT, Kind.RESET},
    Half.LIVE: {Kind.DATA, Kind.EVENT, Kind.CREDIT, Kind.END, Kind.RESET},
    Half.FINAL: set[Kind](),
}
FINAL_KINDS = {Kind.REJECT, Kind.END, Kind.RESET}


def state(*, opener: bool, mine: Half, theirs: Half) -> ChannelState:
    made = ChannelState(opener=opener)
    made.mine, made.theirs = mine, theirs
    return made


@pytest.mark.parametrize("opener", [True, False])
@pytest.mark.parametrize("half", Half)
@pytest.mark.parametrize("kind", Kind)
def test_each_cell_of_both_tables(opener: bool, half: Half, kind: Kind) -> None:
    """What may be sent in a state is what the other side takes in it; everything else is refused by name."""
    allowed = kind in (OPENER if opener else ANSWERER)[half]
    # LIVE on the other side, so that only the half under test decides.
    sender = state(opener=opener, mine=half, theirs=Half.LIVE)
    receiver = state(opener=not opener, mine=Half.LIVE, theirs=half)
    assert sender.may_send(kind) is allowed
    if not allowed:
        with pytest.raises(InternalError, match=kind.name):
            sender.sent(kind)
        with pytest.raises(ProtocolViolation, match=kind.name):
            receiver.received(kind)
        assert (sender.mine, receiver.theirs) == (half, half)
        return
    sender.sent(kind)
    receiver.received(kind)
    assert sender.mine is receiver.theirs
    assert sender.mine is (Half.FINAL if kind in FINAL_KINDS else Half.LIVE)
    # END and REJECT are the last word of both; RESET leaves the other half to its owner.
    both = kind in {Kind.END, Kind.REJECT}
    assert sender.closed is receiver.closed is both


class Pair(NamedTuple):
    """Both ends of a connection and what is on its way between them, one channel id."""

    opener: tuple[Half, Half]
    answerer: tuple[Half, Half]
    to_answerer: tuple[Kind, ...]
    to_opener: tuple[Kind, ...]
    #: How many times the id has been used.
    lives: int


START = Pair((Half.NEW, Half.NEW), (Half.NEW, Half.NEW), (), (), 1)
CLOSED = (Half.FINAL, Half.FINAL)
#: DATA stands for the three that change nothing.
KINDS = [Kind.OPEN, Kind.ACCEPT, Kind.REJECT, Kind.DATA, Kind.END, Kind.RESET]
#: A whole life of a channel and the beginning of the next fit on the way at once, in both directions.
ON_THE_WAY = 6
LIVES = 3


def followers(pair: Pair) -> list[Pair]:
    """Every next state: either side sends what it may, or what is on its way arrives."""
    found: list[Pair] = []
    opener, answerer = pair.opener, pair.answerer
    if opener == CLOSED and pair.lives < LIVES:
        # The id is free for the opener: it uses it again at once.
        found.append(pair._replace(opener=(Half.NEW, Half.NEW), lives=pair.lives + 1))
    for kind in KINDS:
        if opener != CLOSED and len(pair.to_answerer) < ON_THE_WAY:
            channel = state(opener=True, mine=opener[0], theirs=opener[1])
            if channel.may_send(kind):
                channel.sent(kind)
                found.append(
                    pair._replace(
                        opener=(channel.mine, channel.theirs), to_answerer=(*pair.to_answerer, kind)
                    )
                )
        # Nobody answers before being asked.
        if answerer[1] is not Half.NEW and answerer != CLOSED and len(pair.to_opener) < ON_THE_WAY:
            channel = state(opener=False, mine=answerer[0], theirs=answerer[1])
            if channel.may_send(kind):
                channel.sent(kind)
                found.append(
                    pair._replace(answerer=(channel.mine, channel.theirs), to_opener=(*pair.to_opener, kind))
                )
    if pair.to_answerer:
        found.append(arrive_at_answerer(pair))
    if pair.to_opener:
        found.append(arrive_at_opener(pair))
    return found


def arrive_at_answerer(pair: Pair) -> Pair:
    kind, *rest = pair.to_answerer
    mine, theirs = pair.answerer
    if kind is Kind.OPEN:
        # An id is opened again only when this side, too, holds it closed.
        assert pair.answerer in {CLOSED, (Half.NEW, Half.NEW)}, pair
        mine = theirs = Half.NEW
    elif pair.answerer == CLOSED:
        return pair._replace(to_answerer=tuple(rest))  # late for a channel that is gone: ignored
    channel = state(opener=False, mine=mine, theirs=theirs)
    channel.received(kind)
    return pair._replace(answerer=(channel.mine, channel.theirs), to_answerer=tuple(rest))


def arrive_at_opener(pair: Pair) -> Pair:
    kind, *rest = pair.to_opener
    # Behind the last word of the side that was asked nothing of it can follow, not even late.
    assert pair.opener != CLOSED, pair
    channel = state(opener=True, mine=pair.opener[0], theirs=pair.opener[1])
    channel.received(kind)
    return pair._replace(opener=(channel.mine, channel.theirs), to_opener=tuple(rest))


def walk() -> dict[Pair, list[Pair]]:
    seen: dict[Pair, list[Pair]] = {}
    todo = deque([START])
    while todo:
        pair = todo.popleft()
        if pair not in seen:
            seen[pair] = followers(pair)
            todo.extend(seen[pair])
    return seen


def test_two_peers_walked_through_everything_that_can_cross() -> None:
    """No frame sent by the tables is refused by them, and with nothing on the way both sides know the same.

    `walk` itself fails when a legal frame is refused, when an id is opened that the other side still holds,
    or when something comes behind a last word.
    """
    graph = walk()
    assert len(graph) > 1000
    for pair in graph:
        if pair.to_answerer or pair.to_opener:
            continue
        if pair.opener == (Half.NEW, Half.NEW):
            assert pair.answerer in {CLOSED, (Half.NEW, Half.NEW)}
        else:
            assert pair.opener == pair.answerer[::-1], pair
    # From everywhere both can come to the end, so nobody waits for ever.
    ends = {
        pair
        for pair in graph
        if pair.opener == pair.answerer == CLOSED and not pair.to_answerer + pair.to_opener
    }
    leads_here: dict[Pair, list[Pair]] = {}
    for pair, nexts in graph.items():
        for each in nexts:
            leads_here.setdefault(each, []).append(pair)
    reached, todo = set(ends), list(ends)
    while todo:
        for before in leads_here.get(todo.pop(), []):
            if before not in reached:
                reached.add(before)
                todo.append(before)
    assert reached == set(graph)


class CreditMachine(RuleBasedStateMachine):
    """One direction of a channel: a sender, a receiver, and bytes and grants on their way between them."""

    @initialize(window=st.integers(1, 40) | st.sampled_from([256 * 1024, 1024 * 1024]))
    def begin(self, window: int) -> None:
        self.size = window
        self.credit = Credit(window)
        self.window = Window(window)
        self.data: deque[int] = deque()
        self.grants: deque[int] = deque()
        self.buffered = 0

    @rule(part=st.floats(0, 1))
    def send(self, part: float) -> None:
        size = round(self.credit.available * part)
        self.credit.spend(size)
        self.data.append(size)

    @precondition(lambda self: self.data)
    @rule()
    def data_arrives(self) -> None:
        size = self.data.popleft()
        self.window.received(size)
        self.buffered += size

    @rule(part=st.floats(0, 1))
    def consume(self, part: float) -> None:
        size = round(self.buffered * part)
        self.buffered -= size
        if grant := self.window.consumed(size):
            # Few CREDIT frames: each is worth at least half a window.
            assert grant * 2 >= self.size
            self.grants.append(grant)

    @precondition(lambda self: self.grants)
    @rule()
    def grant_arrives(self) -> None:
        self.credit.grant(self.grants.popleft())

    @rule(more=st.integers(1, 2**40))
    def sending_without_credit_is_this_programs_mistake(self, more: int) -> None:
        before = self.credit.available
        with pytest.raises(InternalError):
            self.credit.spend(before + more)
        assert self.credit.available == before

    @rule(more=st.integers(1, 2**40))
    def overrunning_the_window_is_the_peers(self, more: int) -> None:
        before = self.window._left
        with pytest.raises(FlowControl, match=f"the window is {self.size}"):
            self.window.received(before + more)
        assert self.window._left == before

    @invariant()
    def never_negative(self) -> None:
        assert self.credit.available >= 0
        assert self.window._left >= 0

    @invariant()
    def nothing_is_lost_and_nothing_is_made(self) -> None:
        on_the_way = sum(self.data) + sum(self.grants)
        assert self.credit.available + on_the_way + self.buffered + self.window._consumed == self.size
        # Each side's own count is the other's, but for what is on the way.
        assert self.window._left == self.credit.available + on_the_way
        # The receiver holds at most a window of it, whatever the sender does.
        assert self.buffered <= self.size

    @invariant()
    def never_stuck(self) -> None:
        """With everything consumed and nothing on the way the sender has at least half a window."""
        if self.buffered == 0 and not sum(self.data) and not self.grants:
            assert self.credit.available * 2 > self.size - 1
            assert self.credit.available > 0


TestCredit = CreditMachine.TestCase


@pytest.mark.parametrize("size", [*range(1, 20), 256 * 1024])
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64 * 1024])
def test_a_sender_never_waits_for_credit_that_does_not_come(size: int, piece: int) -> None:
    """Whatever the sizes of window and piece: once all is consumed the sender may go on, ten windows long."""
    credit, window = Credit(size), Window(size)
    sent = 0
    while sent < 10 * size:
        part = min(piece, credit.available)
        assert part > 0
        credit.spend(part)
        window.received(part)
        sent += part
        credit.grant(window.consumed(part))


def test_a_window_of_nothing_allows_nothing_until_it_is_granted() -> None:
    window = Window(0)
    with pytest.raises(FlowControl):
        window.received(1)
    window.received(0)
    assert window.consumed(0) == 0
