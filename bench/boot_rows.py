"""How soon `guestd init` lets a host connect, and how soon `guestd serve` is READY, alone or started by it."""

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
from bench.guest import Guest, environment, settings_file
from bench.measure import Subject, SubjectFailed, interleave, patience, timed
from bench.report import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO

    from bench.lab import Lab

#: What it says when anybody may connect, and when serve has taken over.
_LISTENING, _READY = b"listening on", b"serve is ready"


_ON_A_PIPE = "as an ordinary process, with its console on a pipe"


def listening(lab: Lab) -> Measured:
    """From exec of `guestd init` until a connection is taken."""
    return _measure(lab, lambda: _boot(lab, _LISTENING), nothing, _ON_A_PIPE)


def ready(lab: Lab) -> Measured:
    """From exec of `guestd init` until the serve that it has started is READY."""
    return _measure(lab, lambda: _boot(lab, _READY), import_only, _ON_A_PIPE)


def serve(lab: Lab) -> Measured:
    """From exec of `guestd serve` to READY=1."""

    def boot() -> float:
        with Guest(lab) as guest:
            return guest.ready_after

    return _measure(lab, boot, import_only, "measured from exec of `guestd serve`")


def _measure(
    lab: Lab, boot: Callable[[], float], floor: Callable[[Mapping[str, str]], None], note: str
) -> Measured:
    taken = interleave(
        [Subject("floor", timed(lambda: floor(lab.environment))), Subject("guestd", boot)],
        rounds=lab.amounts.boot_rounds,
        block=1,
    )
    return Measured.of(taken, note=note)


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
