"""What telemetry and audit make of a supervisor that dies: no span is lost or doubled, and the chain goes on."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from guestd.client import Output
from guestd.errors import ConnectionLost
from tests.support.collector import Collector, collecting
from tests.support.survivor import surviving
from tests.system.test_telemetry_export import ABOVE, CONTEXT, QUICK, TRACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.survivor import Survivor

_INIT = "[init]\nrestart_delay = '10ms'\nrestart_delay_max = '10ms'\n"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def survivor(collector: Collector) -> Iterator[Survivor]:
    with surviving(QUICK + f"endpoint = '{collector.endpoint}'\n" + _INIT) as found:
        yield found


async def _verified(survivor: Survivor) -> list[str]:
    """The kinds of ends that the log tells of; its chain holds."""
    async with survivor.connected() as client:
        report = await client.verify_audit()
        assert report["whole"], report
        lines = [line async for line in client.audit()]
    return [each.partition('"after":"')[2].partition('"')[0] for each in lines if '"log_opened"' in each]


async def test_a_command_s_span_is_one_from_its_start_to_its_end_across_a_kill(
    survivor: Survivor, collector: Collector
) -> None:
    async with survivor.connected() as client:
        await client.start(
            ["sh", "-c", "echo $TRACEPARENT; exec sleep 1000"], id="long", traceparent=CONTEXT["traceparent"]
        )
        await client.run(["true"], id="short")
        before = {job["id"]: job for job in await client.ps()}
        while not (await client.status())["audit"]["written"]:
            pass  # what is not written yet dies with guestd
    killed = await survivor.kill_serve()
    await survivor.next_after(killed)
    async with survivor.connected() as client:
        after = {job["id"]: job for job in await client.ps()}
        assert after["long"]["pid"] == before["long"]["pid"]
        await client.kill("long")
        told = b"".join(
            [event.data async for event in await client.attach("long") if isinstance(event, Output)]
        )
    span = await trio.to_thread.run_sync(lambda: collector.span(guestd__job__id="long", guestd__kind="job"))
    assert (span.trace_id, span.parent) == (TRACE, ABOVE)
    assert told.decode().strip() == f"00-{TRACE}-{span.span_id}-01"
    assert span.start == pytest.approx(before["long"]["started_at"], abs=1e-6)
    assert span.attributes["guestd.job.signal"] == "SIGTERM"
    assert span.resource["guestd.session.generation"] == killed + 1
    # What had ended before was told before, and once.
    await trio.to_thread.run_sync(lambda: collector.span(guestd__job__id="short", guestd__kind="job"))
    async with survivor.connected() as client:
        await client.run(["true"], id="last")
    await trio.to_thread.run_sync(lambda: collector.span(guestd__job__id="last", guestd__kind="job"))
    for job in ("long", "short", "last"):
        assert len(collector.found(guestd__job__id=job, guestd__kind="job")) == 1, job
    assert await _verified(survivor) == ["nothing", "died"]


async def test_what_ends_in_the_moment_of_a_kill_is_told_once(
    survivor: Survivor, collector: Collector
) -> None:
    ids: list[str] = []
    for round_ in range(4):
        async with survivor.connected() as client:
            pid = (await client.status())["pid"]
            try:
                for number in range(5):
                    ids.append(f"job-{round_}-{number}")
                    await client.run(["true"], id=ids[-1])
                os.kill(pid, signal.SIGKILL)
                await client.wait_lost()
            except ConnectionLost:
                continue
    for job in ids:
        span = await trio.to_thread.run_sync(
            lambda job=job: collector.span(guestd__job__id=job, guestd__kind="job")
        )
        assert span.attributes["process.exit.code"] == 0
    assert [len(collector.found(guestd__job__id=job, guestd__kind="job")) for job in ids] == [1] * len(ids)
    # Of each there is a record as well, from whichever supervisor.
    await _verified(survivor)
    async with survivor.connected() as client:
        lines = [line async for line in client.audit()]
    ended = [each for each in lines if '"job_ended"' in each]
    assert [sum(f'"job":"{job}"' in each for each in ended) for job in ids] == [1] * len(ids)


async def test_a_connection_that_died_with_its_supervisor_has_a_span_that_says_so(
    survivor: Survivor, collector: Collector
) -> None:
    async with survivor.connected() as client:
        # Facts leave serve a tenth of a second after they came up; that this one has left shows that those before it
        # have, and that the connection was opened is one of them.
        await client.run(["true"], id="first")
        await trio.to_thread.run_sync(lambda: collector.span(guestd__job__id="first", guestd__kind="job"))
        generation = await survivor.kill_serve()
        await client.wait_lost()
    await survivor.next_after(generation)
    assert await trio.to_thread.run_sync(
        lambda: collector.until(
            lambda: [each for each in collector.found("connection") if "was gone" in each.why]
        )
    )


async def test_a_hand_over_closes_the_log_and_the_next_one_goes_on(
    survivor: Survivor, collector: Collector
) -> None:
    async with survivor.connected() as client:
        await client.start(["sleep", "1000"], id="long")
        generation = (await client.status())["generation"]
        await client.upgrade()
    await survivor.next_after(generation)
    assert await _verified(survivor) == ["nothing", "closed"]
    async with survivor.connected() as client:
        await client.kill("long")
    span = await trio.to_thread.run_sync(lambda: collector.span(guestd__job__id="long", guestd__kind="job"))
    assert span.attributes["guestd.job.outcome"] == "signaled"
