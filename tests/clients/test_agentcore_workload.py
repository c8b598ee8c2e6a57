"""What is passed on to the workload: AgentCore's own app as one, asked by boto3; its ping, and its WebSocket."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets import Subprotocol
from websockets.sync.client import connect
from websockets.sync.server import serve

from tests.support.agentcore import ARN, SESSION, Sdk, requesting, sdk
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

    # Without pings there are no threads for them, which would end some time after their connections.
    with serve(handle, "127.0.0.1", 0, subprotocols=CHAT, ping_interval=None) as workload:
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
                connecting: Any = connect(f"ws://{place}{path}", subprotocols=CHAT, ping_interval=None)
                with connecting as connection:
                    assert connection.subprotocol == "chat"
                    assert "permessage-deflate" in connection.response.headers["Sec-WebSocket-Extensions"]
                    for message in ("text", b"\0\xff" * 50_000):
                        connection.send(message)
                        assert connection.recv() == message * 2
            assert seen == [None, SESSION]
        workload.shutdown()
        running.join()
