"""What is passed on: bytes of a relay, and of a connection forwarded into the guest."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.guest import Guest
from bench.measure import Subject, SubjectFailed, interleave
from bench.programs import Program, accepts
from bench.report import Measured
from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.client import Connection
    from bench.lab import Lab

_BUFFER = 1024 * 1024
_SOCAT = "socat"


def relay_bulk(lab: Lab) -> Measured:
    """From a program behind a relay, over Unix sockets, beside a bare loop and socat."""
    with ExitStack() as stack:
        directory = lab.fresh_directory("relay")
        near, far = os.path.join(directory, "near"), _source(lab, stack, directory)
        stack.enter_context(Guest(lab, config=f'[relay.bulk]\nlisten = "unix:{near}"\nto = "unix:{far}"\n'))
        return _compared(lab, stack, directory, far, lambda size: _read(near, size))


def forward_bulk(lab: Lab) -> Measured:
    """From a program in the guest, over a channel of the native protocol, beside the same."""
    with ExitStack() as stack:
        directory = lab.fresh_directory("forward")
        far = _source(lab, stack, directory)
        guest = stack.enter_context(Guest(lab))
        connection = stack.enter_context(guest.connect())
        return _compared(lab, stack, directory, far, lambda size: _forwarded(connection, far, size))


def _compared(
    lab: Lab, stack: ExitStack, directory: str, far: str, passed: Callable[[int], None]
) -> Measured:
    size = lab.amounts.bulk_bytes
    bare = os.path.join(directory, "bare")
    _start(lab, stack, [sys.executable, "-P", "-m", "bench.passer", bare, far], bare)
    subjects = [
        Subject("floor", _rate(lambda: _read(bare, size), size)),
        Subject("guestd", _rate(lambda: passed(size), size)),
    ]
    absent: dict[str, str] = {}
    program = shutil.which(_SOCAT)
    if program is None or not lab.with_peers:
        absent[_SOCAT] = "not installed: apt-get install socat" if program is None else "not asked for"
    else:
        theirs = os.path.join(directory, "socat")
        _start(
            lab, stack, [program, "-b", "262144", f"UNIX-LISTEN:{theirs},fork", f"UNIX-CONNECT:{far}"], theirs
        )
        subjects.append(Subject(_SOCAT, _rate(lambda: _read(theirs, size), size), optional=True))
    taken = interleave(subjects, rounds=lab.amounts.bulk_rounds, block=1)
    return Measured.of(taken, peers=[_SOCAT], absent=absent)


def _source(lab: Lab, stack: ExitStack, directory: str) -> str:
    path = os.path.join(directory, "far")
    _start(lab, stack, [sys.executable, "-P", "-m", "bench.source", path], path)
    return path


def _start(lab: Lab, stack: ExitStack, argv: list[str], path: str) -> None:
    program = Program(argv, log=f"{path}.log", env=lab.environment)
    stack.callback(program.stop)
    program.wait_until(lambda: os.path.exists(path) and accepts(path)())


def _read(path: str, size: int) -> None:
    buffer = bytearray(_BUFFER)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(size.to_bytes(8))
        got = 0
        while received := sock.recv_into(buffer):
            got += received
    _check(got, size)


def _forwarded(connection: Connection, far: str, size: int) -> None:
    channel = connection.open({"op": "forward", "to": f"unix:{far}"})
    connection.send(channel, 0, 0, size.to_bytes(8))
    got = 0
    while True:
        frame = connection.frame()
        if frame.kind is Kind.DATA:
            got += connection.pass_on(frame)
        elif frame.kind is Kind.EVENT:
            connection.end(channel, 8)
        elif frame.kind in {Kind.END, Kind.REJECT, Kind.RESET}:
            connection.finish(frame, status=None)
            _check(got, size)
            return


def _check(got: int, size: int) -> None:
    if got != size:
        raise SubjectFailed(f"{got} bytes came where {size} were sent")


def _rate(run: Callable[[], None], size: int) -> Callable[[], float]:
    def sample() -> float:
        begin = time.perf_counter()
        run()
        return size / (time.perf_counter() - begin) / 1e6

    return sample
