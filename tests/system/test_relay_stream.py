"""Relays: from a program of the guest to wherever the settings say, with every end, every break and every limit."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.pure.test_relay_preface import read
from tests.support.life import Follower, serving
from tests.support.passing import (
    PATIENCE,
    Program,
    abort,
    connected,
    count,
    echo,
    is_reset,
    is_turned_away,
    read_all,
)
from tests.support.peer import Peer
from tests.support.server import free_port
from tests.support.survivor import surviving
from tests.system.test_ctl import guestctl

if TYPE_CHECKING:
    from pathlib import Path


def one(listen: str | int, to: str, *more: str, name: str = "x") -> str:
    """The settings of a relay."""
    where = f"tcp:127.0.0.1:{listen}" if isinstance(listen, int) else listen
    return "\n".join([f"[relay.{name}]", f'listen = "{where}"', f'to = "{to}"', *more, ""])


def relay(peer: Peer, name: str = "x") -> dict[str, Any]:
    return next(each for each in peer.ask("status")["relays"] if each["name"] == name)


def until(peer: Peer, **wanted: object) -> dict[str, Any]:
    """As soon as its counters are those."""
    while True:
        found = relay(peer)
        if all(found[name] == value for name, value in wanted.items()):
            return found


@pytest.mark.parametrize("listening", ["tcp", "unix"])
@pytest.mark.parametrize("leading", ["tcp", "unix"])
def test_bytes_and_ends_pass_and_are_counted(tmp_path: Path, listening: str, leading: str) -> None:
    with Program(echo, str(tmp_path / "far") if leading == "unix" else None) as program:
        where: int | str = free_port() if listening == "tcp" else str(tmp_path / "near")
        listen = where if isinstance(where, int) else f"unix:{where}"
        with serving(config=one(listen, program.address)) as server, Peer(server.address) as peer:
            with connected(where) as sock:
                sock.sendall(b"x" * 300_000)
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b"x" * 300_000
            found = until(peer, ended=1)
            assert (found["open"], found["began"], found["bytes_up"], found["bytes_down"]) == (
                0,
                1,
                300_000,
                300_000,
            )
            assert (found["state"], found["kind"], found["to"]) == ("listening", "stream", program.address)
        assert not (tmp_path / "near").exists(), "it is taken away at the end"


def test_every_program_of_the_guest_may_use_a_unix_one(tmp_path: Path) -> None:
    config = one(f"unix:{tmp_path}/near", "tcp:127.0.0.1:1")
    with serving(config=config) as server, Peer(server.address) as peer:
        assert relay(peer)["state"] == "listening"
        assert (tmp_path / "near").stat().st_mode & 0o777 == 0o666


def test_a_break_passes_as_a_break_either_way() -> None:
    broke: list[bool] = []

    def both(sock: socket.socket) -> None:
        if sock.recv(5) == b"break":
            abort(sock)
        else:
            broke.append(is_reset(sock))

    port = free_port()
    with (
        Program(both) as program,
        serving(config=one(port, program.address)) as server,
        Peer(server.address) as peer,
    ):
        with connected(port) as sock:
            sock.sendall(b"break")
            assert is_reset(sock)
        with connected(port) as sock:
            sock.sendall(b"other")
            until(peer, bytes_up=10)
            abort(sock)
        assert until(peer, broken=2)["open"] == 0
    assert broke == [True]


def test_a_target_that_is_not_there_is_a_prompt_break_and_told_once_as_an_event() -> None:
    port, target = free_port(), free_port()
    with serving(config=one(port, f"tcp:127.0.0.1:{target}")) as server, Peer(server.address) as peer:
        events = Follower(peer)
        for _ in range(3):
            assert is_turned_away(port)
        said = events.until("relay_unreachable", relay="x")
        assert said["why"] == f"cannot connect to tcp:127.0.0.1:{target}: nobody listens there (ECONNREFUSED)"
        found = until(peer, unreachable_count=3)
        assert found["unreachable"] == said["why"]
        shown = guestctl(server.address, "status").stdout.decode()
        assert (
            f"relay       x: tcp:127.0.0.1:{port} -> tcp:127.0.0.1:{target}, 0 open, 3 so far, 0 up, 0 down; "
            in shown
        )
        with socket.create_server(("127.0.0.1", target)) as listener, connected(port) as sock:
            accepted, _ = listener.accept()
            with accepted:
                assert events.next()["event"] == "relay_reachable"
                accepted.shutdown(socket.SHUT_WR)
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b""
        assert relay(peer)["unreachable"] is None


def test_in_http_a_program_is_told_in_words() -> None:
    port, target = free_port(), free_port()
    config = one(port, f"tcp:127.0.0.1:{target}", 'kind = "http"', "connections = 1")
    with serving(config=config) as server, Peer(server.address) as peer:
        with connected(port) as sock:
            sock.sendall(b"POST /v1/messages HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000))
            head, _, text = read_all(sock).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: 5" in head
        assert (
            text
            == (
                f"guestd, relay x: nobody takes this; cannot connect to tcp:127.0.0.1:{target}: nobody listens there"
                " (ECONNREFUSED)\n"
            ).encode()
        )
        with socket.create_server(("127.0.0.1", target)) as listener, connected(port):
            listener.accept()[0].close()
            with connected(port) as second:
                second.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert b"1 connections are open (relay.x.connections)" in read_all(second)
            assert until(peer, refused=1)["open"] == 1


def test_more_than_its_connections_are_turned_away_and_the_others_go_on() -> None:
    port = free_port()
    with (
        Program(echo) as program,
        serving(config=one(port, program.address, "connections = 3")) as server,
        ExitStack() as stack,
        Peer(server.address) as peer,
    ):
        living = [stack.enter_context(connected(port)) for _ in range(3)]
        until(peer, open=3)
        for _ in range(5):
            assert is_turned_away(port)
        assert until(peer, refused=5)["open"] == 3
        for sock in living:
            sock.sendall(b"alive")
            assert sock.recv(5) == b"alive"


def test_a_thousand_at_once() -> None:
    port = free_port()
    with (
        Program(echo) as program,
        serving(config=one(port, program.address, "connections = 1000")) as server,
        ExitStack() as stack,
        Peer(server.address) as peer,
    ):
        living = [stack.enter_context(connected(port)) for _ in range(1000)]
        for number, sock in enumerate(living):
            sock.sendall(b"%04d" % number)
        for number, sock in enumerate(living):
            assert sock.recv(4) == b"%04d" % number
        for sock in living:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        assert until(peer, ended=1000)["most_open"] == 1000


def test_a_reader_that_stalls_stops_its_writer_and_nobody_else() -> None:
    """Memory is bounded by what the kernel and one buffer hold, and all of it arrives in the end."""
    read_on = threading.Event()

    def stall(sock: socket.socket) -> None:
        if sock.recv(1) == b"s":
            assert read_on.wait(PATIENCE)
            count(sock)
        else:
            echo(sock)

    port = free_port()
    with (
        Program(stall) as program,
        serving(config=one(port, program.address)) as server,
        Peer(server.address) as peer,
        connected(port) as stalled,
        connected(port) as quick,
    ):
        stalled.sendall(b"s")
        before = peer.ask("status")["memory"]["rss"]
        sent = 0
        stalled.settimeout(0.3)
        try:
            while sent < 100_000_000:
                sent += stalled.send(bytes(65536))
        except TimeoutError:
            pass
        assert sent < 50_000_000
        quick.sendall(b"qquick")
        assert quick.recv(5) == b"quick"
        assert peer.ask("status")["memory"]["rss"] - before < 4_000_000
        read_on.set()
        stalled.settimeout(PATIENCE)
        stalled.shutdown(socket.SHUT_WR)
        assert read_all(stalled) == b"%d" % sent


def test_what_does_nothing_is_ended_and_what_does_something_is_not() -> None:
    port = free_port()
    with (
        Program(echo) as program,
        serving(config=one(port, program.address, 'idle = "2s"')) as server,
        Peer(server.address) as peer,
        connected(port) as busy,
        connected(port) as idle,
    ):
        idle.sendall(b"x")
        assert idle.recv(1) == b"x"
        while relay(peer)["idle"] == 0:
            busy.sendall(b"y")
            assert busy.recv(1) == b"y"
        assert is_reset(idle)
        assert relay(peer)["open"] == 1


def test_the_preface_says_whose_connection_it_is_and_a_resume_makes_it_another_one() -> None:
    said: list[bytes] = []

    def listen(sock: socket.socket) -> None:
        data = sock.recv(65536)
        said.append(data)
        sock.sendall(b"heard")
        assert is_reset(sock), "a resumed session's connection went on"

    port = free_port()
    config = one(port, "{}", 'preface = "proxy-v2"')
    with (
        Program(listen) as program,
        serving(config=config.replace("{}", program.address)) as server,
        Peer(server.address) as peer,
    ):
        with connected(port) as sock:
            assert sock.recv(5) == b"heard"
            me = sock.getsockname()
            before = peer.ask("status")
            assert peer.ask("resume")["relays"] == {"broken_off": 1}
            assert is_reset(sock)
        with connected(port) as sock:
            sock.recv(5)
            after = peer.ask("status")
            assert peer.ask("resume")["relays"] == {"broken_off": 1}
    first, second = (read(each) for each in said)
    assert (first.source, first.target) == (me, ("127.0.0.1", port))
    for header, status, number in ((first, before, 1), (second, after, 2)):
        session = status["session_id"]
        assert header.tlvs == {
            0x05: f"{session}-x-{number}".encode(), 0xE0: session.encode(), 0xE1: status["boot_id"].encode(),
            0xE2: b"%d" % status["generation"], 0xE3: b"x",
        }  # fmt: skip
    assert before["session_id"] != after["session_id"]


def test_without_a_preface_a_resume_leaves_connections_alone() -> None:
    port = free_port()
    with (
        Program(echo) as program,
        serving(config=one(port, program.address)) as server,
        Peer(server.address) as peer,
        connected(port) as sock,
    ):
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        assert peer.ask("resume")["relays"] == {"broken_off": 0}
        sock.sendall(b"b")
        assert sock.recv(1) == b"b"


def test_a_port_that_somebody_else_has_costs_that_relay_until_it_is_free() -> None:
    port, fine = free_port(), free_port()
    with Program(echo) as program, socket.create_server(("127.0.0.1", port)) as taken:
        config = one(port, program.address) + one(fine, program.address, name="fine")
        with serving(config=config) as server, Peer(server.address) as peer:
            found = relay(peer)
            assert (found["state"], found["why"]) == ("failed", "Address already in use")
            assert relay(peer, "fine")["state"] == "listening"
            assert (
                f"relay x: cannot listen on tcp:127.0.0.1:{port}: Address already in use; trying again"
                in server.log
            )
            taken.close()
            until(peer, state="listening")
            with connected(port) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


def test_jobs_are_told_unless_they_were_told_otherwise() -> None:
    config = (
        '[relay]\negress = true\notlp = {listen = "tcp:127.0.0.1:%d"}\n[env]\nHTTP_PROXY = "http://mine"\n'
    )
    port = free_port()
    with serving(config=config % port) as server, Peer(server.address) as peer:
        call = peer.open("exec", argv=["env"], env={"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})
        assert call.end()["status"] == 0
        found = dict(line.split("=", 1) for line in call.stdout.decode().splitlines())
        assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://127.0.0.1:{port}"
        assert found["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/json"
        assert found["HTTP_PROXY"] == "http://mine"
        assert found["http_proxy"] == found["HTTPS_PROXY"] == "http://127.0.0.1:3128"


async def test_a_death_of_serve_breaks_connections_and_loses_no_new_one() -> None:
    """Who connects while nobody serves waits in the backlog, which the kept socket has; what was open is reset."""
    import trio

    port = free_port()
    with (
        Program(echo) as program,
        surviving(one(port, program.address) + "[init]\nrestart_delay = '10ms'\n") as survivor,
    ):
        found = await survivor.ask()
        with connected(port) as sock:
            await trio.to_thread.run_sync(sock.sendall, b"x")
            assert await trio.to_thread.run_sync(sock.recv, 1) == b"x"
            os.kill(found["pid"], signal.SIGKILL)
            # Never refused: not even now.
            with connected(port) as second:
                second.sendall(b"waited")
                assert await trio.to_thread.run_sync(is_reset, sock), "a killed guestd looked like an end"
                assert await trio.to_thread.run_sync(second.recv, 6) == b"waited"
                second.shutdown(socket.SHUT_WR)
                assert await trio.to_thread.run_sync(read_all, second) == b""
        found = await survivor.ask()
        assert found["generation"] == 1
        assert [each["state"] for each in found["relays"]] == ["listening"]
        assert not any(str(port) in each for each in found["listening"])
    with pytest.raises(ConnectionRefusedError), connected(port):
        pass


def test_a_program_that_is_led_over_vsock() -> None:
    """The host's side of vsock, where this kernel has a loopback for it. The tier vm has the real one."""
    port, cid = free_port(), 1
    try:
        with socket.socket(socket.AF_VSOCK) as listener:
            listener.bind((socket.VMADDR_CID_ANY, 0))
            listener.listen()
            listener.settimeout(PATIENCE)
            with socket.socket(socket.AF_VSOCK) as probe:
                probe.connect((cid, listener.getsockname()[1]))
            listener.accept()[0].close()
            config = one(port, f"vsock:{cid}:{listener.getsockname()[1]}", 'preface = "proxy-v2"')
            with serving(config=config), connected(port) as sock:
                passed_over_vsock(listener, sock)
    except OSError as error:
        pytest.skip(
            f"this kernel has no vsock loopback ({error}): vsock as a target is proved in the tier vm alone"
        )


def passed_over_vsock(listener: socket.socket, sock: socket.socket) -> None:
    """What has to hold between a program of the guest and a listener of the host's; the tier vm calls it too."""
    far, _ = listener.accept()
    with far:
        far.settimeout(PATIENCE)
        header = read(far.recv(65536))
        assert header.tlvs[0xE3] == b"x"
        sock.sendall(b"up")
        sock.shutdown(socket.SHUT_WR)
        assert header.rest + read_all(far) == b"up"
        far.sendall(b"down")
        far.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"down"
