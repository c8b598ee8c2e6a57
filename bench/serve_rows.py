"""`guestd serve` itself: how soon it is ready, what it holds when idle, and whether it grows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bench.floors import TRUE, import_only, imported_memory
from bench.guest import Guest
from bench.measure import Samples, Subject, interleave, steady, timed
from bench.programs import children, open_fds, resident_bytes, threads
from bench.report import Measured

if TYPE_CHECKING:
    from bench.lab import Lab

#: What 10,000 commands may leave in resident memory: by so much the allocator's arenas move in either
#: direction. It is 105 bytes a command, less than the smallest object that could be forgotten with one.
GROWTH_LIMIT_KB = 1024.0


def boot_ready(lab: Lab) -> Measured:
    """From exec of `guestd serve` to READY=1."""

    def boot() -> float:
        with Guest(lab) as guest:
            return guest.ready_after

    taken = interleave(
        [Subject("floor", timed(lambda: import_only(lab.environment))), Subject("guestd", boot)],
        rounds=lab.amounts.boot_rounds,
        block=1,
    )
    return Measured(
        value=taken["guestd"].median,
        floor=taken["floor"].median,
        spread=taken["guestd"].spread,
        floor_spread=taken["floor"].spread,
        n=len(taken["guestd"]),
        note="measured from exec of `guestd serve`",
    )


def idle_memory(lab: Lab) -> Measured:
    """Resident memory once it is READY and has served one command: nobody's supervisor stays unused."""
    fresh, served, floor = Samples(), Samples(), Samples()
    for _ in range(lab.amounts.idle_rounds):
        floor.figures.append(imported_memory(lab.environment) / 1e6)
        with Guest(lab) as guest:
            fresh.figures.append(resident_bytes(guest.pid) / 1e6)
            with guest.connect() as connection:
                connection.run(connection.command([TRUE]))
            served.figures.append(resident_bytes(guest.pid) / 1e6)
    return Measured(
        value=served.median,
        floor=floor.median,
        spread=served.spread,
        floor_spread=floor.spread,
        n=len(served),
        note=f"{fresh.median:.1f} MB before the first connection",
    )


def soak(lab: Lab) -> Measured:
    """Commands one after another: growth of resident memory; of what can be counted, any growth is a
    fault.
    """
    amounts = lab.amounts
    with Guest(lab) as guest, guest.connect() as connection, steady():

        def run(count: int) -> None:
            for _ in range(count):
                connection.run(connection.command([TRUE], retain=0))

        run(amounts.soak_warm)
        before = _census(guest.pid, connection.ask({"op": "status"}))
        begin = time.monotonic()
        run(amounts.soak_commands)
        took = time.monotonic() - begin
        after = _census(guest.pid, connection.ask({"op": "status"}))
    grown = {what: after[what] - before[what] for what in before if what in after}
    growth_kb = grown.pop("resident bytes") / 1024
    return Measured(
        value=growth_kb,
        n=amounts.soak_commands,
        note=f"{amounts.soak_commands} commands in {took:.1f} s; after them "
        + ", ".join(f"{after[what]} {what} ({change:+d})" for what, change in grown.items()),
        faults=[f"{change} more {what} after than before" for what, change in grown.items() if change > 0],
    )


def _census(pid: int, status: dict[str, Any]) -> dict[str, int]:
    counted = {
        "resident bytes": resident_bytes(pid),
        "open files": open_fds(pid),
        "threads": threads(pid),
        "children": children(pid),
    }
    # What only the supervisor can count.
    jobs: dict[str, int] = status["jobs"]
    counted |= {f"{state} jobs": jobs[state] for state in ("running", "kept")}
    if "tasks" in status:
        counted["tasks"] = status["tasks"]
    return counted
