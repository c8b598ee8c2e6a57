"""Telemetry: what it costs commands, the loop and memory; off, on, and with a collector that never answers."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.floors import TRUE
from bench.guest import Guest
from bench.measure import Samples, Subject, SubjectFailed, interleave, timed
from bench.programs import START_LIMIT, Program, resident_bytes
from bench.report import Measured
from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from bench.client import Connection
    from bench.lab import Lab

#: Often, so that what sending costs falls into the samples and not between them.
_CONFIG = (
    "[telemetry]\nendpoint = '{}'\ndelay = '200ms'\ninterval = '1s'\nsampling = '500ms'\ntimeout = '1s'\n"
)


@contextmanager
def _collector(lab: Lab, *arguments: str) -> Generator[str]:
    """A collector that listens; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = Program(
            [sys.executable, "-P", "-m", "bench.collector", str(listener.fileno()), *arguments],
            log=lab.path("collector.log"), env=lab.environment, pass_fds=(listener.fileno(),),
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            program.stop()


@contextmanager
def _exporting(lab: Lab, *arguments: str) -> Generator[tuple[Guest, Connection]]:
    """A guestd whose exporter has sent something, or has tried to."""
    with (
        _collector(lab, *arguments) as endpoint,
        Guest(lab, config=_CONFIG.format(endpoint)) as guest,
        guest.connect() as connection,
    ):
        connection.run(connection.command([TRUE]))
        deadline = time.monotonic() + START_LIMIT
        while not (_tried(connection)):
            if time.monotonic() > deadline:
                raise SubjectFailed("the exporter has sent nothing")
            time.sleep(0.05)
        yield guest, connection


def _tried(connection: Connection) -> bool:
    traces = connection.ask({"op": "status"})["telemetry"].get("traces", {})
    return bool(traces.get("sent") or traces.get("error"))


def command(lab: Lab) -> Measured:
    """`exec true` with a collector that takes everything, to the same without telemetry."""
    return _compared(lab)


def command_hanging(lab: Lab) -> Measured:
    """The same with a collector that never answers."""
    return _compared(lab, "--silent")


def audit(lab: Lab) -> Measured:
    """`exec true` with the audit log, which is there by default, to the same without."""
    with (
        Guest(lab, config="[audit]\nenabled = false\n") as plain, plain.connect() as off,
        Guest(lab) as guest, guest.connect() as on,
    ):  # fmt: skip
        return _ratio(lab, off, on)


def _compared(lab: Lab, *arguments: str) -> Measured:
    with Guest(lab) as plain, plain.connect() as off, _exporting(lab, *arguments) as (_, on):
        return _ratio(lab, off, on)


def _ratio(lab: Lab, off: Connection, on: Connection) -> Measured:
    taken = interleave(
        [
            Subject("floor", timed(lambda: off.run(off.command([TRUE])))),
            Subject("guestd", timed(lambda: on.run(on.command([TRUE])))),
        ],
        rounds=lab.amounts.rtt_rounds,
        block=lab.amounts.rtt_block,
    )
    return Measured.of(
        taken,
        note=f"p99 {taken['guestd'].percentile(99):.2f} ms, the floor's {taken['floor'].percentile(99):.2f}",
    )


def lag(lab: Lab) -> Measured:
    """A ping while commands run beside it: what the loop makes everybody wait. p99."""
    with Guest(lab) as plain, _exporting(lab) as (telling, _), _exporting(lab, "--silent") as (hanging, _):
        guests = {"floor": plain, "guestd": telling, "hanging": hanging}
        found = {name: _pings(guest, lab) for name, guest in guests.items()}
    return Measured(
        value=found["guestd"].percentile(99) * 1e3, floor=found["floor"].percentile(99) * 1e3,
        n=len(found["guestd"]),
        note=f"with a collector that hangs {found['hanging'].percentile(99) * 1e3:.2f} ms; p50"
        f" {found['floor'].median * 1e3:.3f} without, {found['guestd'].median * 1e3:.3f} with,"
        f" {found['hanging'].median * 1e3:.3f} hanging",
    )  # fmt: skip


def _pings(guest: Guest, lab: Lab) -> Samples:
    samples = Samples()
    with guest.connect() as pinging, guest.connect() as busy:
        for _ in range(lab.amounts.loaded_rounds * lab.amounts.loaded_block):
            running = busy.open(busy.command([TRUE], retain=0))
            begin = time.perf_counter()
            pinging.ping()
            samples.figures.append(time.perf_counter() - begin)
            while (frame := busy.frame()).channel != running or frame.kind not in {Kind.END, Kind.RESET}:
                continue
            busy.finish(frame)
    return samples


def memory(lab: Lab) -> Measured:
    """Resident memory of serve with telemetry, after some commands."""
    with _exporting(lab) as (guest, connection):
        for _ in range(lab.amounts.rtt_rounds):
            connection.run(connection.command([TRUE], retain=0))
        serve = resident_bytes(guest.pid) / 1e6
        exporter = resident_bytes(connection.ask({"op": "status"})["telemetry"]["pid"]) / 1e6
    return Measured(value=serve, note=f"and {exporter:.1f} MB of the exporter, a process of its own")
