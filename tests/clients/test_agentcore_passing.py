"""What is passed on to programs of the guest over HTTP, byte by byte: whatever either side does, and leaves."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.agentcore import ARN, requesting
from tests.support.peer import Peer
from tests.support.server import Server, free_port, serving

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


class Listening:
    """A program of the guest that takes one connection after another and does with each what it is told."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30)
        self.port = self.listener.getsockname()[1]

    def request(self) -> tuple[socket.socket, bytes]:
        """The next connection, and the head that came over it."""
        sock, _ = self.listener.accept()
        sock.settimeout(30)
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        return sock, data


@pytest.fixture(scope="module")
def program() -> Iterator[Listening]:
    found = Listening()
    yield found
    found.listener.close()


@pytest.fixture(scope="module")
def guest(program: Listening) -> Iterator[Server]:
    config = f"[agentcore]\nport = {program.port}\nports = [{program.port}]\n"
    with serving("unix:{}/guestd.sock", f"tcp:127.0.0.1:{free_port()}", config=config) as server:
        yield server
        server.stop()
        assert "mistake" not in server.log, server.log


@contextmanager
def dialled(server: Server) -> Generator[socket.socket]:
    """A bare connection, for what no library sends."""
    with closing(
        socket.create_connection(("127.0.0.1", int(server.addresses[1].rpartition(":")[2])), timeout=30)
    ) as client:
        yield client


def test_a_request_passes_as_it_is_but_for_what_is_not_the_programs(
    guest: Server, program: Listening
) -> None:
    with dialled(guest) as client:
        client.sendall(
            f"PUT /ports/{program.port}/a%2Fb?c=d%20e HTTP/1.1\r\nHost: kept\r\nX-Twice: 1\r\nx-tWICE: 2\r\n"
            "WorkloadAccessToken: w\r\nX-Amzn-Bedrock-AgentCore-Runtime-Custom-A: b\r\n"
            "Connection: keep-alive, X-Hop\r\nX-Hop: gone\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
            "Authorization: AWS4-HMAC-SHA256 secret\r\n"
            "X-Amz-Security-Token: gone\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".encode()
        )
        sock, seen = program.request()
        with closing(sock):
            head, _, body = seen.partition(b"\r\n\r\n")
            assert head.split(b"\r\n") == [
                b"PUT /a%2Fb?c=d%20e HTTP/1.1", b"Host: kept", b"X-Twice: 1", b"x-tWICE: 2", b"WorkloadAccessToken: w",
                b"X-Amzn-Bedrock-AgentCore-Runtime-Custom-A: b", b"Transfer-Encoding: chunked",
            ]  # fmt: skip
            while body != b"3\r\nabc\r\n":
                body += sock.recv(100)
            client.sendall(b"2\r\nde\r\n0\r\n\r\n")
            body = b""
            while body != b"2\r\nde\r\n0\r\n\r\n":
                body += sock.recv(100)
            sock.sendall(
                b"HTTP/1.1 207 Multi\r\nX-Own: 1\r\nConnection: X-Hop\r\nX-Hop: gone\r\nContent-Length: 2\r\n\r\nhi"
            )
            said = b""
            while not said.endswith(b"hi"):
                said += client.recv(4096)
    assert said == b"HTTP/1.1 207 Multi\r\nX-Own: 1\r\nContent-Length: 2\r\n\r\nhi"


def test_an_answer_of_any_size_is_taken_only_as_far_as_the_client_takes_it(
    guest: Server, program: Listening
) -> None:
    """Neither side's bytes are gathered in between: a program that writes more than the client reads has to wait."""
    sent = 0

    def answer() -> None:
        nonlocal sent
        sock, _ = program.request()
        with closing(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
            for _ in range(1024):
                sock.sendall(b"x" * 65536)
                sent += 65536

    answering = threading.Thread(target=answer)
    answering.start()
    with requesting(guest, "GET", f"/ports/{program.port}/") as connection:
        response = connection.getresponse()
        with Peer(guest.address) as peer:
            assert peer.ask("status")["memory"]["rss"] < 256 * 1024 * 1024
        size = 0
        while piece := response.read(1024 * 1024):
            size += len(piece)
            assert sent - size < 32 * 1024 * 1024
        assert size == 67108864
    answering.join()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"", 424),
        (b"HTTP/1.1 nonsense\r\n\r\n", 424),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", 503),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil it closes", 200),
    ],
)
def test_what_a_program_can_do_wrong(guest: Server, program: Listening, said: bytes, status: int) -> None:
    with requesting(guest, "POST", f"/ports/{program.port}/x", body=b"{}") as connection:
        sock, _ = program.request()
        with closing(sock):
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            response = connection.getresponse()
            assert response.status == status
            body = response.read()
            if status == 424:
                assert response.headers["x-amzn-ErrorType"] == "RuntimeClientError"
                assert b"workload" in body


