"""What is passed on to the workload: AgentCore's own app as one, asked by boto3; and any other port, byte for byte."""

from __future__ import annotations

import gc
import http.client
import json
import os
import socket
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets import Subprotocol
from websockets.sync.client import connect
from websockets.sync.server import serve

from tests.support.agentcore import ARN, SESSION, Sdk, sdk
from tests.support.life import Follower
from tests.support.peer import Peer
from tests.support.server import Server, free_port, serving

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

APP = Path(__file__).with_name("agentcore_app.py")
CHAT = [Subprotocol("chat")]
BUSY_CONFIG = """
[agentcore]
port = {port}
connect = "60s"
[workload]
health = "http://127.0.0.1:{port}/ping"
health_interval = "100ms"
[idle]
timeout = "3s"
"""


def invoke(client: Sdk, **payload: object) -> Any:  # noqa: ANN401  whatever JSON holds
    answer = client.invoke_agent_runtime(
        agentRuntimeArn=ARN, runtimeSessionId=SESSION, payload=json.dumps(payload).encode()
    )
    assert answer["runtimeSessionId"] == SESSION
    with closing(answer["response"]) as body:
        return json.loads(body.read())


@contextmanager
def app(config: str, fifo: Path, **options: Any) -> Generator[tuple[Server, Sdk]]:  # noqa: ANN401  those of the fixture
    """Guestd with their app as its workload. The first request comes before the app listens."""
    port, own = free_port(), free_port()
    with (
        serving(
            "unix:{}/guestd.sock",
            f"tcp:127.0.0.1:{own}",
            config=config.format(port=port),
            # What their package warns of is theirs; guestd's own interpreter has warnings as errors.
            arguments=["--", sys.executable, "-W", "ignore", str(APP), str(port), str(fifo)],
            **options,
        ) as server,
        sdk(server.addresses[1]) as client,
    ):
        assert invoke(client, hello="there")["said"] == {"hello": "there"}
        yield server, client


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """What libraries leave to the collector is collected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def fifo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agentcore") / "go"
    os.mkfifo(path)
    return path


def test_their_app_is_invoked_streams_fails_and_keeps_the_session_awake_while_it_works(fifo: Path) -> None:
    with app(BUSY_CONFIG, fifo) as (server, client):
        found = invoke(client, a=1)
        assert found["session"] == SESSION

        answer = client.invoke_agent_runtime(
            agentRuntimeArn=ARN, payload=b'{"do": "stream"}', accept="text/event-stream"
        )
        assert answer["contentType"].startswith("text/event-stream")
        lines = answer["response"].iter_lines(chunk_size=1)
        assert next(lines) == b'data: {"part": 1}', "before the second one is made"
        fifo.write_text("on\n")
        assert [line for line in lines if line] == [b'data: {"part": 2}']
        answer["response"].close()

        with pytest.raises(
            client.exceptions.RuntimeClientError, match=r"Received error \(500\) from runtime"
        ):
            invoke(client, do="fail")

        with Peer(server.address) as peer:
            events = Follower(peer, **{"from": 0})
            assert invoke(client, do="begin") == {"running": 1}
            events.until("workload_health", health="busy")
            with Peer(server.address) as other:
                activity = other.ask("status")["activity"]
                assert activity["busy"] == ["workload says that it is busy"]
                assert activity["stops_for"] == "lifetime"
            assert invoke(client, do="finish") == {"running": 0}
            events.until("workload_health", health="healthy")
            events.until("stopping", cause="idle")
        assert server.process.wait(30) == 0


def test_an_open_invocation_keeps_the_session_awake(fifo: Path) -> None:
    with app(BUSY_CONFIG, fifo) as (server, client), Peer(server.address) as peer:
        answer = client.invoke_agent_runtime(agentRuntimeArn=ARN, payload=b'{"do": "stream"}')
        next(answer["response"].iter_lines(chunk_size=1))
        assert peer.ask("status")["activity"]["busy"] == ["workload 1 open invocations"]
        assert peer.ask("status")["workload"]["invocations"] == 1
        fifo.write_text("on\n")
        answer["response"].read()
        answer["response"].close()
        while peer.ask("status")["workload"]["invocations"]:
            pass
        assert peer.ask("status")["activity"]["busy"] == []


# ------------------------------------------------------------------------------------------------ any port, any request


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


@pytest.fixture
def program() -> Iterator[Listening]:
    found = Listening()
    yield found
    found.listener.close()


@pytest.fixture
def guest(program: Listening) -> Iterator[Server]:
    config = f"[agentcore]\nport = {program.port}\nports = [{program.port}]\n"
    with serving("unix:{}/guestd.sock", f"tcp:127.0.0.1:{free_port()}", config=config) as server:
        yield server


@contextmanager
def requesting(server: Server, method: str, path: str, **more: Any) -> Generator[http.client.HTTPConnection]:  # noqa: ANN401  of a library
    connection = http.client.HTTPConnection(server.addresses[1].removeprefix("tcp:"), timeout=30)
    try:
        connection.request(method, path, **more)
        yield connection
    finally:
        connection.close()


def test_a_request_passes_as_it_is_but_for_what_is_not_the_programs(
    guest: Server, program: Listening
) -> None:
    with closing(
        socket.create_connection(("127.0.0.1", int(guest.addresses[1].rpartition(":")[2])))
    ) as client:
        client.settimeout(30)
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


def test_a_client_that_leaves_is_seen_by_the_program(guest: Server, program: Listening) -> None:
    with requesting(guest, "POST", "/invocations", body=b"{}"):
        sock, _ = program.request()
    with closing(sock):
        while sock.recv(65536):
            pass


@pytest.mark.parametrize(
    "path", ["/ports/1/x", "/ports/22/", f"/runtimes/{ARN.replace('/', '%2F')}/ports/65535/"]
)
def test_other_ports_are_not_reached(guest: Server, path: str) -> None:
    with requesting(guest, "GET", path) as connection:
        response = connection.getresponse()
        assert response.status == 403
        assert "agentcore.ports" in json.loads(response.read())["message"]


def test_without_a_workload_guestd_answers_the_ping_itself() -> None:
    config = f"[agentcore]\nport = {free_port()}\n"
    with serving("unix:{}/s", f"tcp:127.0.0.1:{free_port()}", config=config) as server:
        with requesting(server, "GET", "/ping") as connection:
            said = json.loads(connection.getresponse().read())
        assert said["status"] == "Healthy"
        with Peer(server.address) as peer:
            peer.open("exec", argv=["sleep", "1000"]).accepted()
            with requesting(server, "GET", "/ping") as connection:
                said = json.loads(connection.getresponse().read())
        assert said["status"] == "HealthyBusy"
        with requesting(server, "GET", "/readyz") as connection:
            assert connection.getresponse().status == 200


def test_a_websocket_passes_with_subprotocol_and_compression(tmp_path: Path) -> None:
    seen: list[Any] = []

    def handle(connection: Any) -> None:  # noqa: ANN401  of a library
        seen.append(connection.request.headers.get("X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"))
        for message in connection:
            connection.send(message * 2)

    with serve(handle, "127.0.0.1", 0, subprotocols=CHAT) as workload:
        running = threading.Thread(target=workload.serve_forever)
        running.start()
        port = workload.socket.getsockname()[1]
        config = f"[agentcore]\nport = {port}\n"
        with serving(f"tcp:127.0.0.1:{free_port()}", config=config) as server:
            place = server.address.removeprefix("tcp:")
            runtime = ARN.replace("/", "%2F")
            for path in (
                "/ws",
                f"/runtimes/{runtime}/ws?X-Amzn-Bedrock-AgentCore-Runtime-Session-Id={SESSION}",
            ):
                connecting: Any = connect(f"ws://{place}{path}", subprotocols=CHAT)
                with connecting as connection:
                    assert connection.subprotocol == "chat"
                    assert "permessage-deflate" in connection.response.headers["Sec-WebSocket-Extensions"]
                    for message in ("text", b"\0\xff" * 50_000):
                        connection.send(message)
                        assert connection.recv() == message * 2
            assert seen == [None, SESSION]
        workload.shutdown()
        running.join()
