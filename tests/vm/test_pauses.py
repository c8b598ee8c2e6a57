"""A machine that its host has paused, or whose clock is wrong: what it cannot notice, `resume` mends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.vm import Guest


def test_a_clock_that_is_wrong_is_right_after_a_resume(guest: Guest) -> None:
    guest.run("date -s '2001-01-01 00:00:00' >/dev/null")
    with guest.peer() as peer:
        now = time.time()
        found = peer.ask("resume", now=now)
    assert found["clock"]["set"] is True
    assert found["clock"]["off"] > 24 * 365 * 86400
    assert abs(float(guest.run("date +%s")) - time.time()) < 60


def test_stop_and_cont_lose_nothing(guest: Guest) -> None:
    with guest.peer() as peer:
        call = peer.open(
            "exec", shell="i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.1; done", id="paused"
        )
        call.lines(3)
        guest.machine.monitor.ask("stop")
        assert guest.machine.monitor.ask("query-status")["status"] == "paused"
        guest.machine.monitor.ask("cont")
        # The connection that asks is the one that was paused in mid-stream.
        assert peer.ask("resume", now=time.time())["connections"]["dropped"] == []
        assert call.end()["code"] == 0
    assert call.stdout == b"".join(b"%d\n" % each for each in range(20))
