"""`forward`, frame by frame: a channel is a connection into the guest: its bytes, its ends, its breaks, its credit."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import Kind, data_head
from tests.support.life import Follower, serving
from tests.support.passing import Program, abort, count, echo
from tests.support.peer import PATIENCE, Failed, Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.peer import Call
    from tests.support.server import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as found:
        yield found


def opened(peer: Peer, **fields: Any) -> Call:  # noqa: ANN401  as they go on the wire
    call = peer.open("forward", **fields)
    call.at[1] = 0
    return call


def say(peer: Peer, call: Call, offset: int, data: bytes) -> None:
    peer._send_frame(data_head(call.number, 0, offset, len(data)) + data)


def end(peer: Peer, call: Call, offset: int) -> None:
    peer.send(Kind.EVENT, call.number, {"event": "eof", "offset": offset})


def until_eof(call: Call) -> bytes:
    while not any(event["event"] == "eof" for event in call.events):
        call.step()
    assert call.events[-1]["offset"] == len(call.output[1])
    return bytes(call.output[1])


def forwards(peer: Peer) -> dict[str, int]:
    found: dict[str, int] = peer.ask("status")["forwards"]
    return found


class Counted:
    """What has been added to the counters of a guestd that several tests share."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._before = forwards(peer)

    def __getitem__(self, name: str) -> int:
        return forwards(self._peer)[name] - self._before[name]

    def until(self, name: str, value: int) -> None:
        while self[name] != value:
            pass


@pytest.mark.parametrize("dialect", ["native", "websocket"])
def test_bytes_and_ends_go_both_ways(server: Server, dialect: str) -> None:
    with Program(echo) as program, Peer(server.address, dialect=dialect) as peer:
        counted = Counted(peer)
        call = opened(peer, to=program.address)
        # Without waiting for the answer.
        say(peer, call, 0, b"hello ")
        assert call.accepted() == {"to": program.address}
        say(peer, call, 6, b"world")
        end(peer, call, 11)
        assert until_eof(call) == b"hello world"
        assert call.end() == {"sent": 11, "received": 11}
        assert [counted[each] for each in ("began", "ended", "bytes_up", "bytes_down")] == [1, 1, 11, 11]


