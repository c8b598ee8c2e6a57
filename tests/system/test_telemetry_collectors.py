"""Collectors that are dead, slow or lying: commands run, the session stops in time, and `status` says how it goes."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.collector import collecting
from tests.support.life import serving
from tests.support.peer import PATIENCE, Peer, Watched
from tests.system.test_ctl import guestctl
from tests.system.test_telemetry_export import QUICK, exporting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.support.server import Server

#: What a stop may cost beyond telemetry.flush: far above what an interpreter takes to leave, and far below what anybody
#: would wait for these collectors.
_LEAVING = PATIENCE / 3
_FLUSH = 0.4
_CONFIG = QUICK + f"timeout = '500ms'\nflush = '{int(_FLUSH * 1000)}ms'\nqueue = 64\n"


def _until(peer: Peer, look: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The telemetry part of the status, once it is as wanted. Each question is a round trip: nothing here spins."""
    due = time.monotonic() + PATIENCE
    while True:
        found: dict[str, Any] = peer.ask("status")["telemetry"]
        if look(found):
            return found
        assert time.monotonic() < due, found


@contextmanager
def _stops_in_time(server: Server) -> Generator[None]:
    yield
    begun = time.monotonic()
    assert server.stop() == 0
    took = time.monotonic() - begun
    assert took < _FLUSH + _LEAVING, f"the stop took {took:.2f} s"


#: What the status says of each; None where it cannot know better than that all went well.
_SAID = {
    "silent": "failed", "garbage": "failed", "busy": "503", "limiting": "429", "refusing": "401", "cut": None,
    "endless": None, "trickling": "",
}  # fmt: skip


@pytest.mark.parametrize("manner", _SAID)
def test_a_lying_collector_costs_nothing_but_its_telemetry(manner: str) -> None:
    with (
        collecting(manner) as collector,
        exporting(collector, _CONFIG) as (server, peer),
        _stops_in_time(server),
    ):
        assert peer.open("exec", argv=["true"]).end()["code"] == 0
        collector.until(lambda: collector.requests)
        said = _SAID[manner]
        if said is None:
            assert _until(peer, lambda found: found.get("traces", {}).get("sent"))["traces"]["error"] is None
        elif said:
            # On a machine with much to do a request may take too long for a collector that answers as well.
            found = _until(peer, lambda found: said in (found.get("traces", {}).get("error") or "").lower())
            assert found["traces"]["sent"] == 0
            assert 0 < found["traces"]["error_at"] <= time.time()
        begun = time.monotonic()
        for _ in range(20):
            assert peer.open("exec", argv=["true"]).end()["code"] == 0
        assert time.monotonic() - begun < PATIENCE / 3


def test_a_dead_collector_is_waited_for_and_the_oldest_are_dropped_and_counted() -> None:
    # Bound, and not listened on: nobody else gets the port, and it refuses.
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{dead.getsockname()[1]}"
        config = _CONFIG + f"endpoint = '{address}'\n"
        with serving(config=config) as server, Peer(server.address) as peer, _stops_in_time(server):
            due = time.monotonic() + PATIENCE
            # There is room for so few that guestd itself may drop most of them (all but 64, until the exporter has come
            # up): it is told more until the exporter had to drop some.
            while not _dropped(found := peer.ask("status")["telemetry"]):
                assert time.monotonic() < due, found
                for _ in range(10):
                    peer.open("exec", argv=["true"], retain=0).end()
            for each in (found["traces"], found["logs"]):
                assert each["waiting"] <= 64
                assert each["sent"] == 0
            assert found["waiting"] <= 64
            text = guestctl(server.address, "status").stdout.decode()
            assert "FAILING for" in text


def _dropped(found: dict[str, Any]) -> bool:
    """Whether the exporter had to drop something, of each signal that cannot be summed up."""
    return all(found.get(each, {}).get("dropped") for each in ("traces", "logs"))


def test_a_collector_that_comes_back_gets_what_waited() -> None:
    with collecting("busy") as collector:
        collector.manner = "limiting"
        with exporting(collector, QUICK + "timeout = '300ms'\n") as (_, peer):
            peer.open("exec", argv=["true"], id="early").end()
            _until(peer, lambda found: found.get("traces", {}).get("error"))
            collector.manner = "well"
            assert collector.span(guestd__job__id="early", guestd__kind="job")
            found = _until(peer, lambda found: found["traces"]["sent"] and found["traces"]["error"] is None)
            assert found["traces"]["well_since"] <= time.time()


def test_an_exporter_that_is_killed_is_replaced_and_what_it_had_is_counted() -> None:
    with collecting() as collector, exporting(collector) as (_, peer):
        pid = _until(peer, lambda found: found["pid"] and found.get("traces"))["pid"]
        running = peer.open("exec", shell="echo up; read line", stdin="stream", id="across")
        running.lines(1)
        os.kill(pid, signal.SIGKILL)
        found = _until(peer, lambda found: found["starts"] == 2 and found.get("traces"))
        assert found["pid"] != pid
        running.event(event="eof", offset=0)
        running.end()
        assert collector.span(guestd__job__id="across", guestd__kind="job")


def test_an_exporter_that_does_not_read_holds_up_nobody() -> None:
    with collecting() as collector, exporting(collector, _CONFIG) as (server, peer):
        pid = _until(peer, lambda found: found.get("traces"))["pid"]
        with Watched(pid) as exporter:
            with _stops_in_time(server):
                os.kill(pid, signal.SIGSTOP)
                # Much more than a socket holds.
                asked = [peer.open("busy", by="x" * 250, **{"for": 0.01}) for _ in range(1500)]
                for call in asked:
                    call.end()
                assert peer.open("exec", argv=["true"]).end()["code"] == 0
                assert _until(peer, lambda found: found["dropped"])["waiting"] <= 64
                text = guestctl(server.address, "status").stdout.decode()
                assert re.search(r"^telemetry\b.* \d+ facts dropped before", text, re.MULTILINE), text
            exporter.wait()


def test_what_guestd_had_no_room_for_is_in_the_metrics_as_well() -> None:
    with collecting() as collector, exporting(collector, _CONFIG) as (_, peer):
        pid = _until(peer, lambda found: found.get("metrics", {}).get("sent"))["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            asked = [peer.open("busy", by="x" * 250, **{"for": 0.01}) for _ in range(1500)]
            for call in asked:
                call.end()
            dropped = _until(peer, lambda found: found["dropped"])["dropped"]
        finally:
            os.kill(pid, signal.SIGCONT)
        collector.until(
            lambda: any(
                point.value >= dropped
                for point in collector.points
                if point.name == "guestd.telemetry.dropped" and point.attributes["guestd.signal"] == "facts"
            )
        )
