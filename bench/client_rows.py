"""The Python library: what its comfort costs, beside the bench's own little client in the same rounds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

import guestd.client
from bench.floors import TRUE, spawn_true
from bench.guest import Guest
from bench.measure import Samples, SubjectFailed, steady, timed
from bench.report import Measured

if TYPE_CHECKING:
    from bench.lab import Lab


def rtt_client(lab: Lab) -> Measured:
    """`exec true` as a program writes it: `await client.run([...])`."""
    floor, plain, library = Samples(), Samples(), Samples()
    block = lab.amounts.rtt_block
    with Guest(lab) as guest, guest.connect() as connection, steady():
        sample_floor = timed(spawn_true)
        sample_plain = timed(lambda: connection.run(connection.command([TRUE])))

        async def take() -> None:
            async with guestd.client.connect(f"unix:{guest.address}") as client:
                for number in range(-1, lab.amounts.rtt_rounds):
                    # The blocking samples hold up this event loop, which has nothing else to do.
                    floors = [sample_floor() for _ in range(block)]
                    plains = [sample_plain() for _ in range(block)]
                    libraries = [await _sample(client) for _ in range(block)]
                    if number >= 0:
                        floor.figures += floors
                        plain.figures += plains
                        library.figures += libraries

        trio.run(take)
    extra = library.median - plain.median
    return Measured(
        value=library.median,
        floor=floor.median,
        spread=library.spread,
        floor_spread=floor.spread,
        n=len(library),
        note=f"the library adds {extra * 1e3:.0f} µs to exec.rtt of the same rounds",
    )


async def _sample(client: guestd.client.Client) -> float:
    begin = time.perf_counter()
    done = await client.run([TRUE])
    took = (time.perf_counter() - begin) * 1e3
    if done.status != 0:
        raise SubjectFailed(f"{TRUE} ended with {done.status}")
    return took