def test_each_half_ends_on_its_own(peer: Peer) -> None:
    """The guest's program says its end first, and still hears everything."""
    heard = threading.Event()

    def first_ends(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile("rb").read() == b"still here"
        heard.set()

    with Program(first_ends) as program:
        call = opened(peer, to=program.address)
        assert until_eof(call) == b"bye"
        assert call.final is None
        say(peer, call, 0, b"still here")
        end(peer, call, 10)
        assert call.end() == {"sent": 10, "received": 3}
        assert heard.wait(PATIENCE)


def test_a_unix_socket_of_the_guest(peer: Peer, tmp_path: Path) -> None:
    with Program(echo, str(tmp_path / "s")) as program:
        call = opened(peer, to=program.address)
        say(peer, call, 0, b"x" * 100_000)
        end(peer, call, 100_000)
        assert until_eof(call) == b"x" * 100_000


def test_localhost_is_both_of_its_addresses(peer: Peer) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        call = opened(peer, to=f"tcp:localhost:{listener.getsockname()[1]}")
        call.accepted()
        listener.accept()[0].close()


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"to": "tcp:127.0.0.1:1"}, "refused", "tcp:127.0.0.1:1: nobody listens there (ECONNREFUSED)"),
        ({"to": "unix:/nowhere"}, "refused", "there is no such socket (ENOENT)"),
        ({"to": "tcp:no.such.name.invalid:80"}, "refused", "the name 'no.such.name.invalid' is not known"),
        ({"to": "vsock:2:80"}, "bad_request", "'to' is 'vsock:2:80'; expected: tcp:HOST:PORT or unix:PATH"),
        ({"to": "tcp:localhost:0"}, "bad_request", "expected: tcp:HOST:PORT or unix:PATH"),
        ({"to": "3000"}, "bad_request", "there is no scheme in it"),
        ({}, "bad_request", "field 'to' is missing"),
        ({"to": "tcp:localhost:80", "idle_timeout": -1}, "bad_request", "idle_timeout"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_rejected_in_words(
    peer: Peer, fields: dict[str, Any], code: str, said: str
) -> None:
    with pytest.raises(Failed) as failed:
        opened(peer, **fields).accepted()
    assert (failed.value.kind, failed.value.code) == (Kind.REJECT, code)
    assert said in failed.value.fields["message"]


def test_a_break_in_the_guest_is_no_end(peer: Peer) -> None:
    def say_half(sock: socket.socket) -> None:
        sock.sendall(b"half")
        sock.recv(1)
        abort(sock)

    with Program(say_half) as program:
        counted = Counted(peer)
        call = opened(peer, to=program.address)
        while len(call.output[1]) < 4:
            call.step()
        say(peer, call, 0, b"!")
        with pytest.raises(Failed) as failed:
            call.end()
        assert (failed.value.kind, failed.value.code) == (Kind.RESET, "broken_off")
        assert program.address in failed.value.fields["message"]
        assert not call.events
        counted.until("broken", 1)


@pytest.mark.parametrize("how", ["reset", "lost"])
def test_a_break_of_the_client_is_none_for_the_program(server: Server, how: str) -> None:
    said: list[bytes] = []
    broke = threading.Event()

    def listen(sock: socket.socket) -> None:
        try:
            while True:
                data = sock.recv(100)
                assert data, "it looked like an end"
                said.append(data)
        except ConnectionResetError:
            broke.set()

    with Program(listen) as program:
        with Peer(server.address) as peer:
            call = opened(peer, to=program.address)
            call.accepted()
            say(peer, call, 0, b"half")
            if how == "reset":
                peer.send(Kind.RESET, call.number, {})
                assert broke.wait(PATIENCE)
        assert broke.wait(PATIENCE)
        assert b"".join(said) in {b"half", b""}


def test_data_that_leaves_a_hole_or_goes_elsewhere_is_a_mistake(peer: Peer) -> None:
    with Program(echo) as program:
        mistakes: list[tuple[Callable[[Call], None], str]] = [
            (lambda call: say(peer, call, 5, b"x"), "bad_offset"),
            (lambda call: end(peer, call, 5), "bad_offset"),
            (lambda call: peer._send_frame(data_head(call.number, 1, 0, 1) + b"x"), "bad_request"),
        ]
        for make, code in mistakes:
            call = opened(peer, to=program.address)
            call.accepted()
            make(call)
            with pytest.raises(Failed) as failed:
                call.end()
            assert failed.value.code == code
        while forwards(peer)["open"]:
            pass


def test_a_program_that_does_not_read_stops_its_client_alone(server: Server) -> None:
    """No more than the window is taken for it; beside it another channel runs at full speed."""
    read_on = threading.Event()

    def stall(sock: socket.socket) -> None:
        assert read_on.wait(PATIENCE)
        count(sock)

    with Program(stall) as stalled, Program(echo) as program, Peer(server.address) as peer:
        call = opened(peer, to=stalled.address)
        call.accepted()
        window = peer.hello["limits"]["window"]
        sent, credit = 0, window
        # Until credit stays out: the kernel's own buffers take some, then guestd's window. They are larger than two
        # windows: before that, no more for a moment means that they are slow.
        granted = window
        while granted or sent <= 2 * window:
            while credit:
                size = min(credit, 65536)
                say(peer, call, sent, bytes(size))
                sent, credit = sent + size, credit - size
            peer.ask("status")
            granted = sum(got.fields["bytes"] for got in call.queue if got.kind is Kind.CREDIT)
            call.queue.clear()
            credit += granted
        other = opened(peer, to=program.address)
        say(peer, other, 0, b"z" * 200_000)
        end(peer, other, 200_000)
        assert len(until_eof(other)) == 200_000
        read_on.set()
        end(peer, call, sent)
        assert until_eof(call) == b"%d" % sent


def test_a_client_that_gives_no_credit_stops_the_program_alone(server: Server) -> None:
    sent = 0

    def flood(sock: socket.socket) -> None:
        nonlocal sent
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.settimeout(0.2)
        try:
            while True:
                sent += sock.send(bytes(65536))
        except TimeoutError:
            stopped.set()
        sock.settimeout(PATIENCE)
        sock.recv(1)

    stopped = threading.Event()
    with Program(flood) as program, Program(echo) as other, Peer(server.address) as peer:
        call = opened(peer, to=program.address, window=10_000)
        call.accepted()
        assert stopped.wait(PATIENCE)
        peer.ask("status")
        beside = opened(peer, to=other.address)
        say(peer, beside, 0, b"quick")
        end(peer, beside, 5)
        assert until_eof(beside) == b"quick"
        while call.queue:
            call.step()
        assert len(call.output[1]) == 10_000
        assert sent < 16 * 1024 * 1024
        peer.send(Kind.RESET, call.number, {})


def test_a_thousand_at_once(server: Server) -> None:
    with Program(echo) as program, Peer(server.address) as peer:
        counted = Counted(peer)
        calls = [opened(peer, to=program.address) for _ in range(1000)]
        for number, call in enumerate(calls):
            say(peer, call, 0, b"%04d" % number)
            end(peer, call, 4)
        for number, call in enumerate(calls):
            assert until_eof(call) == b"%04d" % number
            assert call.end() == {"sent": 4, "received": 4}
        counted.until("ended", 1000)


def test_there_is_a_limit_and_it_is_named() -> None:
    with (
        serving(config="[forward]\nconnections = 1\n") as server,
        Peer(server.address) as peer,
        Program(echo) as program,
    ):
        first = opened(peer, to=program.address)
        first.accepted()
        with pytest.raises(Failed) as failed:
            opened(peer, to=program.address).accepted()
        assert (failed.value.code, failed.value.fields["setting"]) == ("limit", "forward.connections")
        end(peer, first, 0)
        first.end()
        again = opened(peer, to=program.address)
        again.accepted()
        end(peer, again, 0)
        again.end()


def test_what_does_nothing_is_ended_when_that_was_asked_for(peer: Peer) -> None:
    with Program(echo) as program:
        counted = Counted(peer)
        call = opened(peer, to=program.address, idle_timeout=0.2)
        call.accepted()
        with pytest.raises(Failed) as failed:
            call.end()
        assert (failed.value.kind, failed.value.code) == (Kind.RESET, "timeout")
        assert "forward.idle" in failed.value.fields["message"]
        counted.until("idle", 1)


def test_bytes_keep_the_session_awake_and_an_open_connection_does_not() -> None:
    # Time to react on a slow machine; that the end is off is told when its time has come.
    config = '[idle]\ntimeout = "5s"\nwarning = "2400ms"\n'
    with serving(config=config) as server, Program(echo) as program:
        with Peer(server.address) as peer, Peer(server.address) as other:
            events = Follower(other)
            call = opened(peer, to=program.address)
            call.accepted()
            assert events.until("idle_soon")["stops_in"] <= 2.4
            say(peer, call, 0, b"x")
            assert "forward tcp:" in events.until("active")["why"]
            # Now nothing moves, though it is open.
            other.ask("timers", idle_timeout=1.0)
            assert events.until("stopping")["cause"] == "idle"
        assert server.process.wait(PATIENCE) == 0
