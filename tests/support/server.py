"""A real `guestd serve` for a test: on its own sockets, ready when the test begins, ended in order.

Readiness comes over NOTIFY_SOCKET, as a service manager would hear it, so nothing here polls or sleeps. The
end is part of the test: SIGTERM must make it exit 0, and what it logged is shown when it did not.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import guestd

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

#: Far above what either takes (tens of milliseconds): a hang is to become a failure with the log in it.
READY_SECONDS = 30
STOP_SECONDS = 30


@dataclass
class Server:
    """A running guestd. `addresses` in the order they were asked for; `directory` is private to it."""

    process: subprocess.Popen[bytes]
    addresses: tuple[str, ...]
    directory: Path
    #: What it said over NOTIFY_SOCKET up to READY=1.
    notified: list[str] = field(default_factory=list[str])
    crashed: bool = False

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def path(self) -> str:
        """The path of its first Unix socket."""
        return next(each for each in self.addresses if each.startswith("unix:")).removeprefix("unix:")

    @property
    def log(self) -> str:
        """What it has written on stdout and stderr so far."""
        return (self.directory / "log").read_text(errors="replace")

    def kill(self) -> None:
        """What a crash would do: no warning, no order. The fixture then asks nothing more of it."""
        self.crashed = True
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status. More than once does no harm."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            text = f"guestd did not end {STOP_SECONDS} s after SIGTERM; its log:\n{self.log}"
            raise AssertionError(text) from None


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on, and each once. It is none of those that the kernel gives to
    who connects, or takes any: before it is listened on nobody gets it by chance.
    """
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _ports() -> Generator[int]:
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low, high = map(int, file.read().split())
    ports = [port for port in range(10_000, 65_536) if not low <= port <= high] or list(range(low, high + 1))
    # Another suite on this machine begins elsewhere.
    at = int.from_bytes(os.urandom(4), "little")
    while True:
        yield ports[at % len(ports)]
        at += 1


_PORTS = _ports()


@contextlib.contextmanager
def serving(
    *listen: str,
    config: str | None = None,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    expected_status: int | None = 0,
) -> Generator[Server]:
    """Run `guestd serve` around a block.

    `listen`: addresses; `{}` in one stands for the private directory. Without any: one Unix socket.
    `config`: the text of a config file. `environment`: variables added to a small environment.
    `prefix`: a command that executes what follows it, to start guestd as somebody else. `pass_fds`: what it inherits.
    `expected_status`: what it must exit with after SIGTERM; None for a test that ends it in its own way.
    """
    with contextlib.ExitStack() as undo:
        # Short, because a socket's path has at most 107 bytes and pytest's own directories can be longer.
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="guestd-")))
        addresses = tuple(each.replace("{}", str(directory)) for each in listen or ("unix:{}/guestd.sock",))
        flags = [part for each in addresses for part in ("--listen", each)]
        if config is not None:
            (directory / "guestd.toml").write_text(config)
            flags += ["--config", str(directory / "guestd.toml")]
        notify = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
        notify.bind(str(directory / "notify"))
        log = undo.enter_context((directory / "log").open("wb"))
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "guestd", "serve", *flags, *arguments],
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=_environment(directory, environment or {}),
            start_new_session=True,  # a Ctrl+C at pytest is pytest's; guestd is then stopped by this fixture
        )
        undo.callback(_end, process)
        server = Server(process, addresses, directory)
        _wait_ready(server, notify)
        yield server
        status = server.stop()
        if expected_status is not None and not server.crashed:
            assert status == expected_status, f"guestd exited {status} after SIGTERM; its log:\n{server.log}"


@pytest.fixture
def guestd_server() -> Iterator[Server]:
    """One guestd on a Unix socket, for one test."""
    with serving() as server:
        yield server


def _environment(directory: Path, more: Mapping[str, str]) -> dict[str, str]:
    # Only what a program needs: a variable of the developer's (OTEL_…, GUESTD_…) must not decide a test.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    # The server is the guestd that this test has imported, be it from a checkout or from an installed wheel.
    kept["PYTHONPATH"] = str(Path(guestd.__file__).resolve().parents[1])
    return {
        **kept,
        "GUESTD_RUNTIME_DIR": str(directory),
        "NOTIFY_SOCKET": str(directory / "notify"),
        "PYTHONWARNINGS": "error",
        **more,
    }


def _wait_ready(server: Server, notify: socket.socket) -> None:
    pidfd = os.pidfd_open(server.pid)
    try:
        while "READY=1" not in server.notified:
            ready, _, _ = select.select([notify, pidfd], [], [], READY_SECONDS)
            if notify in ready:
                server.notified += notify.recv(65536).decode().splitlines()
            else:
                what = (
                    f"ended with {server.process.wait()}"
                    if ready
                    else f"was not READY after {READY_SECONDS} s"
                )
                raise AssertionError(f"guestd {what}; its log:\n{server.log}")
    finally:
        os.close(pidfd)


def _end(process: subprocess.Popen[bytes]) -> None:
    # Only after a failed test is it still there. In order first, so that its own children do not outlive it.
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
