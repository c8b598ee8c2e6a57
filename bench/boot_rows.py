"""How soon `guestd init` lets a host connect, and how soon what it starts is READY."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from bench.floors import import_only, nothing
from bench.guest import environment, settings_file
from bench.measure import Subject, SubjectFailed, interleave, patience, timed
from bench.report import Measured

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from bench.lab import Lab

#: What it says when anybody may connect, and when serve has taken over.
_LISTENING, _READY = b"listening on", b"serve is ready"


def listening(lab: Lab) -> Measured:
    """From exec of `guestd init` until a connection is taken."""
    return _measure(lab, _LISTENING, lambda: nothing(lab.environment))


def ready(lab: Lab) -> Measured:
    """From exec of `guestd init` until the serve that it has started is READY."""
    return _measure(lab, _READY, lambda: import_only(lab.environment))


def _measure(lab: Lab, word: bytes, floor: Callable[[], None]) -> Measured:
    taken = interleave(
        [Subject("floor", timed(floor)), Subject("guestd", lambda: _boot(lab, word))],
        rounds=lab.amounts.boot_rounds,
        block=1,
    )
    return Measured(
        value=taken["guestd"].median,
        floor=taken["floor"].median,
        spread=taken["guestd"].spread,
        floor_spread=taken["floor"].spread,
        n=len(taken["guestd"]),
        note="as an ordinary process, with its console on a pipe",
    )


def _boot(lab: Lab, word: bytes) -> float:
    """One boot, to its end; in milliseconds until `word` was said."""
    directory = tempfile.mkdtemp(prefix="init-", dir=lab.path(""))
    address = os.path.join(directory, "s")
    argv = [
        sys.executable, "-P", "-m", "guestd", "init", "--listen", f"unix:{address}",
        "--config", settings_file(directory),
    ]  # fmt: skip
    begin = time.perf_counter()
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=environment(lab, directory), start_new_session=True,
    ) as process, patience():  # fmt: skip
        assert process.stderr is not None
        try:
            _until(process.stderr, word)
            took = time.perf_counter() - begin
            with socket.socket(socket.AF_UNIX) as probe:
                # What it has said must be so.
                probe.connect(address)
            if word != _READY:
                _until(process.stderr, _READY)
        finally:
            process.terminate()
            # Read to its end, lest it waits for a reader of its last words.
            process.stderr.read()
    shutil.rmtree(directory, ignore_errors=True)
    return took * 1e3


def _until(console: IO[bytes], word: bytes) -> None:
    said: list[bytes] = []
    for line in console:
        if word in line:
            return
        said.append(line.strip())
    raise SubjectFailed(f"guestd init never said {word.decode()!r}: {b' / '.join(said)[-400:].decode()}")
