"""Many changes become few events, and nothing that matters is lost between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guestd.storage.file_coalescing import (
    ATTRIBUTES,
    CHANGED,
    CREATED,
    LATEST,
    MOVED,
    QUIET,
    REMOVED,
    Coalescing,
    Event,
)

NAMES = [b"a", b"b", b"c", b"d", b"d/x", b"d/y", b"e", b"e/x", b"e/y"]


class World:
    """Paths that exist, and what a change makes of them; versions tell whose content is where."""

    def __init__(self) -> None:
        self.paths: dict[bytes, int] = {}

    def below(self, path: bytes) -> list[bytes]:
        return [each for each in self.paths if each.startswith(path + b"/")]

    def play(self, event: Event) -> None:
        match event.kind:
            case "created":
                self.paths.setdefault(event.path, 0)
            case "removed":
                for each in [event.path, *self.below(event.path)]:
                    self.paths.pop(each, None)
            case "moved":
                assert event.to is not None
                for each in [event.path, *self.below(event.path)]:
                    version = self.paths.pop(each, None)
                    if version is not None:
                        self.paths[event.to + each[len(event.path) :]] = version
            case _:
                pass


def is_folder(path: bytes) -> bool:
    return path in {b"d", b"e"}


@st.composite
def histories(draw: st.DrawFn) -> tuple[set[bytes], list[tuple[Event, float]]]:
    """What was there, and changes that could happen to it, as the kernel would tell them."""
    world = World()
    there = draw(st.sets(st.sampled_from([b"a", b"b", b"c", b"d", b"e"])))
    for each in there:
        world.paths[each] = 0
    found: list[tuple[Event, float]] = []
    now = 0.0
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.sampled_from([0.0, 0.001, 0.06]))
        path = draw(st.sampled_from(NAMES))
        kind = draw(st.sampled_from([CREATED, CHANGED, REMOVED, MOVED, ATTRIBUTES]))
        parent = path.rpartition(b"/")[0]
        event: Event | None = None
        if parent and parent not in world.paths:
            continue
        if kind == CREATED and path not in world.paths:
            event = Event(CREATED, path, is_folder=is_folder(path), fresh=True)
        elif kind in {CHANGED, ATTRIBUTES} and path in world.paths and not is_folder(path):
            event = Event(kind, path)
        elif kind == REMOVED and path in world.paths and not world.below(path):
            event = Event(REMOVED, path, is_folder=is_folder(path))
        elif kind == MOVED and path in world.paths:
            to = draw(st.sampled_from(NAMES))
            above = to.rpartition(b"/")[0]
            fits = is_folder(to) == is_folder(path) and to != path and (not above or above in world.paths)
            if fits and not world.below(to) and not to.startswith(path + b"/"):
                event = Event(MOVED, path, to=to, is_folder=is_folder(path))
        if event is not None:
            world.play(event)
            found.append((event, now))
    return there, found


@given(histories())
def test_who_plays_the_events_has_what_is_there(
    history: tuple[set[bytes], list[tuple[Event, float]]],
) -> None:
    there, changes = history
    real, told = World(), World()
    for world in (real, told):
        world.paths = dict.fromkeys(there, 0)
    waiting = Coalescing()
    for event, now in changes:
        due = waiting.due
        if due is not None and due <= now:
            for each in waiting.take():
                told.play(each)
        real.play(event)
        waiting.add(event, now)
    for each in waiting.take():
        told.play(each)
    assert set(told.paths) == set(real.paths)


@given(histories())
def test_what_was_written_and_is_there_is_told(history: tuple[set[bytes], list[tuple[Event, float]]]) -> None:
    _, changes = history
    waiting = Coalescing()
    dirty: dict[bytes, bool] = {}
    for event, now in changes:
        waiting.add(event, now)
        if event.kind in {CHANGED, CREATED}:
            dirty[event.path] = True
        elif event.kind == REMOVED:
            dirty.pop(event.path, None)
        elif event.kind == MOVED:
            assert event.to is not None
            for each in [each for each in dirty if each == event.path or each.startswith(event.path + b"/")]:
                del dirty[each]
                dirty[event.to + each[len(event.path) :]] = True
    told: set[bytes] = set()
    for event in waiting.take():
        if event.kind == MOVED:
            assert event.to is not None
            for each in [each for each in told if each == event.path or each.startswith(event.path + b"/")]:
                told.add(event.to + each[len(event.path) :])
        elif event.kind != REMOVED:
            told.add(event.path)
    assert set(dirty) <= told


def test_ten_thousand_writes_are_a_handful_of_events() -> None:
    waiting, told, now = Coalescing(), 0, 0.0
    for _ in range(10_000):
        now += 0.0001
        waiting.add(Event(CHANGED, b"log"), now)
        due = waiting.due
        if due is not None and due <= now:
            told += len(waiting.take())
    told += len(waiting.take())
    assert told <= 1 / LATEST + 2


def test_they_wait_for_quiet_and_not_for_ever() -> None:
    waiting = Coalescing()
    assert waiting.due is None
    waiting.add(Event(CHANGED, b"a"), 10.0)
    assert waiting.due == 10.0 + QUIET
    waiting.add(Event(CHANGED, b"a"), 10.0 + LATEST)
    assert waiting.due == 10.0 + LATEST


def test_a_file_that_came_and_went_is_nobodys_business() -> None:
    waiting = Coalescing()
    waiting.add(Event(CREATED, b"tmp", fresh=True), 0)
    waiting.add(Event(CHANGED, b"tmp"), 0)
    waiting.add(Event(REMOVED, b"tmp"), 0)
    assert waiting.take() == []


def test_a_file_written_beside_its_name_is_that_file() -> None:
    waiting = Coalescing()
    waiting.add(Event(CREATED, b"x.tmp", fresh=True), 0)
    waiting.add(Event(MOVED, b"x.tmp", to=b"x"), 0)
    assert [(each.kind, each.path) for each in waiting.take()] == [(CREATED, b"x")]


def test_what_may_have_replaced_something_is_told_when_it_goes() -> None:
    """Moved in from outside over a file that was there: who knew that file has to hear that it is gone."""
    waiting = Coalescing()
    waiting.add(Event(CREATED, b"x"), 0)
    waiting.add(Event(REMOVED, b"x"), 0)
    assert [each.kind for each in waiting.take()] == [CREATED, REMOVED]


def test_too_many_are_forgotten_and_that_is_said() -> None:
    waiting = Coalescing(most=10)
    for number in range(12):
        waiting.add(Event(CREATED, b"%d" % number), 0)
    assert waiting.overflow
    assert waiting.take() == []
