"""Every signal at every stage of PID 1's life: those that mean a stop end it in order, the others end nothing."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.init import booted
from tests.system.test_init_end import LEFT, PATIENT
from tests.system.test_init_keep import faulty

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.support.init import Guest

STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGPWR]
#: All that is neither a stop here nor beyond anybody's handling.
OTHERS = [
    number
    for number in signal.valid_signals()
    if number not in {*STOPS, signal.SIGKILL, signal.SIGSTOP, *(signal.SIGRTMIN + each for each in (3, 4, 5))}
]
_SLOW = {"GUESTD_INIT_RESTART_DELAY": "1h", "GUESTD_INIT_RESTART_DELAY_MAX": "1h"}
#: A serve that ends when the test says so, whatever it is told; and that takes a SIGHUP for what it is.
_STUBBORN = r"""
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'TOLD\n'))
"""


@contextlib.contextmanager
def _starting() -> Generator[Guest]:
    begin = f"{_STUBBORN}print('HERE', flush=True)\nwhile True: signal.pause()"
    with booted(begin=begin, environment={"GUESTD_STOP_GRACE": "1h"}, ready=False) as guest:
        guest.wait_for("HERE")
        yield guest


@contextlib.contextmanager
def _ready() -> Generator[Guest]:
    with booted(begin="signal.signal(signal.SIGHUP, signal.SIG_IGN)") as guest:
        yield guest


@contextlib.contextmanager
def _restarting() -> Generator[Guest]:
    with booted(begin="sys.exit(1)", environment=_SLOW, ready=False) as guest:
        guest.wait_for("starting again in 3600.0 s")
        yield guest


@contextlib.contextmanager
def _stopping() -> Generator[Guest]:
    with booted(begin=_STUBBORN, environment={"GUESTD_STOP_GRACE": "1h"}) as guest:
        guest.signal(signal.SIGTERM)
        guest.wait_for("TOLD")
        yield guest


@contextlib.contextmanager
def _ending() -> Generator[Guest]:
    with faulty(PATIENT, begin=LEFT) as guest:
        guest.run("leave(True)")
        guest.signal(signal.SIGTERM)
        guest.wait_for("SIGTERM to what is left")
        yield guest


#: How each stage ends: how many stops it takes from there, and the statuses that may come of it.
STAGES: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Guest]], int, set[int]]] = {
    "starting": (_starting, 3, {137}),
    "ready": (_ready, 1, {0}),
    "restarting": (_restarting, 1, {1}),
    "stopping": (_stopping, 2, {137}),
    "ending": (_ending, 1, {0}),
}


def _stop(guest: Guest, number: signal.Signals, times: int) -> None:
    """One after another: of those that are pending at once the kernel makes one."""
    before = guest.console.count("stopping")
    for sent in range(1, times + 1):
        guest.signal(number)
        if sent < times:
            guest.wait_for("stopping", times=before + sent)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stop_ends_it_whatever_the_stage(number: signal.Signals, stage: str) -> None:
    begin, stops, statuses = STAGES[stage]
    with begin() as guest:
        _stop(guest, number, stops)
        assert guest.wait() in statuses
        assert "went wrong" not in guest.console


@pytest.mark.parametrize("stage", STAGES)
def test_no_other_signal_ends_it_whatever_the_stage(stage: str) -> None:
    """Those without a meaning are said or ignored, SIGHUP reloads, and storms of SIGCHLD are looks at nothing."""
    begin, stops, statuses = STAGES[stage]
    with begin() as guest:
        for number in [*OTHERS, *OTHERS, *[signal.SIGCHLD] * 200]:
            guest.signal(number)
        if stage != "ending":
            guest.wait_for("SIGUSR2 means nothing here")
        _stop(guest, signal.SIGTERM, stops)
        assert guest.wait() in statuses
        assert "went wrong" not in guest.console
        assert "Traceback" not in guest.console