def test_an_answer_that_breaks_off_is_broken_off(guest: Server, program: Listening) -> None:
    with requesting(guest, "GET", f"/ports/{program.port}/x") as connection:
        sock, _ = program.request()
        with closing(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        response = connection.getresponse()
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def test_what_is_in_chunks_has_no_other_length_on_either_way(guest: Server, program: Listening) -> None:
    """Passed on with both lengths, what one reader takes for a body is the next request to another."""
    both = b"Content-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    with dialled(guest) as client:
        client.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\n" + both)
        sock, seen = program.request()
        with closing(sock):
            assert b"chunked" in seen
            assert b"content-length" not in seen.lower()
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + both)
            response = http.client.HTTPResponse(client)
            response.begin()
            assert (response.read(), response.headers["Content-Length"]) == (b"abc", None)


def test_a_client_of_http_1_0_gets_what_it_can_read(guest: Server, program: Listening) -> None:
    with dialled(guest) as client:
        client.sendall(b"GET /invocations HTTP/1.0\r\n\r\n")
        sock, _ = program.request()
        with closing(sock):
            sock.sendall(
                b"HTTP/1.1 103 Early Hints\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
            )
            with client.makefile("rb") as answer:
                said = answer.read()
    assert said == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"


UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("how", ["end", "break"])
@pytest.mark.parametrize("at", ["in its body", "before the answer", "before the upgrade"])
def test_a_client_that_leaves_is_seen_by_the_program(
    guest: Server, program: Listening, at: str, how: str
) -> None:
    length = 5 if at == "in its body" else 3
    head = (
        UPGRADE
        if at == "before the upgrade"
        else f"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n"
    )
    with dialled(guest) as client:
        client.sendall(f"{head}\r\n".encode() + (b"" if head is UPGRADE else b"abc"))
        sock, seen = program.request()
        while head is not UPGRADE and not seen.endswith(b"abc"):
            seen += sock.recv(10)
        if how == "break":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with closing(sock):
        assert not sock.recv(65536)
    with Peer(guest.address) as peer:
        while peer.ask("status")["activity"]["busy"]:
            pass


def test_what_follows_an_upgrade_at_once_arrives(guest: Server, program: Listening) -> None:
    with dialled(guest) as client:
        client.sendall(f"{UPGRADE}\r\nearly".encode())
        sock, _ = program.request()
        with closing(sock):
            sock.sendall(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            assert sock.recv(100) == b"early"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (f"{UPGRADE}Content-Length: 5\r\n", "no body"),
        (f"{UPGRADE}Transfer-Encoding: chunked\r\n", "no body"),
        (UPGRADE.replace("HTTP/1.1", "HTTP/1.0"), "HTTP/1.1"),
        (UPGRADE.replace("Connection: Upgrade\r\n", ""), "`Connection: Upgrade`"),
    ],
)
def test_an_upgrade_that_is_none_is_refused_in_words(guest: Server, head: str, said: str) -> None:
    with dialled(guest) as client:
        client.sendall(f"{head}\r\n".encode())
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, response.headers["x-amzn-ErrorType"]) == (400, "ValidationException")
        assert said in json.loads(response.read())["message"]


@pytest.mark.parametrize(
    "path", ["/ports/1/x", "/ports/22/", f"/runtimes/{ARN.replace('/', '%2F')}/ports/65535/"]
)
def test_other_ports_are_not_reached(guest: Server, path: str) -> None:
    with requesting(guest, "GET", path) as connection:
        response = connection.getresponse()
        assert response.status == 403
        assert "agentcore.ports" in json.loads(response.read())["message"]
