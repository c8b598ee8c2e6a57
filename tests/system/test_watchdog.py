"""A supervisor whose loop stands still is replaced, and everything is adopted; one that is merely busy is not."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import trio

from tests.support.survivor import SECONDS, surviving

if TYPE_CHECKING:
    from pathlib import Path

#: A startup hook of Python's: the loop's own thread stands still for real, or works for a while, while others go on.
HOOK = """
import signal, time

def stand_still(number, frame):
    time.sleep(1000)

def work(number, frame):
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pass

signal.signal(signal.SIGUSR2, stand_still)
signal.signal(signal.SIGUSR1, work)
"""


def _config(seconds: float) -> str:
    return f"[init]\nwatchdog = {seconds}\nrestart_delay = '10ms'\n"


def _hook(folder: Path) -> str:
    (folder / "sitecustomize.py").write_text(HOOK)
    return str(folder)


async def test_a_loop_that_stands_still_is_replaced_and_all_is_adopted(tmp_path: Path) -> None:
    with surviving(_config(2.5), _hook(tmp_path)) as survivor:
        async with survivor.connected() as client:
            await client.start(["sleep", "1000"], id="sleeper")
            await client.start(["sh", "-c", "echo before; read line; exit $line"], id="asks", stdin="stream")
            before = {job["id"]: job["pid"] for job in await client.ps()}
            status = await client.status()
        os.kill(status["pid"], signal.SIGUSR2)
        found = await survivor.next_after(status["generation"])
        assert found["pid"] != status["pid"]
        assert "serve has not beaten for 2.5 s: SIGABRT" in survivor.log
        assert "killed by signal 6; starting again" in survivor.log
        async with survivor.connected() as client:
            assert {job["id"]: job["pid"] for job in await client.ps()} == before
            job = await client.attach("asks", input=True)
            await job.send(b"42\n")
            assert (await job.result()).code == 42


async def test_a_busy_loop_is_not_taken_for_dead(tmp_path: Path) -> None:
    """It does nothing but work for a fifth of the time that is allowed, again and again, among many commands."""
    with surviving(_config(5.0), _hook(tmp_path)) as survivor:
        async with survivor.connected() as client:
            status = await client.status()

            async def command(number: int) -> None:
                done = await client.run(["sh", "-c", f"exit {number % 100}"])
                assert done.result.code == number % 100

            for _ in range(4):
                os.kill(status["pid"], signal.SIGUSR1)
                with trio.fail_after(SECONDS):
                    async with trio.open_nursery() as tasks:
                        for number in range(50):
                            tasks.start_soon(command, number)
            assert (await client.status())["pid"] == status["pid"]
        assert "has not beaten" not in survivor.log
