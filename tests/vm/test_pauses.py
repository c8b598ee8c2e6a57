"""A machine that its host has paused, or whose clock is wrong: what it cannot notice, `resume` mends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.vm import Guest


_YEAR = 365 * 86400
#: Seconds for which a machine is paused.
_PAUSE = 2.0


@pytest.mark.parametrize(("wrong", "least"), [("2001-01-01", 24 * _YEAR), ("2101-01-01", 70 * _YEAR)])
def test_a_clock_that_is_wrong_is_right_after_a_resume(guest: Guest, wrong: str, least: float) -> None:
    """And who goes by how long things take sees nothing of it."""
    with guest.peer() as peer:
        bounded = peer.open("exec", argv=["cat"], stdin="stream", timeout=600.0, id=f"bounded-{wrong}")
        bounded.accepted()
        guest.run(f"date -s '{wrong} 00:00:00' >/dev/null")
        assert guest.run("date +%Y") == wrong[:4]
        found = peer.ask("resume", now=time.time())
        assert found["clock"]["set"] is True
        assert abs(found["clock"]["off"]) > least
        assert abs(float(guest.run("date +%s")) - time.time()) < 60
        bounded.data(0, b"there\n")
        assert bounded.lines(1) == ["there"]
        peer.ask("kill", id=f"bounded-{wrong}", signal="KILL")
        assert bounded.end()["outcome"] == "signaled"


def test_stop_and_cont_lose_nothing(guest: Guest) -> None:
    with guest.peer() as peer:
        call = peer.open(
            "exec", shell="i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.1; done", id="paused"
        )
        call.lines(3)
        peer.ask("resume", now=time.time())
        guest.machine.monitor.ask("stop")
        assert guest.machine.monitor.ask("query-status")["status"] == "paused"
        time.sleep(_PAUSE)  # it is what the test is about: the guest's clock does not see it
        guest.machine.monitor.ask("cont")
        # The connection that asks is the one that was paused in mid-stream.
        found = peer.ask("resume", now=time.time())
        assert found["connections"]["dropped"] == []
        assert found["clock"]["off"] > _PAUSE / 2
        assert call.end()["code"] == 0
    assert call.stdout == b"".join(b"%d\n" % each for each in range(20))
