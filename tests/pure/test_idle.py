"""Idleness as a table: facts on the left, what follows on the right."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.lifecycle.idle import Facts, Hold, Limits, Moment, ShellFacts, WorkloadFacts, decide

#: 900 s idle, eight hours in all, a minute's warning. The session began at 0.
USUAL = Limits()
NOW = 10_000.0


def _facts(**some: Any) -> Facts:  # noqa: ANN401
    fields: dict[str, Any] = {"now": NOW, "began": 0.0, **some}
    return Facts(**fields)


@pytest.mark.parametrize(
    ("facts", "busy"),
    [
        ({}, []),
        ({"commands": ("build",)}, ["command build"]),
        ({"shells": (ShellFacts("s-1"),)}, []),
        ({"shells": (ShellFacts("s-1", "vim"),)}, ["shell s-1: vim"]),
        ({"shells": (ShellFacts("s-1", typed=NOW - 1),)}, []),
        ({"workload": WorkloadFacts("healthy")}, []),
        ({"workload": WorkloadFacts("failing")}, []),
        ({"workload": WorkloadFacts("unknown")}, []),
        ({"workload": WorkloadFacts("busy")}, ["workload says that it is busy"]),
        ({"workload": WorkloadFacts("healthy", invocations=2)}, ["workload 2 open invocations"]),
        ({"holds": (Hold("backup", inf),)}, ["hold backup"]),
        ({"holds": (Hold("backup", NOW + 1),)}, ["hold backup"]),
        ({"holds": (Hold("backup", NOW),)}, []),
        (
            {"commands": ("a", "b"), "holds": (Hold("me", inf),), "workload": WorkloadFacts("busy")},
            ["hold me", "command a", "command b", "workload says that it is busy"],
        ),
    ],
    ids=str,
)
def test_what_goes_on_keeps_it_awake(facts: dict[str, Any], busy: list[str]) -> None:
    verdict = decide(_facts(**facts), USUAL)
    assert [str(reason) for reason in verdict.busy] == busy
    if busy:
        assert (verdict.idle_end, verdict.cause, verdict.ends_at) == (inf, "lifetime", 28800.0)


@pytest.mark.parametrize(
    ("facts", "since"),
    [
        ({}, 0.0),
        ({"began": 9000.0}, 9000.0),
        ({"moments": (Moment("request exec", 9500.0), Moment("command build", 9600.0))}, 9600.0),
        ({"shells": (ShellFacts("a", typed=9100.0), ShellFacts("b", typed=9200.0))}, 9200.0),
        ({"shells": (ShellFacts("a", typed=9100.0, returned=9900.0),)}, 9900.0),
        ({"holds": (Hold("backup", 9700.0),)}, 9700.0),
        ({"workload": WorkloadFacts("healthy", worked=9400.0)}, 9400.0),
        ({"workload": WorkloadFacts("failing", worked=9400.0)}, 9400.0),
        ({"moments": (Moment("forward 8080", 9999.0),)}, 9999.0),
    ],
    ids=str,
)
def test_idleness_begins_with_the_last_thing_that_happened(facts: dict[str, Any], since: float) -> None:
    verdict = decide(_facts(**facts), USUAL)
    assert (verdict.last.at, verdict.idle_end) == (since, since + 900)


@pytest.mark.parametrize(
    ("idle_for", "age", "limits", "cause", "warns", "stops"),
    [
        (0, 0, USUAL, "idle", False, False),
        (839, 839, USUAL, "idle", False, False),
        (840, 840, USUAL, "idle", True, False),
        (900, 900, USUAL, "idle", True, True),
        (5000, 5000, USUAL, "idle", True, True),
        # The lifetime is over whatever goes on, and announced as early.
        (10, 28700, USUAL, "lifetime", False, False),
        (10, 28740, USUAL, "lifetime", True, False),
        (10, 28800, USUAL, "lifetime", True, True),
        # Whichever comes first.
        (890, 28795, USUAL, "lifetime", True, False),
        # 0 is never.
        (50_000, 50_000, Limits(0, 0), "idle", False, False),
        (50_000, 50_000, Limits(900, 0), "idle", True, True),
        (50_000, 50_000, Limits(0, 60_000), "lifetime", False, False),
        # What is shorter than its warning is announced in its middle, not from its beginning.
        (1, 1, Limits(60, 0, 60), "idle", False, False),
        (31, 31, Limits(60, 0, 60), "idle", True, False),
    ],
)
def test_when_it_ends_and_when_that_is_announced(
    idle_for: float, age: float, limits: Limits, cause: str, warns: bool, stops: bool
) -> None:
    now = 100_000.0
    verdict = decide(
        Facts(now=now, began=now - age, moments=(Moment("request exec", now - idle_for),)), limits
    )
    assert (verdict.warns, verdict.stops) == (warns, stops)
    if verdict.ends_at < inf:
        assert verdict.cause == cause


def test_what_is_busy_for_ever_ends_with_its_lifetime() -> None:
    facts = _facts(now=28800.0, commands=("for-ever",), holds=(Hold("me", inf),))
    assert decide(facts, USUAL).stops
    assert not decide(facts, Limits(lifetime=0)).stops


@pytest.mark.parametrize(
    ("facts", "limits", "at"),
    [
        # Nothing goes on: when the warning is due, then when the end is.
        ({"began": NOW}, USUAL, NOW + 840),
        ({"began": NOW - 850}, USUAL, NOW + 50),
        # A command that ends in this very moment: its warning would be due then.
        ({"began": NOW, "commands": ("a",)}, USUAL, NOW + 840),
        # A shell that was used has to be looked at.
        ({"began": NOW, "shells": (ShellFacts("a", typed=NOW),)}, USUAL, NOW + 112.5),
        ({"began": NOW, "shells": (ShellFacts("a", "vim"),)}, USUAL, NOW + 112.5),
        ({"began": NOW - 700, "shells": (ShellFacts("a"),)}, USUAL, NOW + 140),
        # Nothing ever ends it.
        ({"commands": ("a",)}, Limits(0, 0), inf),
        # An end that is due is not looked for again and again.
        ({"began": NOW - 900}, USUAL, NOW + 0.01),
    ],
)
def test_it_looks_when_a_decision_can_be_due_and_not_before(
    facts: dict[str, Any], limits: Limits, at: float
) -> None:
    assert decide(_facts(**facts), limits).look_again == at


_TIMES = st.floats(0, 2000)
_LIMITS = st.just(0.0) | st.floats(30, 5000)


@given(st.lists(_TIMES, max_size=5), st.lists(_TIMES, max_size=3), _LIMITS, _LIMITS, _TIMES)
def test_whoever_looks_when_told_misses_no_announcement(
    moments: list[float], holds: list[float], idle: float, lifetime: float, now: float
) -> None:
    """With nothing new happening, each look leads to the next, and the end is met on time, announced before."""
    limits = Limits(idle, lifetime, 60)
    happened = tuple(Moment("request", at) for at in moments if at <= now)
    held = tuple(Hold("me", at) for at in holds)
    for _ in range(300):
        verdict = decide(Facts(now=now, began=0, moments=happened, holds=held), limits)
        assert verdict.look_again > now
        if verdict.stops:
            break
        if verdict.look_again == inf:
            assert (idle, lifetime) == (0, 0)
            return
        late = verdict.look_again
        if not verdict.warns and not verdict.busy:
            assert late <= verdict.warns_at + 0.011
        now = late
    else:
        pytest.fail("it never ended")
