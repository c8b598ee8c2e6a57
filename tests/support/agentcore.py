"""Clients of AgentCore Runtime that were made elsewhere, pointed at a guestd of the test's own."""

from __future__ import annotations

import gc
import http.client
import logging
import socket
import threading
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from tests.support.peer import dial

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from tests.support.server import Server

# They log every byte, which takes longer than sending it.
for _name in ("botocore", "boto3", "urllib3"):
    logging.getLogger(_name).setLevel(logging.INFO)
#: boto3 makes its classes as it goes.
Sdk: TypeAlias = Any
_boto3: Any = import_module("boto3")
_config: Any = import_module("botocore.config")
ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my_agent-AbCdEf1234"
REGION = "us-west-2"
#: Where root has no start-up files of somebody's own, which may take any time and print anything.
BARE_HOME = "[env]\nHOME = '/mnt/workspace'\n"
SESSION = "a-session-of-the-tests-with-enough-characters"


@contextmanager
def sdk(endpoint: str, **config: object) -> Generator[Sdk]:
    """boto3's client, as its users make it but for the endpoint. Its retries are its own, unless the test says."""
    client = _boto3.client(
        "bedrock-agentcore",
        region_name=REGION,
        endpoint_url=endpoint.replace("tcp:", "http://"),
        aws_access_key_id="anybody",
        aws_secret_access_key="any secret",
        config=_config.Config(**config),
    )
    try:
        yield client
    finally:
        client.close()
        # What an exception still refers to keeps its socket.
        gc.collect()


def always_send(client: Sdk, name: str, value: str) -> None:
    """Have a header in each of its requests, in place of its own."""

    def add(request: Sdk, **_: object) -> None:
        if name in request.headers:
            del request.headers[name]
        request.headers[name] = value

    client.meta.events.register("before-send", add)


def run(client: Sdk, command: str, **more: object) -> Ran:
    """One command, to its end."""
    body = {"command": command, **({"timeout": more.pop("timeout")} if "timeout" in more else {})}
    answer = client.invoke_agent_runtime_command(
        agentRuntimeArn=ARN, runtimeSessionId=SESSION, body=body, **more
    )
    with closing(answer["stream"]) as stream:
        return Ran(stream)


class Ran:
    """What a stream of events has said; its order is checked."""

    def __init__(self, events: Iterable[dict[str, Any]]) -> None:
        said: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.deltas = 0
        self.exit: tuple[int, str] | None = None
        for number, event in enumerate(events):
            assert self.exit is None, "something came after the end"
            ((kind, content),) = event["chunk"].items()
            if kind == "contentStart":
                assert number == 0
            elif kind == "contentDelta":
                assert number > 0
                self.deltas += 1
                for name, text in content.items():
                    said[name].append(text)
            else:
                self.exit = content["exitCode"], content["status"]
        self.stdout, self.stderr = ("".join(said[name]) for name in ("stdout", "stderr"))


class Wire:
    """A TCP port that leads to guestd's socket. `mute` connections, the first ones, hear nothing back."""

    def __init__(self, target: str, *, mute: int = 0) -> None:
        self.connections = 0
        self._target = target
        self._mute = mute
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in [self._listener, *self._sockets]:
            each.close()

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = dial(self._target)
                self._sockets += [near, far]
                self.connections += 1
                self._start(_pass_on, near, far)
                if self.connections > self._mute:
                    self._start(_pass_on, far, near)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def requesting(server: Server, method: str, path: str, **more: Any) -> Generator[http.client.HTTPConnection]:  # noqa: ANN401  of a library
    """Ask in HTTP what no SDK asks. The address over TCP is the second one."""
    connection = http.client.HTTPConnection(server.addresses[1].removeprefix("tcp:"), timeout=30)
    try:
        connection.request(method, path, **more)
        yield connection
    finally:
        connection.close()
