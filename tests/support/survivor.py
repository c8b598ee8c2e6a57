"""`guestd init` with a real `guestd serve` under it, for tests that kill the latter."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import guestd
from guestd.client import connect
from guestd.errors import ConnectionLost, ShuttingDown, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from guestd.client import Client

#: Far above what a restart takes.
SECONDS = 30.0


@dataclass
class Survivor:
    """The one that stays. `address` is its socket, which no death of serve closes."""

    process: subprocess.Popen[bytes]
    address: str
    directory: Path

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[Client]:
        """A connection, however often serve dies, or makes room, while one is being made: from then on it is the
        caller's to lose.
        """
        async with contextlib.AsyncExitStack() as stack:
            due = trio.current_time() + SECONDS
            while True:
                try:
                    client = await stack.enter_async_context(connect(self.address, timeout=SECONDS))
                    break
                except (ConnectionLost, Unavailable, ShuttingDown):
                    if trio.current_time() > due:
                        raise
                    await trio.lowlevel.checkpoint()
            yield client

    async def ask(self) -> dict[str, Any]:
        """What serve says of itself, whichever it is by now."""
        while True:
            try:
                async with self.connected() as client:
                    return await client.status()
            except ConnectionLost:
                continue

    async def kill_serve(self) -> int:
        """Kill it with -9; returns the generation that died."""
        found = await self.ask()
        with contextlib.suppress(ProcessLookupError):
            os.kill(found["pid"], signal.SIGKILL)
        return int(found["generation"])

    def serve_pid(self) -> int | None:
        """The child of PID 1 that is serve, ready or not; None while there is none."""
        # What a serve that was killed was about to start looks like it until it executes its program, and is PID 1's
        # child by then.
        started = self.log
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            for word in file.read().split():
                with contextlib.suppress(OSError), open(f"/proc/{word}/cmdline", "rb") as command:
                    if b"serve" in command.read().split(b"\0") and re.search(
                        rf"started serve, pid {word}\b", started
                    ):
                        return int(word)
        return None

    async def upgrade(self) -> int:
        """Have it replaced in order; returns the generation that went."""
        async with self.connected() as client:
            return int((await client.upgrade())["generation"])

    async def next_after(self, generation: int) -> dict[str, Any]:
        """What the serve after that generation says of itself."""
        with trio.fail_after(SECONDS):
            while (found := await self.ask())["generation"] <= generation:
                await trio.lowlevel.checkpoint()
        return found


@contextlib.contextmanager
def surviving(config: str = "", path: str = "") -> Generator[Survivor]:
    """Run it around a block; at its end it must end in order. `path`: where Python looks for modules first."""
    with tempfile.TemporaryDirectory(prefix="guestd-") as name:
        directory = Path(name)
        (directory / "guestd.toml").write_text(config)
        address = f"unix:{directory}/guestd.sock"
        environment = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        environment |= {
            "PYTHONPATH": ":".join(filter(None, (path, str(Path(guestd.__file__).resolve().parents[1])))),
            "GUESTD_RUNTIME_DIR": name,
            "PYTHONWARNINGS": "error",
        }
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "guestd", "init", "--listen", address, "--config", f"{directory}/guestd.toml"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=name, env=environment,
                start_new_session=True,
            )  # fmt: skip
        survivor = Survivor(process, address, directory)
        try:
            yield survivor
            process.terminate()
            assert process.wait(SECONDS) == 0, survivor.log
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
