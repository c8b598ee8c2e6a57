"""The HTTP/1.1 server over streams in memory: every request whole, byte by byte, and with another behind it; what is no
request; who is slow.
"""

from __future__ import annotations

import socket
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import h11
import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair

from guestd.config import resolve
from guestd.errors import Conflict
from guestd.service.agentcore.surface import Surface
from guestd.transport.access import Access
from guestd.transport.ahead import Ahead
from guestd.transport.http import serve_stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from guestd.service.agentcore.exchange import Exchange
    from guestd.service.agentcore.routes import Route
    from guestd.transport.websocket import WebSocketLink

SETTINGS = resolve().checked()
LIMITS, SURFACE = SETTINGS.limits, SETTINGS.agentcore


class Echo(Surface):
    """Answers every request of the surface with what it was."""

    async def respond(self, exchange: Exchange, route: Route, token: bytes | None, peer: object) -> None:
        body = b""
        if route.operation != "ping":
            while piece := await exchange.receive():
                body += piece
        words = f"{exchange.method} {exchange.target} ".encode() + body
        if route.operation == "invocations":
            await exchange.begin(200, [(b"Content-Type", b"text/plain")])
            for at in range(0, len(words), 7):
                await exchange.send(words[at : at + 7])
            await exchange.end()
        else:
            await exchange.answer(200, [], words)


class Guest:
    """A session as far as HTTP needs one."""

    def __init__(self, kind: Callable[[Any], Surface] = Echo) -> None:
        self.settings = SETTINGS
        self.jobs = SimpleNamespace(listeners=[])
        self.connections = set[object]()
        self.served = 0
        self.leaving = False
        self.session_id = "5e55"
        self.surface = kind(cast("Any", self))
        self.natives = deque[str]()
        self.error: Exception | None = None
        self.ended_at = 0.0

    async def serve(self, stream: trio.abc.Stream, family: int = socket.AF_UNIX) -> None:
        async def native(link: WebSocketLink) -> None:
            self.natives.append(link.peer)

        try:
            await serve_stream(Ahead(stream), "peer", family, cast("Any", self), Access(SETTINGS), native)
        except (trio.TooSlowError, trio.BrokenResourceError) as error:
            self.error = error
        self.ended_at = trio.current_time()


Answer = tuple[int, dict[bytes, bytes], bytes]


