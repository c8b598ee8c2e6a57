"""When a serve is given up, and how long the next one waits: decisions on a clock that is given."""

from __future__ import annotations

import pytest

from guestd.init.life import ABORT, ABORT_SECONDS, KILL, NEVER, Backoff, Watch, poll_milliseconds


def watch(*, ready_timeout: float = 30, watchdog: float = 10) -> Watch:
    return Watch(ready_timeout=ready_timeout, watchdog=watchdog, now=100)


def test_a_serve_that_is_never_ready_is_killed_once() -> None:
    serve = watch()
    serve.beat(120)
    assert (serve.due, serve.act(129.9), serve.act(130), serve.due) == (130, None, KILL, NEVER)


def test_a_serve_that_does_not_beat_is_aborted_and_then_killed() -> None:
    serve = watch()
    assert serve.ready(105)
    serve.beat(112)
    assert (serve.due, serve.act(121.9), serve.act(122)) == (122, None, ABORT)
    # A beat of a serve that is being aborted saves nothing.
    serve.beat(123)
    assert (serve.due, serve.act(122 + ABORT_SECONDS), serve.due) == (122 + ABORT_SECONDS, KILL, NEVER)


def test_it_is_ready_once() -> None:
    serve = watch()
    assert (serve.ready_for(104), serve.ready(105), serve.ready(106), serve.ready_for(107)) == (
        None,
        True,
        False,
        2,
    )


def test_a_trigger_is_a_missed_beat_now() -> None:
    serve = watch()
    serve.trigger(101)
    assert serve.due == 130
    serve.ready(102)
    serve.trigger(103)
    assert serve.act(103) == ABORT


def test_more_time_is_given_and_never_taken() -> None:
    serve = watch()
    serve.extend(110, 5)
    assert serve.due == 130
    serve.extend(110, 60)
    assert serve.due == 170


def test_a_standstill_of_the_machine_is_nobodys_fault() -> None:
    serve = watch()
    serve.ready(100)
    serve.stood_still(3600)
    assert serve.act(3709) is None


@pytest.mark.parametrize("zero", ["ready_timeout", "watchdog"])
def test_zero_is_no_limit(zero: str) -> None:
    serve = watch(ready_timeout=0) if zero == "ready_timeout" else watch(watchdog=0)
    if zero == "watchdog":
        serve.ready(101)
    assert serve.due == NEVER


def test_one_that_is_on_its_way_out_is_left_alone() -> None:
    serve = watch()
    serve.ready(100)
    serve.rest()
    assert serve.act(10**9) is None


def delays(*ready_for: float | None, reset: float = 10) -> list[float]:
    backoff = Backoff()
    return [backoff.after(each, least=0.2, most=5, reset=reset) for each in ready_for]


def test_the_first_death_costs_nothing_and_each_further_one_more() -> None:
    assert delays(*[None] * 8) == [0, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


def test_a_serve_that_was_ready_for_long_ends_the_row() -> None:
    assert delays(None, None, None, 10, 9.9) == [0, 0.2, 0.4, 0, 0.2]


def test_with_a_reset_of_zero_only_a_serve_that_is_never_ready_waits() -> None:
    assert delays(0, 0, None, 0, reset=0) == [0, 0, 0.2, 0]


def test_the_delay_is_bounded_after_any_number_of_deaths() -> None:
    assert delays(*[None] * 2000)[-1] == 5


@pytest.mark.parametrize(
    ("due", "expected"), [(NEVER, None), (9, 0), (10, 1), (10.0001, 1), (10.5, 501), (1e12, 2**31 - 1)]
)
def test_poll_never_wakes_too_early(due: float, expected: int | None) -> None:
    assert poll_milliseconds(10, due) == expected
