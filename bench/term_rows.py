"""Terminals: how soon a key is back, alone and beside others, and how fast output flows."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.guest import Guest
from bench.measure import ROW_PATIENCE, Samples, Subject, SubjectFailed, interleave, patience, steady
from bench.report import Measured
from bench.shells import Shell, start_detached
from bench.terminals import Terminal, Typist
from guestd.wire.frames import DATA_LIMIT, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.client import Connection
    from bench.lab import Lab
    from bench.peers.multiplexers import Multiplexer

_SH = "/bin/sh"
#: `ready` says that the terminal is raw, so that what comes back is the program's echo and not the kernel's.
ECHO = [_SH, "-c", "stty raw -echo; echo ready; exec cat"]
READY = b"ready"
_FLOOD = [_SH, "-c", f"stty raw -echo; exec yes {'x' * 62}"]
#: Prints its arguments, once.
_PRINT = [_SH, "-c", 'stty raw -echo; exec cat "$@"', _SH]
#: Prints its arguments each time that a word is typed, and the word behind them.
_PRINT_AGAIN = [
    _SH, "-c", r'stty raw -echo; while read -r word; do cat "$@"; printf "\r\n%s-is-done\r\n" "$word"; done', _SH
]  # fmt: skip
_FILE_SIZE = 4 * 1024 * 1024


def echo(lab: Lab) -> Measured:
    """Keys typed as people type."""
    return _echo(lab, paced=True)


def echo_unpaced(lab: Lab) -> Measured:
    """Each key as soon as the last is back."""
    return _echo(lab, paced=False)


def echo_loaded(lab: Lab) -> Measured:
    """p99 of the echo while a command on another channel of the connection prints as fast as it can; the floor is p99
    while that channel is held by its credit.
    """
    quiet, loaded = Samples(), Samples()
    flowed, flowing = 0, 0.0
    typist = Typist()
    with Guest(lab) as guest, guest.connect() as connection, steady(), patience(ROW_PATIENCE):
        shell = Shell(connection, ECHO)
        shell.read_until(READY)
        other = connection.open(connection.command(["/bin/cat", "/dev/zero"], kill_on_disconnect=True))
        for number in range(-1, lab.amounts.loaded_rounds):
            for samples, withhold in ((quiet, True), (loaded, False)):
                connection.release(other)
                if withhold:
                    _fill(connection, other)
                begin, passed = time.perf_counter(), shell.passed
                for _ in range(lab.amounts.loaded_block):
                    if withhold:
                        time.sleep(typist.pause)
                    else:
                        shell.pass_for(typist.pause)
                    took = shell.echo(typist.key, withhold=withhold)
                    if number >= 0:
                        samples.figures.append(took)
                if not withhold:
                    flowed, flowing = (
                        flowed + shell.passed - passed,
                        flowing + time.perf_counter() - begin,
                    )
    return Measured(
        value=loaded.percentile(99),
        floor=quiet.percentile(99),
        spread=loaded.spread,
        floor_spread=quiet.spread,
        n=len(loaded),
        note=f"p50 {loaded.median:.2f} ms, held {quiet.median:.2f} ms; "
        f"{flowed / flowing / 1e6:.0f} MB/s of the other channel came meanwhile",
    )


def isolation(lab: Lab) -> Measured:
    """p99 of the owner's echo while another shell floods, and somebody watches that one who does not read. The floor is
    p99 while the flood stands still.
    """
    quiet, loaded = Samples(), Samples()
    typist = Typist()
    with (
        Guest(lab) as guest,
        guest.connect() as connection,
        guest.connect() as slow,
        steady(),
        patience(ROW_PATIENCE),
    ):
        shell = Shell(connection, ECHO)
        shell.read_until(READY)
        # A small tape, so that whoever is slow is soon behind it.
        flood = start_detached(connection, _FLOOD, tape=256 * 1024)
        watcher = Shell(slow, id=flood["id"], role="watcher", start="start")
        shown_before = _shown_by(connection, flood["id"])
        running = 0.0
        for number in range(-1, lab.amounts.loaded_rounds):
            for samples, sent in ((quiet, signal.SIGSTOP), (loaded, signal.SIGCONT)):
                os.kill(flood["pid"], sent)
                begin = time.monotonic()
                # One key for what was on its way.
                shell.echo(typist.key)
                for _ in range(lab.amounts.loaded_block):
                    time.sleep(typist.pause)
                    took = shell.echo(typist.key)
                    if number >= 0:
                        samples.figures.append(took)
                if sent == signal.SIGCONT:
                    running += time.monotonic() - begin
        os.kill(flood["pid"], signal.SIGSTOP)
        shown = _shown_by(connection, flood["id"]) - shown_before
        with patience():
            while "gap" not in watcher.events:
                watcher.read(1)
        gap = watcher.events["gap"]
        lost = gap["to"] - gap["from"]
        # A program that is stopped takes no signal but this.
        os.kill(flood["pid"], signal.SIGKILL)
    return Measured(
        value=loaded.percentile(99),
        floor=quiet.percentile(99),
        spread=loaded.spread,
        floor_spread=quiet.spread,
        n=len(loaded),
        note=f"p50 {loaded.median:.2f} ms, without the flood {quiet.median:.2f} ms; the other shell printed "
        f"{shown / running / 1e6:.0f} MB/s meanwhile; its watcher has lost {lost / 1e6:.0f} MB",
    )


def bulk(lab: Lab) -> Measured:
    """A terminal's output, from OPEN to END, beside a bare loop that reads one. More is better."""
    peers, absent = lab.multiplexers()
    with ExitStack() as stack:
        data = lab.path("lines.txt")
        if not os.path.exists(data):
            with open(data, "wb") as text:
                # Lines as a terminal has them: whoever draws them has nothing to complain of.
                text.write((b"x" * 62 + b"\r\n") * (_FILE_SIZE // 64))
        files = [data] * max(1, lab.amounts.term_bytes // _FILE_SIZE)
        size = _FILE_SIZE * len(files)
        guest = stack.enter_context(Guest(lab))
        connection = stack.enter_context(guest.connect())

        def bare() -> int:
            with Terminal([*_PRINT, *files]) as terminal:
                shown = terminal.read_all()
                if terminal.wait():
                    raise SubjectFailed("the program that prints has failed")
            return shown

        subjects = [
            Subject("floor", _rate(bare, size)),
            Subject("guestd", _rate(lambda: Shell(connection, [*_PRINT, *files]).read_to_end(), size)),
        ]
        shown: dict[str, int] = {}
        for peer in peers:
            try:
                terminal = stack.enter_context(peer.show([*_PRINT_AGAIN, *files]))
                subjects.append(Subject(peer.name, _drawn(peer.name, terminal, size, shown), optional=True))
            except (SubjectFailed, OSError) as error:
                absent[peer.name] = f"did not start: {error}"
        taken = interleave(subjects, rounds=lab.amounts.term_rounds, block=1)
    sent = " · ".join(f"{name} {theirs / 1e6:.1f}" for name, theirs in shown.items() if name in taken.samples)
    return Measured.of(
        taken,
        peers=[peer.name for peer in peers],
        absent=absent,
        note=f"of {size / 1e6:.1f} MB printed the clients were sent, in MB: {sent}" if sent else "",
    )


def _echo(lab: Lab, *, paced: bool) -> Measured:
    peers, absent = lab.multiplexers()
    amounts = lab.amounts
    with ExitStack() as stack:
        connection = stack.enter_context(stack.enter_context(Guest(lab)).connect())
        bare = stack.enter_context(Terminal(ECHO))
        with patience():
            bare.read_until(READY)
            shell = Shell(connection, ECHO)
            shell.read_until(READY)
        subjects = [
            Subject("floor", _key(bare.echo, paced=paced)),
            Subject("guestd", _key(shell.echo, paced=paced)),
        ]
        for peer in peers:
            try:
                terminal = _attached(lab, peer, stack)
                subjects.append(Subject(peer.name, _key(terminal.echo, paced=paced), optional=True))
            except (SubjectFailed, OSError) as error:
                absent[peer.name] = f"did not start: {error}"
        taken = interleave(
            subjects, rounds=amounts.echo_rounds if paced else amounts.rtt_rounds, block=amounts.echo_block
        )
    return Measured.of(
        taken,
        peers=[peer.name for peer in peers],
        absent=absent,
        note=f"p99 {taken['guestd'].percentile(99):.2f} ms, of the floor {taken['floor'].percentile(99):.2f} ms",
    )


def _attached(lab: Lab, peer: Multiplexer, stack: ExitStack) -> Terminal:
    """A client of that peer, in front of a program whose terminal is raw by now: not every one shows what was there
    before it came.
    """
    ready = os.path.join(lab.fresh_directory("ready"), "fifo")
    os.mkfifo(ready)
    argv = [_SH, "-c", 'stty raw -echo; echo > "$1"; exec cat', _SH, ready]
    terminal = stack.enter_context(peer.show(argv))
    with patience(), open(ready, "rb") as word:
        word.read()
    return terminal


def _key(echo_of: Callable[[bytes], float], *, paced: bool) -> Callable[[], float]:
    typist = Typist()

    def sample() -> float:
        if paced:
            time.sleep(typist.pause)
        with patience():
            return echo_of(typist.key)

    return sample


def _rate(run: Callable[[], int], size: int) -> Callable[[], float]:
    def sample() -> float:
        with patience():
            begin = time.perf_counter()
            got = run()
            took = time.perf_counter() - begin
        if got != size:
            raise SubjectFailed(f"{got} bytes came where the program printed {size}")
        return size / took / 1e6

    return sample


def _drawn(name: str, terminal: Terminal, size: int, shown: dict[str, int]) -> Callable[[], float]:
    """From the key that starts it to the mark behind the last line, on the client's terminal."""
    numbers = iter(range(10**6))

    def sample() -> float:
        word = f"round-{next(numbers)}".encode()
        with patience():
            begin = time.perf_counter()
            terminal.type(word + b"\n")
            shown[name] = terminal.read_until(word + b"-is-done")
            return size / (time.perf_counter() - begin) / 1e6

    return sample


def _fill(connection: Connection, other: int) -> None:
    """Take what comes without giving credit for it, until the sender has no more than is too little for a frame."""
    while connection.outstanding(other) >= DATA_LIMIT:
        frame = connection.frame()
        if frame.kind is Kind.DATA:
            connection.pass_on(frame, withhold=True)


def _shown_by(connection: Connection, shell: str) -> int:
    """How many bytes that shell has printed so far."""
    jobs = connection.ask({"op": "ps"})["jobs"]
    return next(job["bytes"] for job in jobs if job["id"] == shell)
