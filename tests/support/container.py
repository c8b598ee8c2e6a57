"""A container for a test: started, read, asked and stopped as its user would, and gone without a trace at the end.

Its /run/guestd is a directory of the test's, so that guestd's socket is reached as on any machine, with no program of
the image between. What it says is read as it comes: a test waits for a line, or for the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from tests.support.engine import Engine

#: Far above what anything takes: a hang is to become a failure that shows what was said.
SECONDS = 60.0
READY = "READY, listening"


@dataclass
class Container:
    """One that was started. `socket` is guestd's, as seen from here."""

    engine: Engine
    name: str
    process: subprocess.Popen[bytes]
    socket: str
    lines: list[str] = field(default_factory=list[str])
    _rest: bytes = b""

    def wait_for(self, text: str) -> str:
        """The line that has `text`, as soon as it has been said."""
        read = 0
        while True:
            for line in self.lines[read:]:
                if text in line:
                    return line
            read = len(self.lines)
            assert self._more(), f"it ended and had not said {text!r}; it said:\n" + "\n".join(self.lines)

    def wait(self) -> int:
        """How it ended; all that it said is in `lines` then."""
        while self._more():
            pass
        return self.process.wait(SECONDS)

    def _more(self) -> bool:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        assert ready, f"nothing was said for {SECONDS:.0f} s after:\n" + "\n".join(self.lines[-40:])
        data = os.read(self.process.stdout.fileno(), 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode(errors="replace").rstrip("\r") for line in lines]
        return bool(data)

    def guestctl(self, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "guestd.ctl", "--to", f"unix:{self.socket}", *arguments],
            input=input, capture_output=True, check=False, timeout=SECONDS,
        )  # fmt: skip

    def output(self, *argv: str) -> str:
        """What a command in it prints; it must end well."""
        done = self.guestctl("exec", "--", *argv)
        assert (done.returncode, done.stderr) == (0, b""), (argv, done)
        return done.stdout.decode()

    def stop(self) -> int:
        """`docker stop`, with the time that guestd asks for."""
        self.engine("stop", "--time", "30", self.name)
        return self.wait()


@contextlib.contextmanager
def running(
    engine: Engine, image: str, *words: str, options: Sequence[str] = (), until: str = READY
) -> Generator[Container]:
    """`docker run IMAGE WORDS…`, from the time that it has said `until` ("" waits for nothing)."""
    name = f"guestd-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="guestd-container-") as directory:
        os.chmod(directory, 0o777)
        argv = ["run", "--name", name, "--network=none", "--volume", f"{directory}:/run/guestd", *options]
        process = subprocess.Popen(
            engine.command(*argv, image, *words), env=engine.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        container = Container(engine, name, process, f"{directory}/guestd.sock")
        try:
            if until:
                container.wait_for(until)
            yield container
        finally:
            shims = _shims()
            engine.run("rm", "--force", name)
            process.wait(SECONDS)
            assert process.stdout is not None
            process.stdout.close()
            _wait_for_the_end(shims)


def _shims() -> list[int]:
    """Descriptors of the engine's helpers, one for each container: they end a little later than it."""
    found: list[int] = []
    for word in os.listdir("/proc"):
        if word.isdecimal():
            with contextlib.suppress(OSError):
                if b"containerd-shim" in Path(f"/proc/{word}/cmdline").read_bytes():
                    found.append(os.pidfd_open(int(word)))
    return found


def _wait_for_the_end(pidfds: list[int]) -> None:
    for fd in pidfds:
        ended, _, _ = select.select([fd], [], [], SECONDS)
        os.close(fd)
        assert ended, "a container's helper of the engine did not end"
