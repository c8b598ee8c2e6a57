"""A harness's own telemetry through the relay `otlp`: the real SDK in a process of its own, decoded where it arrives;
and everything that a program, or a target, can get wrong.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import sys
import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.life import serving
from tests.support.passing import PATIENCE, Program, abort, connected, read_all
from tests.support.peer import Peer
from tests.support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.support.server import Server

_SIGNALS = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}
#: A harness: all three signals by the real SDK, set up by nothing but its environment.
_HARNESS = """
import logging
from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
traces = TracerProvider()
traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
meters = MeterProvider(metric_readers=[PeriodicExportingMetricReader(OTLPMetricExporter())])
logs = LoggerProvider()
logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
with traces.get_tracer("harness").start_as_current_span("turn") as span:
    span.set_attribute("tokens", 7)
meters.get_meter("harness").create_counter("tokens").add(7)
logs.get_logger("harness").emit(body="said", severity_number=None)
for each in (traces, meters, logs):
    each.shutdown()
"""


class Got(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def resources(self) -> list[dict[str, Any]]:
        """The attributes of each resource."""
        message: Any = _SIGNALS[self.path.partition("?")[0]]()
        message.ParseFromString(self.body)
        entries: Any = next(iter(message.ListFields()))[1]
        return [
            {each.key: each.value.string_value or each.value.int_value for each in entry.resource.attributes}
            for entry in entries
        ]


class Receiver(ThreadingHTTPServer):
    """Takes what comes, keeps it, and says what a collector says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[Got] = []
        self.connections = 0
        self.threads: list[threading.Thread] = []
        self.port = int(self.server_address[1])
        self.address = f"tcp:127.0.0.1:{self.port}"

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        self.connections += 1
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address))
        self.threads.append(thread)
        thread.start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: Receiver  # pyright: ignore[reportIncompatibleVariableOverride]  it is one

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(body)

    def do_GET(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.server.got.append(Got(self.path, dict(self.headers.items()), body))
        status = int(self.headers.get("X-Answer", "200"))
        said = b'{"partialSuccess":{}}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if self.headers.get("X-Chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(len(said)):
                self.wfile.write(b"1\r\n" + said[at : at + 1] + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def receiving() -> Generator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


class Relayed(NamedTuple):
    server: Server
    receiver: Receiver
    port: int


@pytest.fixture(scope="module")
def relayed() -> Iterator[Relayed]:
    """One guestd with the relay for several tests; the program's connections are closed by each of them."""
    port = free_port()
    with receiving() as receiver:
        config = settings(port, receiver.address, 'body = "256 KiB"', 'attributes = {"team.name" = "agents"}')
        with serving(config=config) as server:
            yield Relayed(server, receiver, port)


@pytest.fixture(autouse=True)
def _nothing_got(relayed: Relayed) -> Iterator[None]:
    relayed.receiver.got.clear()
    yield
    for thread in list(relayed.receiver.threads):
        thread.join(PATIENCE)


def settings(port: int, to: str, *more: str) -> str:
    return "\n".join(["[relay.otlp]", f'listen = "tcp:127.0.0.1:{port}"', f'to = "{to}"', *more, ""])


def trace(**attributes: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    entry = request.resource_spans.add()
    for key, value in attributes.items():
        entry.resource.attributes.add(key=key).value.string_value = value
    entry.scope_spans.add().spans.add(name="turn")
    return request


def raw_post(body: bytes) -> bytes:
    head = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def post(port: int, body: bytes, *, path: str = "/v1/traces", **headers: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    named = {"Content-Type": "application/x-protobuf"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_harness_that_knows_nothing_of_it(relayed: Relayed, compression: str) -> None:
    with Peer(relayed.server.address) as peer:
        call = peer.open(
            "exec", argv=[sys.executable, "-W", "ignore", "-c", _HARNESS],
            env={"OTEL_EXPORTER_OTLP_COMPRESSION": compression, "OTEL_RESOURCE_ATTRIBUTES": "session.id=mine,a=b"},
        )  # fmt: skip
        ended = call.end()
        assert (ended["status"], call.stderr) == (0, b"")
        status = peer.ask("status")
    by_path = {got.path: got for got in relayed.receiver.got}
    assert set(by_path) == set(_SIGNALS)
    for got in by_path.values():
        (resource,) = got.resources
        assert resource["telemetry.sdk.language"] == "python"
        assert resource["a"] == "b"
        assert resource["team.name"] == "agents"
        assert resource["session.id"] == status["session_id"]
        assert resource["host.boot.id"] == status["boot_id"]
        assert resource["guestd.session.generation"] == status["generation"]
        assert "Content-Encoding" not in got.headers
    spans = (
        ExportTraceServiceRequest.FromString(by_path["/v1/traces"].body)
        .resource_spans[0]
        .scope_spans[0]
        .spans
    )
    assert [(span.name, span.attributes[0].value.int_value) for span in spans] == [("turn", 7)]


def test_json_gzip_chunks_and_paths_behind_a_prefix(relayed: Relayed) -> None:
    as_json = b'{"resourceSpans":[{"scopeSpans":[]}]}'
    assert post(relayed.port, as_json, Content_Type="application/json; charset=utf-8")[0] == 200
    packed = gzip.compress(as_json[:10]) + gzip.compress(as_json[10:])
    assert post(relayed.port, packed, Content_Type="application/json", Content_Encoding="gzip")[0] == 200
    for got in relayed.receiver.got:
        (entry,) = json.loads(got.body)["resourceSpans"]
        assert {"key": "team.name", "value": {"stringValue": "agents"}} in entry["resource"]["attributes"]
    relayed.receiver.got.clear()
    assert post(relayed.port, trace().SerializeToString(), path="/otlp/v1/traces/?x=1", X_Chunked="yes") == (
        200,
        '{"partialSuccess":{}}',
    )
    body = trace(a="b").SerializeToString()
    with connected(relayed.port) as sock:
        sock.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nExpect: 100-continue\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        for at in range(len(body)):
            sock.sendall(b"1\r\n" + body[at : at + 1] + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")
    first, second = relayed.receiver.got
    assert first.path == "/otlp/v1/traces/?x=1"
    assert second.resources[0].keys() >= {"a", "session.id"}


def test_one_connection_serves_many_requests_and_a_resume_counts_from_the_next_on(relayed: Relayed) -> None:
    before = relayed.receiver.connections
    connection = HTTPConnection("127.0.0.1", relayed.port, timeout=PATIENCE)
    sessions: list[str] = []
    with Peer(relayed.server.address) as peer:
        for _ in range(3):
            connection.request(
                "POST", "/v1/traces", trace().SerializeToString(), {"Content-Type": "application/x-protobuf"}
            )
            assert connection.getresponse().read()
            sessions.append(peer.ask("status")["session_id"])
            peer.ask("resume")
    connection.close()
    assert relayed.receiver.connections == before + 1
    assert [got.resources[0]["session.id"] for got in relayed.receiver.got] == sessions
    assert len(set(sessions)) == 3


def test_what_is_no_export_passes_as_it_is(relayed: Relayed) -> None:
    connection = HTTPConnection("127.0.0.1", relayed.port, timeout=PATIENCE)
    connection.request("GET", "/health?x=1", headers={"X-Answer": "404"})
    assert (connection.getresponse().status, relayed.receiver.got[-1].path) == (404, "/health?x=1")
    connection.close()
    large = bytes(range(256)) * 4096
    assert post(relayed.port, large, path="/upload")[0] == 200
    assert post(relayed.port, b"text", Content_Type="text/plain")[0] == 200
    assert [got.body for got in relayed.receiver.got[1:]] == [large, b"text"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"<html>", {}, 400, "guestd, relay otlp: this is no OTLP export: it"),
        (b"[1]", {"Content_Type": "application/json"}, 400, "it is not a JSON object"),
        (b"no gzip", {"Content_Encoding": "gzip"}, 400, "this is no OTLP export"),
        (gzip.compress(b"\n\x00" * 9)[:-9], {"Content_Encoding": "gzip"}, 400, "its gzip is cut off"),
        (b"x", {"Content_Encoding": "zstd"}, 415, "the encoding 'zstd' is not known here: use gzip, or none"),
        (bytes(300_000), {}, 413, "the body is longer than 262144 bytes (relay.otlp.body)"),
        (
            gzip.compress(bytes(1_000_000)),
            {"Content_Encoding": "gzip"},
            413,
            "unpacks to more than 262144 bytes",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(
    relayed: Relayed, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    found = post(relayed.port, body, **headers)
    assert found[0] == status
    assert said in found[1]
    assert not relayed.receiver.got


def test_grpc_is_told_what_to_do(relayed: Relayed) -> None:
    with connected(relayed.port) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        said = read_all(sock)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in said


def test_a_target_that_is_not_there_breaks_off_or_talks_nonsense() -> None:
    port, target = free_port(), free_port()
    body = trace().SerializeToString()
    with serving(config=settings(port, f"tcp:127.0.0.1:{target}")) as server, Peer(server.address) as peer:
        status, said = post(port, body)
        assert status == 503
        assert f"nobody takes this; cannot connect to tcp:127.0.0.1:{target}" in said
        for answer, expected in ((b"", 502), (b"nonsense\r\n\r\n", 502)):

            def misbehave(sock: socket.socket, answer: bytes = answer) -> None:
                sock.recv(65536)
                sock.sendall(answer) if answer else abort(sock)

            with misbehaving(target, misbehave):
                status, said = post(port, body)
                assert (status, f"127.0.0.1:{target}" in said) == (expected, True)
        # Half an answer is none: the program must not take it for one.
        with misbehaving(target, half_an_answer), connected(port) as sock:
            sock.sendall(raw_post(body))
            with pytest.raises(ConnectionResetError):
                read_all(sock)
        (relay,) = peer.ask("status")["relays"]
        assert (relay["unreachable_count"], relay["open"], relay["edited"]) == (1, 0, 4)


def half_an_answer(sock: socket.socket) -> None:
    sock.recv(65536)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


@contextmanager
def misbehaving(port: int, serve: Any) -> Generator[None]:  # noqa: ANN401
    program = Program(serve)
    listener = socket.create_server(("127.0.0.1", port))
    program._listener.close()
    program._listener = listener
    with program:
        yield


def test_a_program_that_gives_up_waiting_frees_its_target() -> None:
    asked, freed = threading.Event(), threading.Event()

    def hang(sock: socket.socket) -> None:
        data = b""
        while not data.endswith(b"turn"):
            data += sock.recv(65536)
        asked.set()
        with contextlib.suppress(ConnectionResetError):
            assert not sock.recv(1)
        freed.set()

    port = free_port()
    body = b"".join((trace().SerializeToString(), b"\xfa\x07\x04turn"))
    with Program(hang) as program, serving(config=settings(port, program.address)):
        with connected(port) as sock:
            sock.sendall(raw_post(body))
            assert asked.wait(PATIENCE)
        assert freed.wait(PATIENCE)


def test_a_target_that_takes_nothing_holds_no_export_of_a_program_that_has_gone() -> None:
    """It was waited for until the connection had been idle for an hour, with a body that counts among all of them."""
    accepted, freed = threading.Event(), threading.Event()

    def take_nothing(sock: socket.socket) -> None:
        accepted.set()
        ended = select.poll()
        ended.register(sock, select.POLLRDHUP)
        if ended.poll(PATIENCE * 1000):
            freed.set()

    port = free_port()
    large = trace(filler="x" * 4_000_000).SerializeToString()
    with Program(take_nothing) as program, serving(config=settings(port, program.address)) as server:
        with connected(port) as sock:
            sock.sendall(raw_post(large))
            assert accepted.wait(PATIENCE)
        assert freed.wait(PATIENCE)
        with Peer(server.address) as peer:
            while peer.ask("status")["relays"][0]["open"]:
                pass


def test_a_kept_connection_that_the_target_has_closed_costs_no_export() -> None:
    """A collector closes what was idle for a while; the next request goes over a new connection."""
    served: list[bytes] = []

    def once(sock: socket.socket) -> None:
        served.append(sock.recv(65536))
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    port = free_port()
    with Program(once) as program, serving(config=settings(port, program.address)):
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for _ in range(5):
            connection.request(
                "POST", "/v1/traces", trace().SerializeToString(), {"Content-Type": "application/x-protobuf"}
            )
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
        connection.close()
    assert len(served) == 5


def test_a_kept_connection_that_breaks_under_a_request_costs_no_export() -> None:
    """The target had closed it in the very moment: that says nothing about the request, which goes over another one."""
    answers = iter([1, 5])

    def some(sock: socket.socket) -> None:
        for _ in range(next(answers)):
            if not sock.recv(65536):
                return
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        sock.recv(65536)
        abort(sock)

    port = free_port()
    with Program(some) as program, serving(config=settings(port, program.address)):
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for _ in range(3):
            connection.request(
                "POST", "/v1/traces", trace().SerializeToString(), {"Content-Type": "application/x-protobuf"}
            )
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
        connection.close()