class Client:
    """Sends bytes as they are, and reads answers with h11's own eyes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.rest = b""

    async def send(self, data: bytes, *, step: int = 0) -> None:
        for at in range(0, len(data), step or len(data)):
            await self.stream.send_all(data[at : at + (step or len(data))])

    async def answer(self, method: str = "GET") -> Answer:
        """The next one. Raises h11.RemoteProtocolError when it is broken off."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        reader.send(h11.EndOfMessage())
        if self.rest:
            reader.receive_data(self.rest)
        status, headers, body = 0, dict[bytes, bytes](), b""
        while True:
            event = reader.next_event()
            if event is h11.NEED_DATA:
                reader.receive_data(bytes(await self.stream.receive_some()))
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, dict(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.rest = reader.trailing_data[0]
                return status, headers, body
            else:
                assert isinstance(event, h11.InformationalResponse), event
                assert event.status_code == 100

    async def is_closed(self) -> bool:
        return not self.rest and not await self.stream.receive_some()


@pytest.fixture
async def guest() -> Guest:
    return Guest()


@pytest.fixture
async def client(guest: Guest, nursery: trio.Nursery) -> AsyncGenerator[Client]:
    near, far = memory_stream_pair()
    nursery.start_soon(guest.serve, far)
    yield Client(near)
    await near.aclose()


_POST = b"POST /invocations HTTP/1.1\r\nHost: a\r\n"
REQUESTS = {
    "get": (b"GET /healthz?a=b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /healthz?a=b "),
    "post": (
        b"POST /runtimes/x/commands HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /runtimes/x/commands hello",
    ),
    "chunked": (
        _POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\n\r\n",
        b"POST /invocations abcdefgh",
    ),
    "empty": (b"POST /invocations HTTP/1.1\r\nhost:a\r\ncontent-length:0\r\n\r\n", b"POST /invocations "),
    "continue": (
        _POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        b"POST /invocations hi",
    ),
    "two hosts": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: y\r\nhost:a\r\n\r\n", b"GET /healthz "),
    "absolute": (b"GET HTTP://a:1024/healthz?a=b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /healthz?a=b "),
    "behind empty lines": (b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /healthz "),
    "unread": (b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nunread...", b"GET /ping "),
}


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_is_answered_and_the_connection_kept(client: Client, name: str, step: int) -> None:
    request, answer = REQUESTS[name]
    for _ in range(2):
        await client.send(request, step=step)
        status, _, body = await client.answer()
        assert (status, body) == (200, answer)


@pytest.mark.parametrize("step", [0, 1, 7])
async def test_pipelined_requests_are_answered_in_turn(
    client: Client, nursery: trio.Nursery, step: int
) -> None:
    stream = b"".join(request for request, _ in REQUESTS.values()) * 3
    async with trio.open_nursery() as sending:
        sending.start_soon(lambda: client.send(stream, step=step))
        for _ in range(3):
            for _, answer in REQUESTS.values():
                status, _, body = await client.answer()
                assert (status, body) == (200, answer)


async def test_a_request_that_is_followed_by_nonsense_is_answered_first(client: Client) -> None:
    await client.send(REQUESTS["post"][0] + b"\x00\x01nonsense\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert (await client.answer())[0] == 400
    assert await client.is_closed()


async def test_a_client_that_waits_is_told_to_continue(client: Client) -> None:
    head, body = REQUESTS["continue"][0][:-2], b"hi"
    await client.send(head)
    assert await client.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(body)
    assert (await client.answer())[2] == b"POST /invocations hi"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
    ],
)
async def test_who_wants_it_closed_has_it_closed(client: Client, request_: bytes) -> None:
    await client.send(request_)
    assert (await client.answer())[0] == 200
    assert await client.is_closed()


async def test_head_has_the_length_and_no_body(client: Client) -> None:
    await client.send(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    for _ in range(2):
        status, headers, body = await client.answer("HEAD")
        assert (status, headers[b"content-length"], body) == (200, b"14", b"")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 426),
        (b"POST /x HTTP/1.0\r\n\r\n", 426),
        (b"GET /ping HTTP/1.1\r\nX: " + b"a" * 17_000, 431),
        (b"GET /ping HTTP/1.1\r\n" + b"X: y\r\n" * 6000, 431),
        (b"GET /ping HTTP/1.1\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        (b"GET /ping HTTP/3\r\nHost: a\r\n\r\n", 400),
        (b"GET  /ping HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /p\0ing HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /invocations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
async def test_what_is_no_request_of_ours(client: Client, said: bytes, status: int) -> None:
    await client.send(said)
    found, headers, _ = await client.answer()
    assert (found, headers[b"connection"]) == (status, b"close")
    assert await client.is_closed()


@pytest.mark.parametrize(
    "body", [b"xyz\r\n", b"5\r\nabcdefgh\r\n", b"ffffffffffffffffffffff\r\n", b"1;" + b"x" * 20_000]
)
async def test_a_body_that_is_not_what_it_says(nursery: trio.Nursery, body: bytes) -> None:
    guest = Guest(Refusing)
    near, far = memory_stream_pair()
    nursery.start_soon(guest.serve, far)
    client = Client(near)
    await client.send(b"POST /invocations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    status, headers, said = await client.answer()
    assert status == 400
    assert headers[b"x-amzn-errortype"] == b"ValidationException"
    assert b"body" in said
    await near.aclose()


class Refusing(Surface):
    """Reads the body, and then does not like it."""

    async def _operation(self, exchange: Exchange, route: Route, token: bytes | None, peer: object) -> None:
        while await exchange.receive():
            pass
        raise Conflict("it is taken")


async def test_an_error_is_as_aws_has_it_and_the_connection_goes_on(nursery: trio.Nursery) -> None:
    guest = Guest(Refusing)
    near, far = memory_stream_pair()
    nursery.start_soon(guest.serve, far)
    client = Client(near)
    for _ in range(2):
        await client.send(REQUESTS["post"][0].replace(b"Host", b"amz-sdk-invocation-id: i\r\nHost"))
        status, headers, body = await client.answer()
        assert (status, headers[b"x-amzn-errortype"]) == (409, b"ConflictException")
        assert headers[b"x-amzn-requestid"] == b"i"
        assert headers[b"x-amzn-bedrock-agentcore-runtime-session-id"] == b"guestd-5e55"
        assert body == b'{"message":"it is taken"}'
    await near.aclose()


async def test_an_end_in_mid_body_is_told_and_an_end(nursery: trio.Nursery) -> None:
    guest = Guest(Refusing)
    near, far = memory_stream_pair()
    nursery.start_soon(guest.serve, far)
    client = Client(near)
    await client.send(b"POST /runtimes/x/commands HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
    await near.send_eof()
    assert (await client.answer())[0] == 400
    assert await client.is_closed()
    await near.aclose()


# ------------------------------------------------------------------------------------------------------------- slowness


@pytest.mark.parametrize("before", [0, 1], ids=["first", "second"])
async def test_a_head_that_drips_is_given_up(
    guest: Guest, client: Client, autojump_clock: trio.testing.MockClock, before: int
) -> None:
    for _ in range(before):
        await client.send(REQUESTS["get"][0])
        await client.answer()
    for byte in REQUESTS["post"][0]:
        await client.send(bytes((byte,)))
        await trio.sleep(1)
    assert isinstance(guest.error, trio.TooSlowError)
    assert guest.ended_at == pytest.approx(LIMITS.handshake, abs=1.1)


async def test_a_connection_that_waits_for_nothing_is_closed(
    client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    await client.send(REQUESTS["get"][0])
    await client.answer()
    begun = trio.current_time()
    assert await client.is_closed()
    assert trio.current_time() - begun == pytest.approx(SURFACE.keep_alive, abs=2)


async def test_a_body_that_stops_is_told_so(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    guest = Guest(Refusing)
    near, far = memory_stream_pair()
    nursery.start_soon(guest.serve, far)
    client = Client(near)
    await client.send(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
    status, headers, _ = await client.answer()
    assert (status, headers[b"x-amzn-errortype"]) == (408, b"RequestTimeoutException")
    assert trio.current_time() == pytest.approx(SURFACE.stall, abs=1)
    assert await client.is_closed()
    await near.aclose()


async def test_a_client_that_takes_nothing_is_dropped(
    guest: Guest, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = lockstep_stream_pair()
    nursery.start_soon(guest.serve, far)
    await near.send_all(REQUESTS["get"][0])
    await trio.sleep(SURFACE.stall - 1)
    assert len(guest.connections) == 1
    await trio.sleep(2)
    assert "agentcore.stall" in str(guest.error)
    assert not guest.connections
    await near.aclose()


# ----------------------------------------------------------------------------------------------------- pages, upgrades

UPGRADE = (
    b"GET /any/path HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n"
)


@pytest.mark.parametrize("step", [0, 1])
async def test_an_upgrade_behind_other_requests_is_native(client: Client, guest: Guest, step: int) -> None:
    await client.send(REQUESTS["chunked"][0] + UPGRADE % b"", step=step)
    assert (await client.answer())[2] == b"POST /invocations abcdefgh"
    while b"\r\n\r\n" not in client.rest:
        client.rest += await client.stream.receive_some()
    assert client.rest.startswith(b"HTTP/1.1 101 ")
    assert list(guest.natives) == ["peer"]


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE % b"Origin: http://evil\r\n",
        REQUESTS["get"][0].replace(b"Host", b"Origin: null\r\nHost"),
        REQUESTS["post"][0].replace(b"Host", b"Sec-Fetch-Site: cross-site\r\nHost"),
    ],
)
async def test_a_web_page_gets_in_only_where_no_browser_can_reach(
    guest: Guest, nursery: trio.Nursery, request_: bytes, family: int
) -> None:
    near, far = memory_stream_pair()
    nursery.start_soon(guest.serve, far, family)
    await near.send_all(request_)
    said = await near.receive_some()
    assert said.startswith(b"HTTP/1.1 403 Forbidden") is (family == socket.AF_INET)
    await near.aclose()
