"""A peer without manners costs a bounded amount, is dropped with a reason in the log, and disturbs nobody.

While each of them does its worst, another connection is asked to run a command, before and after.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from guestd.wire.frames import HANDSHAKE_FRAME_LIMIT, PREFACE, Kind, encode
from guestd.wire.messages import pack
from tests.support.peer import PATIENCE, Failed, Peer, Raw, Refused
from tests.support.server import Server, serving

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Iterator

#: Small, so that patience ends while a test waits; its end is an event: the connection is closed. Those with manners
#: must be in time as well, on a machine that is busy with something else.
CONFIG = """
[limits]
handshake = "1500ms"
write_stall = "1s"
connections = 12
channels = 100
frame = "1MiB"
"""
CAT = encode(Kind.OPEN, 1, pack({"op": "exec", "argv": ["cat"], "stdin": "stream"}))
HELLO = encode(Kind.HELLO, 0, pack({"version": 1, "agent": "hostile"}))
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: guest\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(config=CONFIG) as running:
        # A first WebSocket costs imports and threads, once.
        with Peer(running.address, dialect="websocket") as peer:
            _works(peer)
        yield running


@pytest.fixture
def neighbour(server: Server) -> Iterator[Peer]:
    """Somebody with manners, who is served whatever else happens."""
    with Peer(server.address) as peer:
        _works(peer)
        yield peer
        _works(peer)


def _works(peer: Peer) -> None:
    call = peer.open("exec", argv=["echo", "served"])
    assert call.end()["code"] == 0
    assert call.stdout == b"served\n"


def _memory(server: Server) -> int:
    with open(f"/proc/{server.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _say(raw: Raw, said: bytes) -> None:
    """What follows an upgrade is for after its answer."""
    if said.startswith(UPGRADE):
        raw.send(UPGRADE)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += raw.sock.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        said = said[len(UPGRADE) :]
    raw.send(said)


@contextmanager
def _log_since(server: Server) -> Generator[Callable[[], str]]:
    before = len(server.log)
    yield lambda: server.log[before:]


# -------------------------------------------------------------------------------------------- who never says who it is


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "dropped: it said nothing for too long (limits.handshake)"),
        (PREFACE[:4], "dropped: no hello within 1.5 s (limits.handshake) (too_slow)"),
        (PREFACE, "dropped: no hello within 1.5 s"),
        (PREFACE + HELLO[:20], "dropped: no hello within 1.5 s"),
        (b"GET / HTTP/1.1\r\nHost: gue", "dropped: it said nothing for too long (limits.handshake)"),
        (UPGRADE, "dropped: no hello within 1.5 s"),
        (UPGRADE + b"\x82\xfe\x01", "dropped: no hello within 1.5 s"),
    ],
    ids=["nothing", "half a preface", "no hello", "half a hello", "half an HTTP head", "no hello after an upgrade",
         "half a WebSocket message"],
)  # fmt: skip
def test_who_does_not_finish_its_greeting_is_dropped_in_time(
    server: Server, neighbour: Peer, said: bytes, reason: str
) -> None:
    with _log_since(server) as log, Raw(server.address) as raw:
        _say(raw, said)
        _works(neighbour)
        raw.read_until_closed()
        assert reason in log()


def test_a_greeting_that_comes_drop_by_drop_is_as_late_as_none(server: Server, neighbour: Peer) -> None:
    """The patience is for the whole greeting: a byte now and then does not renew it."""
    with _log_since(server) as log, Raw(server.address) as raw:
        raw.sock.settimeout(0.02)
        dropped = False
        while not dropped:
            try:
                raw.send(b"X")
            except (BrokenPipeError, ConnectionResetError):
                dropped = True
            _works(neighbour)
        assert "it said nothing for too long (limits.handshake)" in log()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (PREFACE + (HANDSHAKE_FRAME_LIMIT + 1).to_bytes(4, "little"), "a frame of 65537 bytes is over the limit"),
        (PREFACE + b"\xff\xff\xff\xff", "a frame of 4294967295 bytes is over the limit of 65536"),
        (PREFACE + b"\x04\0\0\0", "a frame length of 4 is too short"),
        (PREFACE + b"\x05\0\0\0\x77\0\0\0\0", "frame kind 0x77 is not one of this protocol version"),
        (PREFACE + encode(Kind.PING, 0, b"x"), "the first frame was PING, not HELLO"),
        (PREFACE + encode(Kind.HELLO, 0, b"\xc1"), "the payload of HELLO is not MessagePack"),
        (PREFACE + encode(Kind.HELLO, 0, b"\x90"), "the payload of HELLO is a list, not a map"),
        (PREFACE + encode(Kind.HELLO, 0, b"\x91" * 60_000), "the payload of HELLO is not MessagePack"),
        (PREFACE[:7] + b"\x02", "not with the preface"),
        (b"\0\0\0\0\0\0\0\0", "not with the preface"),
        (b"\xff\xfe nonsense", "neither the preface nor an HTTP request"),
        (b"ssh-2.0-OpenSSH\r\n", "neither the preface nor an HTTP request"),
        (UPGRADE + b"\x81\x85\0\0\0\0hello", "a text message; frames are binary messages"),
    ],
    ids=["long", "giant", "too short", "unknown kind", "no hello", "no msgpack", "no map", "nested", "other version",
         "zeros", "nonsense", "ssh", "text message"],
)  # fmt: skip
def test_who_does_not_speak_the_protocol_is_told_and_dropped(
    server: Server, neighbour: Peer, said: bytes, reason: str
) -> None:
    with _log_since(server) as log, Raw(server.address) as raw:
        _say(raw, said)
        assert reason.encode() in raw.read_until_closed()
        assert reason in log()
        assert "Traceback" not in log()
        _works(neighbour)


# -------------------------------------------------------------------------------------------------------- HTTP, plainly


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /exec HTTP/1.0", b"OPTIONS * HTTP/1.1"])
def test_a_plain_http_request_is_told_what_is_here(
    server: Server, neighbour: Peer, request_line: bytes
) -> None:
    with Raw(server.address) as raw:
        raw.send(request_line + b"\r\nHost: guest\r\n\r\n")
        answer = raw.read_until_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"guestctl" in body


def test_an_http_head_without_end_is_bounded(server: Server, neighbour: Peer) -> None:
    with Raw(server.address) as raw:
        raw.send(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 6000)
        assert raw.read_until_closed().startswith(b"HTTP/1.1 431 ")


# ----------------------------------------------------------------------------------------- who is in, and misbehaves


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ((MIB + 1).to_bytes(4, "little"), "a frame of 1048577 bytes is over the limit of 1048576"),
        (HELLO, "a second HELLO"),
        (encode(Kind.OPEN, 2, pack({"op": "ps"})), "channel 2 is not a client's to open"),
        (encode(Kind.OPEN, 1, b"\xc1"), "the payload of OPEN is not MessagePack"),
        (encode(Kind.OPEN, 0, pack({"op": "ps"})), "OPEN does not belong on channel 0"),
        (encode(Kind.PING, 0, b"x" * 65), "PING carries 65 bytes"),
        (CAT * 2, "channel 1 is open already"),
        (CAT + encode(Kind.DATA, 1, b"\0"),
         "a DATA frame of 1 bytes is too short"),
    ],
    ids=["giant", "second hello", "even", "no msgpack", "channel 0", "long ping", "open twice", "short data"],
)  # fmt: skip
def test_a_broken_frame_ends_its_connection_and_no_other(
    server: Server, neighbour: Peer, said: bytes, reason: str
) -> None:
    with _log_since(server) as log, Raw(server.address) as raw:
        raw.send(PREFACE + HELLO + said)
        words = raw.last_words()
        assert words["code"] == "protocol"
        assert reason in words["message"]
        assert f"dropped: {words['message']} (protocol)" in log()
    for row in neighbour.ask("ps")["jobs"]:
        neighbour.ask("kill", id=row["id"], grace=0)


def test_frames_for_channels_that_are_no_more_are_late_and_not_wrong(server: Server) -> None:
    with Peer(server.address) as peer:
        for kind in (Kind.DATA, Kind.CREDIT, Kind.EVENT, Kind.RESET, Kind.END):
            peer.send(kind, 77, pack({"bytes": 5}))
        _works(peer)


def test_half_a_frame_holds_up_only_its_own_connection_and_costs_one_frame_at_most(
    server: Server, neighbour: Peer
) -> None:
    before = _memory(server)
    with ExitStack() as peers:
        for _ in range(8):
            peer = peers.enter_context(Peer(server.address))
            peer.sock.sendall(MIB.to_bytes(4, "little") + bytes(100))
        _works(neighbour)
        assert _memory(server) - before < 8 * 2 * MIB


def test_who_asks_and_never_listens_is_read_no_further_and_dropped(server: Server, neighbour: Peer) -> None:
    """Ten thousand requests whose answers nobody takes: they stop being read, and then the connection ends."""
    for number in range(50):
        neighbour.ask("exec", argv=["true"], id=f"row-{number}")
    before = _memory(server)
    most = before
    flood = b"".join(encode(Kind.OPEN, 2 * number + 1, pack({"op": "ps"})) for number in range(10_000))
    with _log_since(server) as log, Raw(server.address) as raw:
        sender = threading.Thread(target=_push, args=(raw.sock, PREFACE + HELLO + flood))
        sender.start()
        while "dropped" not in log():
            _works(neighbour)
            most = max(most, _memory(server))
        sender.join(PATIENCE)
        assert not sender.is_alive()
        assert "dropped: the peer took nothing for 1.0 s (limits.write_stall)" in log()
    assert most - before < 24 * MIB


def test_a_flood_of_pings_is_bounded_too(server: Server, neighbour: Peer) -> None:
    before = _memory(server)
    flood = encode(Kind.PING, 0, b"x" * 64) * 200_000
    with _log_since(server) as log, Raw(server.address) as raw:
        sender = threading.Thread(target=_push, args=(raw.sock, PREFACE + HELLO + flood))
        sender.start()
        while "dropped" not in log():
            _works(neighbour)
        sender.join(PATIENCE)
        assert "(limits.write_stall)" in log()
    assert _memory(server) - before < 24 * MIB


@pytest.mark.parametrize("dialect", ["native", "websocket"])
def test_who_never_reads_what_it_has_credit_for_is_dropped_and_its_command_lives(
    server: Server, neighbour: Peer, dialect: str
) -> None:
    with _log_since(server) as log, Peer(server.address, dialect=dialect) as deaf:
        job_id = f"deaf-{dialect}"
        deaf.open("exec", argv=["yes"], window=2**40, id=job_id)
        before = _memory(server)
        while "dropped" not in log():
            _works(neighbour)
            assert _memory(server) - before < 24 * MIB
        assert "took nothing for 1.0 s (limits.write_stall)" in log()
    [row] = [row for row in neighbour.ask("ps")["jobs"] if row["id"] == job_id]
    assert row["state"] == "running", "what it started goes on"
    assert neighbour.ask("kill", id=job_id, grace=0)["ended_by"] == "kill"


def _push(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # dropped, as it should be
        sock.sendall(data)


# --------------------------------------------------------------------------------------------------------------- counts


def test_more_connections_than_allowed_are_refused_by_name_of_the_limit(
    server: Server, neighbour: Peer
) -> None:
    with _log_since(server) as log, ExitStack() as peers:
        for _ in range(11):
            peers.enter_context(Peer(server.address))
        with pytest.raises(Refused) as refused:
            Peer(server.address)
        assert refused.value.code == "limit"
        assert "limits.connections" in refused.value.message
        assert "refused: 12 connections are open" in log()
        _works(neighbour)
    # As soon as one has gone there is room.
    while True:
        try:
            with Peer(server.address) as peer:
                _works(peer)
            break
        except Refused:
            continue


def test_those_who_say_nothing_do_not_keep_others_out_for_ever(server: Server) -> None:
    with ExitStack() as silent:
        for _ in range(12):
            silent.enter_context(Raw(server.address))
        with pytest.raises(Refused):
            Peer(server.address)
        for raw in [silent.enter_context(Raw(server.address)) for _ in range(2)]:
            raw.read_until_closed()
        while True:
            try:
                with Peer(server.address) as peer:
                    _works(peer)
                break
            except Refused:
                continue


def test_connections_that_come_and_go_leave_nothing(server: Server, neighbour: Peer) -> None:
    def held() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    before = held()
    for number in range(400):
        with Raw(server.address) as raw:
            if number % 3:
                raw.send((PREFACE + HELLO)[: number % 60])
    while neighbour.ask("status")["connections"] > 1 or held() > before:
        pass  # each is noticed in its own time
    _works(neighbour)


def test_more_channels_than_allowed_are_rejected_by_name_of_the_limit(
    server: Server, neighbour: Peer
) -> None:
    with Peer(server.address) as peer:
        calls = [peer.open("exec", argv=["sleep", "1000"], id="sleeper") for _ in range(100)]
        for call in calls:
            call.accepted()
        with pytest.raises(Failed) as refused:
            peer.ask("status")
        assert (refused.value.kind, refused.value.code) == (Kind.REJECT, "limit")
        assert (refused.value.fields["limit"], refused.value.fields["setting"]) == (100, "limits.channels")
        calls[0].reset()
        _works(peer)
    neighbour.ask("kill", id="sleeper", grace=0)
