"""Taking samples in turns, so that what the machine does meanwhile hits everybody alike.

A figure alone says as much about the machine as about the program, and a floor measured a minute earlier was
measured on another machine: its clock, caches and neighbours have moved. So every subject of a row is
sampled in the same rounds, a short block each, and each round begins with the next subject: nobody always
runs behind the same neighbour.
"""

from __future__ import annotations

import gc
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

#: One sample never takes so long, and a row never so long, unless it is stuck.
PATIENCE, ROW_PATIENCE = 60.0, 600.0


class SubjectFailed(Exception):
    """A subject did not do what was asked of it, so its time means nothing."""


@dataclass(frozen=True)
class Subject:
    """Something to be sampled. `sample` returns one figure; `optional` ones may fall out of the run."""

    name: str
    sample: Callable[[], float]
    optional: bool = False


@dataclass
class Samples:
    """The figures of one subject, in the order in which they were taken."""

    figures: list[float] = field(default_factory=list[float])

    def percentile(self, percent: float) -> float:
        """The smallest figure that `percent` of all do not exceed."""
        ordered = sorted(self.figures)
        if not ordered:
            raise SubjectFailed("no sample was taken")
        rank = -(-len(ordered) * percent // 100)
        return ordered[max(0, min(len(ordered), int(rank)) - 1)]

    @property
    def median(self) -> float:
        return self.percentile(50)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half."""
        return self.percentile(25), self.percentile(75)

    def __len__(self) -> int:
        return len(self.figures)


@dataclass
class Taken:
    """What a run of rounds gave, by the subject's name; `failed` says why a subject fell out."""

    samples: dict[str, Samples]
    failed: dict[str, str]

    def __getitem__(self, name: str) -> Samples:
        return self.samples[name]


def interleave(subjects: list[Subject], *, rounds: int, block: int) -> Taken:
    """Sample every subject `block` times in each of `rounds` rounds, behind one block that is thrown away."""
    taken = Taken({subject.name: Samples() for subject in subjects}, {})
    taking = list(subjects)
    with steady():
        for number in range(-1, rounds):
            for subject in _turn(taking, number):
                kept = taken.samples[subject.name].figures if number >= 0 else []
                try:
                    kept.extend(subject.sample() for _ in range(block))
                except Exception as error:
                    # Whatever goes wrong with somebody else's program costs its own column only.
                    if not subject.optional:
                        raise
                    taken.failed[subject.name] = f"failed while it was measured: {error!r}"
                    del taken.samples[subject.name]
                    taking.remove(subject)
    return taken


def timed(action: Callable[[], object]) -> Callable[[], float]:
    """A sample: how many milliseconds `action` takes."""

    def sample() -> float:
        begin = time.perf_counter()
        action()
        return (time.perf_counter() - begin) * 1e3

    return sample


@contextmanager
def steady() -> Generator[None]:
    """No collection by this process in the middle of a sample; it would be charged to whoever is measured."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def patience(seconds: float = PATIENCE) -> Generator[None]:
    """Fail what takes longer. A read that blocks costs a figure less than one that looks at a clock, but a subject that
    never answers must not stop the run.
    """

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise SubjectFailed(f"nothing came for {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    # Whoever was patient around this one goes on being so.
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _turn(subjects: list[Subject], number: int) -> list[Subject]:
    start = number % len(subjects)
    return subjects[start:] + subjects[:start]
