"""When whoever keeps descriptors has no room, a job does not survive, and says so; nothing fails to start for that, and
nobody else is lost. And a supervisor that stops, or would lose work, is not replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import pytest
import trio

from guestd.errors import Conflict, ShuttingDown
from tests.support.peer import Peer
from tests.support.survivor import SECONDS, surviving

_QUICK = "restart_delay = '10ms'\nrestart_delay_max = '10ms'\n"


async def test_jobs_beyond_the_limit_start_and_say_that_they_do_not_survive() -> None:
    """The store took some of a job's descriptors and refused others: the next supervisor made a job without output of
    them, whose program died of SIGPIPE.
    """
    with surviving(f"[init]\n{_QUICK}fd_store = 30\n[limits]\njobs = 50\n") as survivor:
        async with survivor.connected() as client:
            for number in range(12):
                started = await client.start(["sh", "-c", "echo begun; exec sleep 1000"], id=f"job-{number}")
                assert started["pid"], started
            jobs = {job["id"]: job for job in await client.ps()}
            kept = {name for name, job in jobs.items() if job["survives"]}
            assert 2 <= len(kept) < 12
            assert "job-0" in kept
            # It would cost the others their lives.
            with pytest.raises(Conflict, match=r"jobs run that would not survive it \(job-"):
                await client.upgrade()
            assert survivor.log.count("no more descriptors are kept") == 1
        assert "not stored" not in survivor.log, "PID 1 was sent what it has no room for"
        await survivor.next_after(await survivor.kill_serve())
        async with survivor.connected() as client:
            found = {job["id"]: job for job in await client.ps()}
            assert set(found) == kept
            assert {job["state"] for job in found.values()} == {"running"}
            # What those who have gone had taken is free again.
            await client.kill("job-0", grace=0.0)
            for name in set(jobs) - kept:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(jobs[name]["pid"], signal.SIGKILL)
            assert (await client.start(["sleep", "1000"], id="after"))["pid"]


async def test_what_has_ended_gives_way_to_what_runs() -> None:
    with surviving(f"[init]\n{_QUICK}fd_store = 40\n") as survivor:
        async with survivor.connected() as client:
            for number in range(30):
                done = await client.run(["sh", "-c", "echo out; echo err >&2"], id=f"ended-{number}")
                assert done.stdout == b"out\n"
            await client.start(["sleep", "1000"], id="runs")
            jobs = {job["id"]: job["survives"] for job in await client.ps()}
            assert jobs["runs"]
            assert jobs["ended-29"]
            assert not jobs["ended-0"]
            # It is there all the same, as long as this supervisor lives.
            assert (await client.wait("ended-0")).code == 0
        await survivor.next_after(await survivor.kill_serve())
        async with survivor.connected() as client:
            found = [job["id"] for job in await client.ps()]
            assert "runs" in found
            assert "ended-29" in found
            assert "ended-0" not in found


async def test_a_supervisor_that_stops_is_not_replaced() -> None:
    """An upgrade, or a SIGHUP, in the midst of a stop ended it: the jobs went on, or lost their grace."""
    with surviving(f"[init]\n{_QUICK}") as survivor:
        async with survivor.connected() as client, survivor.connected() as other:
            line = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
            job = await client.exec(["sh", "-c", line], id="stubborn")
            async for _ in job:
                break
            pid = (await client.status())["pid"]
            async with trio.open_nursery() as tasks:

                async def stop() -> None:
                    receipt = await other.stop(grace=4.0, action="exit")
                    assert [each["id"] for each in receipt["ended"]["jobs"]] == ["stubborn"]

                tasks.start_soon(stop)
                with trio.fail_after(SECONDS):
                    while not (await client.status())["stopping"]:
                        pass
                with pytest.raises(ShuttingDown):
                    await client.upgrade()
                os.kill(pid, signal.SIGHUP)
        assert await trio.to_thread.run_sync(survivor.process.wait, SECONDS) == 0, survivor.log
        assert "the settings were not read again: the session is stopping" in survivor.log
        assert survivor.log.count("started serve") == 1


async def test_a_stop_that_comes_while_it_makes_room_goes_on_to_its_end() -> None:
    """It left with the status of a hand-over, and what ran had what PID 1 gives to all: no order, no receipt."""
    with surviving(f"[init]\n{_QUICK}") as survivor:
        async with survivor.connected() as client:
            # Who takes nothing is waited for a moment when it is said goodbye to.
            with Peer(survivor.address) as deaf:
                deaf.open("exec", argv=["yes"], id="flood").accepted()
                while (await client.ps())[0]["streams"]["stdout"]["end"] < 2 * 1024 * 1024:
                    pass
                await client.upgrade()
                survivor.process.terminate()
                assert await trio.to_thread.run_sync(survivor.process.wait, SECONDS) == 0, survivor.log
        receipt = json.loads((survivor.directory / "receipt.json").read_text())
        assert receipt["cause"] == "signal"
        assert [each["id"] for each in receipt["ended"]["jobs"]] == ["flood"]


async def test_a_version_whose_check_hangs_does_not_stay() -> None:
    """It was left running for good."""
    with surviving(f"[init]\n{_QUICK}") as survivor:
        hangs = survivor.directory / "hangs"
        said = survivor.directory / "pid"
        hangs.write_text(f"#!/bin/sh\necho $$ > {said}.new; mv {said}.new {said}\nsleep 1000\n")
        hangs.chmod(0o755)
        async with survivor.connected() as client:
            # Whoever asked has gone; that is as good as an answer that does not come.
            with trio.move_on_after(SECONDS) as asking:
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(client.upgrade, [str(hangs)])
                    while not said.exists():
                        await survivor.ask()
                    asking.cancel()
        pid = int(said.read_text())
        due = time.monotonic() + SECONDS
        while os.path.exists(f"/proc/{pid}"):
            assert time.monotonic() < due, "its check still runs"
            await survivor.ask()
        async with survivor.connected() as client:
            assert (await client.run(["true"])).result.code == 0
