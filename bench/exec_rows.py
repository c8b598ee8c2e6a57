"""Commands: how long the shortest takes, what identity, load and the client library cost, and how fast
output flows.
"""

from __future__ import annotations

import os
import pwd
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.floors import TRUE, CopyLoop, spawn_true
from bench.guest import Guest
from bench.measure import Samples, Subject, SubjectFailed, interleave, steady, timed
from bench.report import Measured
from guestd.wire.frames import DATA_LIMIT, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.client import Connection
    from bench.lab import Lab
    from bench.peers import Peer

_CAT = "/bin/cat"
#: How many commands it may take to see a channel start or stop. It takes one or two to start, about ten to stop.
_SETTLING = 1000
_FILE_SIZE = 4 * 1024 * 1024


def rtt(lab: Lab) -> Measured:
    """`exec true` over a warm connection, beside every peer that runs."""
    peers, absent = lab.peers()
    with Guest(lab) as guest, guest.connect() as connection:
        taken = interleave(
            [
                Subject("floor", timed(spawn_true)),
                Subject("guestd", timed(lambda: connection.run(connection.command([TRUE])))),
                *(Subject(peer.name, _timed_true(peer), optional=True) for peer in peers),
            ],
            rounds=lab.amounts.rtt_rounds,
            block=lab.amounts.rtt_block,
        )
    return Measured.of(taken, peers=[peer.name for peer in peers], absent=absent)


def rtt_user(lab: Lab) -> Measured:
    """The same as another user, in another directory, with another umask."""
    if os.geteuid() != 0:
        raise SubjectFailed("needs root: only root may start a command as another user")
    user = pwd.getpwnam("nobody").pw_name
    with Guest(lab) as guest, guest.connect() as connection:

        def as_user() -> int:
            return connection.run(connection.command([TRUE], user=user, cwd="/usr", umask=0o077))

        taken = interleave(
            [
                Subject("floor", timed(spawn_true)),
                Subject("guestd", timed(as_user)),
                Subject("plain", timed(lambda: connection.run(connection.command([TRUE])))),
            ],
            rounds=lab.amounts.rtt_rounds,
            block=lab.amounts.rtt_block,
        )
    extra = taken["guestd"].median - taken["plain"].median
    return Measured.of(taken, note=f"identity adds {extra * 1e3:.0f} µs to exec.rtt of the same rounds")


def rtt_loaded(lab: Lab) -> Measured:
    """p99 of the same while another channel of the connection prints as fast as it can; the floor is p99
    while that channel is held by its credit.
    """
    quiet, loaded = Samples(), Samples()
    flowed, flowing = 0, 0.0
    with Guest(lab) as guest, guest.connect() as connection, steady():
        other = connection.open(connection.command([_CAT, "/dev/zero"], kill_on_disconnect=True))
        for number in range(-1, lab.amounts.loaded_rounds):
            for samples, withhold in ((quiet, True), (loaded, False)):
                connection.release(other)
                _settle(connection, other, withhold=withhold)
                for _ in range(lab.amounts.loaded_block):
                    took, passed = _true_beside(connection, other, withhold=withhold)
                    if number >= 0:
                        samples.figures.append(took * 1e3)
                    if not withhold:
                        flowed, flowing = flowed + passed, flowing + took
    return Measured(
        value=loaded.percentile(99),
        floor=quiet.percentile(99),
        spread=loaded.spread,
        floor_spread=quiet.spread,
        n=len(loaded),
        note=f"p50 {loaded.median:.2f} ms, held {quiet.median:.2f} ms; "
        f"{flowed / flowing / 1e6:.0f} MB/s of the other channel came meanwhile",
    )


def bulk(lab: Lab) -> Measured:
    """Stdout of a command, beside a copy loop and every peer that is made for it. More is better."""
    peers, absent = lab.peers()
    with ExitStack() as stack:
        data = lab.path("bulk.txt")
        if not os.path.exists(data):
            with open(data, "wb") as text:
                # Plain text, or peers whose answer is JSON would be measured at escaping.
                text.write((b"x" * 63 + b"\n") * (_FILE_SIZE // 64))
        loop = CopyLoop(lab)
        stack.callback(loop.stop)
        guest = stack.enter_context(Guest(lab))
        connection = stack.enter_context(guest.connect())
        argv = _cat(data, lab.amounts.bulk_bytes)
        size = _FILE_SIZE * (len(argv) - 1)
        subjects = [
            Subject("floor", lambda: loop.rate(argv, size)),
            Subject("guestd", _rate(lambda: connection.run(connection.command(argv)), size)),
        ]
        for peer in peers:
            if peer.bulk_limit == 0:
                absent[peer.name] = peer.bulk_absent
                continue
            theirs = _cat(data, min(lab.amounts.bulk_bytes, peer.bulk_limit))
            subjects.append(Subject(peer.name, _peer_rate(peer, theirs), optional=True))
        taken = interleave(subjects, rounds=lab.amounts.bulk_rounds, block=1)
    return Measured.of(taken, peers=[peer.name for peer in peers], absent=absent)


def _settle(connection: Connection, other: int, *, withhold: bool) -> None:
    """Wait until the other channel flows, or has used up its credit: what is in between belongs to neither."""
    for _ in range(_SETTLING):
        _, passed = _true_beside(connection, other, withhold=withhold)
        # A sender may leave over what is too little for one of its frames.
        still = passed == 0 and connection.outstanding(other) < DATA_LIMIT
        if still if withhold else passed:
            return
    raise SubjectFailed(
        f"the channel that makes the load does not use its credit, {_SETTLING} commands later"
    )


def _true_beside(connection: Connection, other: int, *, withhold: bool) -> tuple[float, int]:
    begin = time.perf_counter()
    channel = connection.open(connection.command([TRUE]))
    passed = 0
    while True:
        frame = connection.frame()
        if frame.channel == channel:
            if frame.kind in {Kind.END, Kind.REJECT, Kind.RESET}:
                took = time.perf_counter() - begin
                connection.finish(frame)
                return took, passed
        elif frame.kind is Kind.DATA:
            passed += connection.pass_on(frame, withhold=withhold)
        elif frame.channel == other and frame.kind in {Kind.END, Kind.REJECT, Kind.RESET}:
            connection.finish(frame)
            raise SubjectFailed("the command that makes the load has ended")


def _cat(path: str, size: int) -> list[str]:
    return [_CAT, *([path] * max(1, size // _FILE_SIZE))]


def _rate(run: Callable[[], int], size: int) -> Callable[[], float]:
    def sample() -> float:
        begin = time.perf_counter()
        got = run()
        took = time.perf_counter() - begin
        if got != size:
            raise SubjectFailed(f"{got} bytes came where the command printed {size}")
        return size / took / 1e6

    return sample


def _peer_rate(peer: Peer, argv: Sequence[str]) -> Callable[[], float]:
    return _rate(lambda: peer.run(argv), _FILE_SIZE * (len(argv) - 1))


def _timed_true(peer: Peer) -> Callable[[], float]:
    return timed(lambda: peer.run([TRUE]))
