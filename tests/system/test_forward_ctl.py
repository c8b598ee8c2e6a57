"""guestctl forward, as a person has it: listeners on this side, programs in the guest, and what becomes of both when
anything between them goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.support.life import serving
from tests.support.passing import PATIENCE, Program, abort, connected, count, echo, is_reset, read_all
from tests.support.peer import Peer
from tests.support.relay import Relay
from tests.support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


class Forwarding:
    """`guestctl --json forward`, with every listener it has told of."""

    def __init__(self, address: str, *specs: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "guestd.ctl", "--to", address, "--json", "forward", *specs],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
        self.ports = [self._listening() for _ in specs if not _.startswith("-") and not _.isdecimal()]

    def _listening(self) -> int | str:
        local: str = self.event("listening")["local"]
        return local.removeprefix("unix:") if local.startswith("unix:") else int(local.rpartition(":")[2])

    def event(self, name: str) -> dict[str, Any]:
        """The next one of that name."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            found: dict[str, Any] = json.loads(line)
            if found["event"] == name:
                return found
        raise AssertionError(f"no {name}; {self.process.communicate()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        if self.process.returncode == -signal.SIGKILL:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        try:
            _, said = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        if kind is None:
            assert (self.process.returncode, said) == (0, b"")


def test_several_at_once_each_to_its_own_and_a_port_of_its_own_choice(server: Server, tmp_path: Path) -> None:
    with Program(echo) as one, Program(count, str(tmp_path / "s")) as other:
        specs = (
            f"0:{one.port}",
            f"unix:{tmp_path}/local:{other.address}",
            f"127.0.0.1:0:127.0.0.1:{one.port}",
        )
        with Forwarding(server.address, *specs) as forwarding:
            assert (os.stat(tmp_path / "local").st_mode & 0o777) == 0o600
            answers = (b"x" * 300_000, b"300000", b"x" * 300_000)
            for port, answer in zip(forwarding.ports, answers, strict=True):
                for _ in range(3):
                    with connected(port) as sock:
                        sock.sendall(b"x" * 300_000)
                        sock.shutdown(socket.SHUT_WR)
                        assert read_all(sock) == answer
        assert not (tmp_path / "local").exists()


def test_a_person_reads_where_it_listens_and_what_is_wrong_once(server: Server) -> None:
    port, wrong = free_port(), free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "guestd.ctl", "--to", server.address, "forward", f"{port}:{wrong}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"127.0.0.1:{port} -> localhost:{wrong}\n"
        for _ in range(3):
            with connected(port) as sock:
                assert is_reset(sock)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert said == (
        f"guestctl: 127.0.0.1:{port}: cannot connect to tcp:localhost:{wrong}: nobody listens there (ECONNREFUSED)\n"
    )


def test_ends_and_breaks_are_what_they_are(server: Server) -> None:
    def half(sock: socket.socket) -> None:
        sock.sendall(b"half")
        abort(sock) if sock.recv(4) == b"stop" else echo(sock)

    with Program(half) as program, Forwarding(server.address, f"0:{program.port}") as forwarding:
        with connected(forwarding.ports[0]) as sock:
            sock.sendall(b"stop")
            assert is_reset(sock)
        with connected(forwarding.ports[0]) as sock:
            assert sock.recv(4) == b"half"
            sock.sendall(b"more")
            sock.sendall(b"!!")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"!!"


def test_a_local_program_that_breaks_off_breaks_it_for_the_guests(server: Server) -> None:
    broke: list[bool] = []
    heard = threading.Semaphore(0)

    def listen(sock: socket.socket) -> None:
        assert sock.recv(1)
        heard.release()
        broke.append(is_reset(sock))

    with Program(listen) as program:
        with Forwarding(server.address, f"0:{program.port}") as forwarding:
            sock = socket.create_connection(("127.0.0.1", int(forwarding.ports[0])))
            sock.sendall(b"x")
            assert heard.acquire(timeout=PATIENCE)
            abort(sock)
            # And the death of guestctl itself, with a connection open.
            with connected(forwarding.ports[0]) as open_one:
                open_one.sendall(b"y")
                assert heard.acquire(timeout=PATIENCE)
                forwarding.kill()
                assert is_reset(open_one), "a killed guestctl looked like an end"
        with Peer(server.address) as peer:
            while peer.ask("status")["forwards"]["open"]:
                pass
    assert broke == [True, True]


def test_the_guest_is_lost_and_found_again(server: Server, tmp_path: Path) -> None:
    with (
        Program(echo) as program,
        Relay(tmp_path / "r", server.path) as relay,
        Forwarding(relay.address, f"0:{program.port}") as forwarding,
    ):
        with connected(forwarding.ports[0]) as sock:
            sock.sendall(b"before")
            assert sock.recv(6) == b"before"
            relay.cut()
            assert is_reset(sock)
        assert forwarding.event("lost")["code"] == "lost"
        with connected(forwarding.ports[0]) as sock:
            # It waits for the guest.
            sock.sendall(b"after")
            relay.mend()
            assert forwarding.event("again")
            assert sock.recv(5) == b"after"


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["web"], "argument LOCAL:GUEST: 'web': 'web' is no port; write PORT, PORT:PORT"),
        ([], "the following arguments are required: LOCAL:GUEST"),
        (["0:1", "--", "x"], "forward takes nothing behind --"),
    ],
)
def test_lines_that_cannot_be_meant(server: Server, specs: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guestd.ctl", "--to", server.address, "forward", *specs],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert said in done.stderr


def test_a_port_that_is_taken_and_a_guest_that_is_not_there(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for address, spec, said in (
            (
                server.address,
                f"{port}:1",
                f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another",
            ),
            ("unix:/nowhere", "0:1", "cannot reach unix:/nowhere"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "guestd.ctl", "--to", address, "forward", spec],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 125
            assert said in done.stderr
            assert "Traceback" not in done.stderr


def abort_when_asked(sock: socket.socket) -> None:
    sock.recv(1)
    abort(sock)


async def test_the_library_gives_a_stream(server: Server) -> None:
    import trio

    from guestd.client import connect
    from guestd.errors import BrokenOff, Refused

    with Program(echo) as program, Program(abort_when_asked) as breaker:
        async with connect(server.address) as client:
            async with await client.forward(program.address) as stream:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, b"x" * 3_000_000)
                    size = 0
                    while size < 3_000_000:
                        size += len(await stream.receive_some(100_000))
                await stream.send_eof()
                assert await stream.receive_some() == b""
            with pytest.raises(Refused):
                await client.forward(f"tcp:127.0.0.1:{free_port()}")
            broken = await client.forward(breaker.address)
            await broken.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError) as caught:
                assert await broken.receive_some()
            assert isinstance(caught.value.__cause__, BrokenOff)
            # One that nobody reads holds up no other.
            stalled = await client.forward(program.address)
            with trio.move_on_after(0.1):
                await stalled.send_all(bytes(50_000_000))
            async with await client.forward(program.address) as quick:
                await quick.send_all(b"quick")
                assert await quick.receive_some() == b"quick"
            await stalled.aclose()
