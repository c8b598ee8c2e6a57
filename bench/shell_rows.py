"""Shells that are there: how soon somebody who comes back sees theirs, and what one costs."""

from __future__ import annotations

import os
import resource
import time
from typing import TYPE_CHECKING, Any

from bench.guest import Guest
from bench.measure import ROW_PATIENCE, Samples, Subject, interleave, patience, steady
from bench.programs import open_fds, proportional_bytes, resident_bytes
from bench.report import Measured
from bench.shells import Shell, start_detached

if TYPE_CHECKING:
    from bench.client import Connection
    from bench.lab import Lab

_SH = "/bin/sh"
_SHOW = [_SH, "-c", 'stty raw -echo; cat "$1"; exec sleep infinity', _SH]
_REPLAYED = 1024 * 1024
_PLAIN = 256 * 1024
_COLUMNS, _ROWS = 120, 40
#: As many as it takes until what is imported and grown once is there.
_FIRST_SHELLS = 20
#: What a thousand shells need beyond the defaults.
_ROOM = '[limits]\nshells = 4000\njobs = 4000\ntapes = "64 GiB"\n'


def attach(lab: Lab) -> Measured:
    """Attach from offset 0 and read 1 MiB, over a warm connection: from OPEN to the last byte."""
    with Guest(lab) as guest, guest.connect() as connection:
        shell = _showing(lab, connection, "replayed.txt", _lines(_REPLAYED))

        def sample() -> float:
            with patience():
                begin = time.perf_counter()
                viewer = Shell(connection, id=shell, start={"terminal": 0})
                viewer.read(_REPLAYED)
                took = (time.perf_counter() - begin) * 1e3
                viewer.leave()
            return took

        taken = interleave([Subject("guestd", sample)], rounds=lab.amounts.attach_rounds, block=1)["guestd"]
    return Measured(
        value=taken.median, spread=taken.spread, n=len(taken), note=f"p99 {taken.percentile(99):.2f} ms"
    )


def restore_screen(lab: Lab) -> Measured:
    """Attach with a picture, in the middle of a program that has drawn a whole screen in colours."""
    return _restore(lab, "screen.txt", _full_screen())


def restore_plain(lab: Lab) -> Measured:
    """Attach with a picture, behind output that nobody has looked at yet."""
    return _restore(lab, "plain.txt", _lines(_PLAIN))


def memory(lab: Lab) -> Measured:
    """What a shell that has said nothing, and that nobody is attached to, costs in the supervisor."""
    asked = lab.amounts.memory_shells
    with Guest(lab, config=_ROOM) as guest, guest.connect() as connection, patience(ROW_PATIENCE):
        _raise_files(guest.pid)
        for _ in range(_FIRST_SHELLS):
            start_detached(connection, ["/bin/sleep", "infinity"])
        before, shared_before, files_before = _held(guest.pid)
        for _ in range(asked):
            start_detached(connection, ["/bin/sleep", "infinity"])
        after, shared_after, files_after = _held(guest.pid)
    return Measured(
        value=(after - before) / asked / 1024,
        n=asked,
        note=f"{(shared_after - shared_before) / asked / 1024:.1f} kB of proportional memory (PSS) and "
        f"{(files_after - files_before) / asked:.1f} open files each; {after / 1e6:.0f} MB with all of them",
    )


def _restore(lab: Lab, name: str, output: bytes) -> Measured:
    first, again = Samples(), Samples()
    pictures: list[dict[str, Any]] = []
    with Guest(lab) as guest, guest.connect() as connection, steady(), patience(ROW_PATIENCE):
        for number in range(-1, lab.amounts.restore_rounds):
            # A new shell each time: whoever came before has left a model of the screen behind.
            shell = _showing(lab, connection, name, output)
            for samples in (first, again):
                begin = time.perf_counter()
                viewer = Shell(connection, id=shell, start="restore")
                pictures.append(viewer.restored())
                if number >= 0:
                    samples.figures.append((time.perf_counter() - begin) * 1e3)
                viewer.leave()
            connection.ask({"op": "kill", "id": shell})
    exact = all(picture["exact"] for picture in pictures)
    return Measured(
        value=first.median,
        spread=first.spread,
        n=len(first),
        note=f"a picture of {pictures[-1]['bytes']} bytes{'' if exact else ', not exact'}; "
        f"{again.median:.2f} ms for whoever attaches next; the most of the first {first.percentile(100):.2f} ms",
    )


def _showing(lab: Lab, connection: Connection, name: str, output: bytes) -> str:
    """The id of a shell that has printed that, and says no more."""
    path = lab.path(name)
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.write(output)
    size = {"columns": _COLUMNS, "rows": _ROWS}
    shell = start_detached(connection, [*_SHOW, path], size=size, retain=0)["id"]
    with patience():
        viewer = Shell(connection, id=shell, role="watcher", start="start")
        viewer.read(len(output))
        viewer.leave()
    return shell


def _lines(size: int) -> bytes:
    line = b"The quick brown fox jumps over the lazy dog, and none the wiser."
    return (line[:62] + b"\r\n") * (size // 64)


def _full_screen() -> bytes:
    """What an editor sends when it starts: the alternate screen, every cell of it, and several colours a row."""
    rows = [b"\x1b[?1049h\x1b[?2004h\x1b[?1002h\x1b[?1006h\x1b[2J"]
    for row in range(1, _ROWS + 1):
        words = [
            b"\x1b[%d;38;5;%dm%s"
            % (word % 2, 16 + (row * 7 + word * 3) % 216, b"%08x  " % (row * word * 7919))
            for word in range(_COLUMNS // 10)
        ]
        rows.append(b"\x1b[%d;1H%s\x1b[0m" % (row, b"".join(words)))
    rows.append(b"\x1b]2;an editor\x07\x1b[7;11H")
    return b"".join(rows)


def _raise_files(pid: int) -> None:
    """As many descriptors as this machine lets it have: a thousand shells have several thousand."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


def _held(pid: int) -> tuple[int, int, int]:
    return resident_bytes(pid), proportional_bytes(pid), open_fds(pid)
