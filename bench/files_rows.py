"""Files: how fast the content of one is read and written. `guestctl cp` adds its own reading, writing and digest."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.floors import CopyLoop
from bench.guest import Guest
from bench.measure import Subject, SubjectFailed, interleave
from bench.report import Measured
from guestd.wire.frames import DATA_LIMIT, Kind, data_head, encode
from guestd.wire.messages import pack, unpack

if TYPE_CHECKING:
    from bench.client import Connection
    from bench.lab import Lab
    from bench.measure import Taken

_PIECE = bytes(DATA_LIMIT)


def read(lab: Lab) -> Measured:
    """A file's content, from OPEN to END; beside the copy loop, which has `cat` read it."""
    size = lab.amounts.bulk_bytes
    with ExitStack() as stack:
        path = _file(lab, size)
        loop = CopyLoop(lab)
        stack.callback(loop.stop)
        guest = stack.enter_context(Guest(lab))
        connection = stack.enter_context(guest.connect())
        subjects = [
            Subject("floor", lambda: loop.rate(["/bin/cat", path], size)),
            Subject("guestd", lambda: _read(connection, path, size, "none")),
            Subject("with sha256", lambda: _read(connection, path, size, "sha256")),
        ]
        return _compared(interleave(subjects, rounds=lab.amounts.bulk_rounds, block=1))


def write(lab: Lab) -> Measured:
    """A file's content, from OPEN to END, not synced; beside a copy of such a file in this process."""
    size = lab.amounts.bulk_bytes
    with ExitStack() as stack:
        path = _file(lab, size)
        guest = stack.enter_context(Guest(lab))
        connection = stack.enter_context(guest.connect())
        target = lab.path("written")
        subjects = [
            Subject("floor", lambda: _copy(path, target, size)),
            Subject("guestd", lambda: _write(connection, target, size, "none")),
            Subject("with sha256", lambda: _write(connection, target, size, "sha256")),
        ]
        return _compared(interleave(subjects, rounds=lab.amounts.bulk_rounds, block=1))


def _file(lab: Lab, size: int) -> str:
    path = lab.path("content")
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.writelines(_PIECE for _ in range(0, size, len(_PIECE)))
            file.truncate(size)
            # Blocks of zeros, not holes, which would be skipped; and not on their way to the disk while it is measured.
            os.fsync(file.fileno())
    return path


def _read(connection: Connection, path: str, size: int, digest: str) -> float:
    begin = time.perf_counter()
    connection.open({"op": "read", "path": path, "digest": digest})
    got = 0
    while True:
        frame = connection.frame()
        if frame.kind is Kind.DATA:
            got += connection.pass_on(frame)
        elif frame.kind is not Kind.ACCEPT:
            connection.finish(frame, status=None)
            break
    took = time.perf_counter() - begin
    if got != size:
        raise SubjectFailed(f"{got} bytes came of a file of {size}")
    return size / took / 1e6


def _write(connection: Connection, path: str, size: int, digest: str) -> float:
    begin = time.perf_counter()
    channel = connection.open({"op": "write", "path": path, "digest": digest, "sync": False})
    credit, sent = connection.hello.window, 0
    while True:
        while credit and sent < size:
            piece = memoryview(_PIECE)[: min(credit, size - sent)]
            connection._socket.sendmsg([data_head(channel, 0, sent, len(piece)), piece])
            sent += len(piece)
            credit -= len(piece)
            if sent == size:
                end = {"event": "eof", "offset": size}
                connection._socket.sendall(encode(Kind.EVENT, channel, pack(end)))
        frame = connection.frame()
        if frame.kind is Kind.CREDIT:
            credit += unpack(frame)["bytes"]
        elif frame.kind is not Kind.ACCEPT:
            connection.finish(frame, status=None)
            return size / (time.perf_counter() - begin) / 1e6


def _copy(source: str, target: str, size: int) -> float:
    begin = time.perf_counter()
    with open(source, "rb", buffering=0) as given, open(f"{target}.new", "wb", buffering=0) as made:
        while data := given.read(DATA_LIMIT):
            made.write(data)
    os.rename(f"{target}.new", target)
    return size / (time.perf_counter() - begin) / 1e6


def _compared(taken: Taken) -> Measured:
    hashed = taken["with sha256"].median
    return Measured.of(taken, note=f"{hashed:.0f} with a sha256 of it")
