"""`guestd serve` itself: what it holds when idle, and whether it grows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bench.floors import TRUE, imported_memory
from bench.guest import Guest
from bench.measure import ROW_PATIENCE, Samples, patience, steady
from bench.programs import children, open_fds, resident_bytes, threads
from bench.report import Measured
from bench.shells import Shell
from bench.term_rows import ECHO, READY
from bench.terminals import KEYS

if TYPE_CHECKING:
    from bench.client import Connection
    from bench.lab import Lab

#: What 10,000 commands may leave in resident memory. Without any leak it moves by less than 1 MB in either
#: direction, with how many results were waiting to be forgotten at the worst moment; 2 MB are 210 bytes a
#: command, and a forgotten job is thousands.
GROWTH_LIMIT_KB = 2048.0
#: Trio keeps a worker thread for ten seconds after its last work, so one more or less is no growth.
_SLACK = {"threads": 1}
#: One shell for so many commands, to warm up.
_WARM_SHELL = 10
#: How long guestd may take to forget what it was told not to keep.
FORGETTING_LIMIT = 10.0


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
    """Growth of resident memory over commands and shells one after another; of what can be counted, it is a fault."""
    amounts = lab.amounts
    with Guest(lab) as guest, guest.connect() as connection, steady():
        _commands(connection, amounts.soak_warm)
        _shells(connection, amounts.soak_warm // _WARM_SHELL)
        before = _census(guest.pid, connection)
        begin = time.monotonic()
        _commands(connection, amounts.soak_commands)
        between, turned = _census(guest.pid, connection), time.monotonic()
        _shells(connection, amounts.soak_shells)
        after, end = _census(guest.pid, connection), time.monotonic()
    grown = {what: after[what] - before[what] for what in before if what in after}
    growth_kb = grown.pop("resident bytes") / 1024
    by_shells = (after["resident bytes"] - between["resident bytes"]) / 1024
    return Measured(
        value=growth_kb,
        n=amounts.soak_commands + amounts.soak_shells,
        note=f"{amounts.soak_commands} commands in {turned - begin:.1f} s, {amounts.soak_shells} shells in "
        f"{end - turned:.1f} s, {by_shells:.0f} kB of it with them; after them {after['resident bytes'] / 1e6:.1f} MB, "
        + ", ".join(f"{after[what]} {what} ({change:+d})" for what, change in grown.items()),
        faults=[
            f"{change} more {what} after than before"
            for what, change in grown.items()
            if change > _SLACK.get(what, 0)
        ],
    )


def _commands(connection: Connection, count: int) -> None:
    for _ in range(count):
        connection.run(connection.command([TRUE], retain=0))


def _shells(connection: Connection, count: int) -> None:
    """Each is opened, prints, echoes a key, and is killed."""
    with patience(ROW_PATIENCE):
        for _ in range(count):
            shell = Shell(connection, ECHO, retain=0)
            shell.read_until(READY)
            shell.echo(KEYS[0])
            shell.kill()


def _census(pid: int, connection: Connection) -> dict[str, int]:
    status = _at_rest(connection)
    counted = {
        "resident bytes": resident_bytes(pid),
        "open files": open_fds(pid),
        "threads": threads(pid),
        "children": children(pid),
        # What only the supervisor can count.
        "jobs": status["jobs"]["running"] + status["jobs"]["kept"],
    }
    if "tasks" in status:
        counted["tasks"] = status["tasks"]
    return counted


def _at_rest(connection: Connection) -> dict[str, Any]:
    """The status once no result waits to be forgotten, or, when they stay, what it is then."""
    deadline = time.monotonic() + FORGETTING_LIMIT
    while True:
        status = connection.ask({"op": "status"})
        if not status["jobs"]["kept"] or time.monotonic() > deadline:
            return status
        time.sleep(0.05)
