"""Reaching an address: each scheme over a real socket, and each way of failing named with what to try."""

from __future__ import annotations

import socket
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, wrap_server_stream

from guestd.client import connect
from guestd.client.link import SocketLink
from guestd.client.tasks import background
from guestd.errors import ConnectionLost, ProtocolViolation, Unavailable
from guestd.wire.frames import PREFACE, Kind, data_head, encode
from guestd.wire.hello import Hello
from guestd.wire.messages import pack
from tests.aio.scripted import Peer, accept, control

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from guestd.client import Job

HELLO = encode(Kind.HELLO, 0, pack(Hello(agent="scripted").to_map()))


@asynccontextmanager
async def listening(path: Path, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """A Unix socket, every connection of which is served."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(str(path))
    listener.listen()

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await serve(stream)

    async with background() as tasks:
        tasks.start_soon(trio.serve_listeners, handle, [trio.SocketListener(listener)])
        yield str(path)


async def answer_ps(stream: trio.abc.Stream) -> None:
    peer = Peer(stream)
    await peer.greet()
    while (seen := await peer.receive()) is not None:
        if seen.kind is Kind.OPEN:
            await peer.send(
                control(Kind.ACCEPT, seen.channel) + control(Kind.END, seen.channel, jobs=[{"id": "a"}])
            )


async def reach(address: str, timeout: float = 30) -> None:
    async with connect(address, timeout=timeout) as client:
        assert await client.ps() == [{"id": "a"}]


# ------------------------------------------------------------------------------------------------ where it works


async def test_unix(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", answer_ps) as path:
        await reach(f"unix:{path}")


async def test_tcp() -> None:
    async with background() as tasks:
        listeners = await tasks.start(trio.serve_tcp, answer_ps, 0)
        await reach(f"tcp:127.0.0.1:{listeners[0].socket.getsockname()[1]}")


@pytest.mark.parametrize("answer", [b"OK 1073741824\n", b"OK 5\n"])
async def test_hybrid_leaves_what_follows_the_line_to_the_protocol(tmp_path: Path, answer: bytes) -> None:
    """The guest may speak at once: the buggy version of many a client eats its first bytes with the VMM's line."""

    async def vmm(stream: trio.SocketStream) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += await stream.receive_some(1)
        assert line == b"CONNECT 1024\n"
        await stream.send_all(answer + PREFACE + HELLO)
        peer = Peer(stream)
        await peer.expect(Kind.HELLO)
        seen = await peer.expect(Kind.OPEN)
        await peer.send(
            control(Kind.ACCEPT, seen.channel) + control(Kind.END, seen.channel, jobs=[{"id": "a"}])
        )
        assert await peer.receive() is None

    async with listening(tmp_path / "s", vmm) as path:
        await reach(f"hybrid:{path}")


async def websocket_peer(stream: trio.SocketStream) -> None:
    async with background() as tasks:
        request = await wrap_server_stream(tasks, stream)
        websocket = await request.accept()
        try:
            hello = await websocket.get_message()
            assert isinstance(hello, bytes)
            assert hello[0] == Kind.HELLO
            await websocket.send_message(HELLO[4:])
            opened = await websocket.get_message()
            assert isinstance(opened, bytes)
            channel = opened[1]
            await websocket.send_message(control(Kind.ACCEPT, channel)[4:])
            await websocket.send_message(control(Kind.END, channel, jobs=[{"id": "a"}])[4:])
            await websocket.get_message()
        except ConnectionClosed:
            pass


async def test_websocket_over_unix(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", websocket_peer) as path:
        await reach(f"ws+unix:{path}")


async def test_websocket_over_tcp() -> None:
    async with background() as tasks:
        listeners = await tasks.start(trio.serve_tcp, websocket_peer, 0)
        await reach(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/any/path")


# --------------------------------------------------------------------------------------------- where it does not


async def test_no_such_socket(tmp_path: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"no such socket; is `guestd serve` running there\? \(ENOENT\)"
    ) as caught:
        await reach(f"unix:{tmp_path}/none")
    assert caught.value.details["address"] == f"unix:{tmp_path}/none"


async def test_a_socket_nobody_listens_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)
    with pytest.raises(Unavailable, match="nobody listens there"):
        await reach(f"unix:{tmp_path}/s")


async def test_a_port_nobody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable, match=r"nobody listens there.*ECONNREFUSED"):
        await reach(f"tcp:127.0.0.1:{port}")


async def test_connecting_to_any_is_a_mistake_that_is_named() -> None:
    with pytest.raises(Unavailable, match="`any` is for listening"):
        await reach("vsock:any:1024")


async def test_a_full_backlog_is_waited_out(tmp_path: Path) -> None:
    """EAGAIN of a Unix socket is no error and no progress either; taking it for one makes a dead connection."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        async with background() as tasks:
            done = trio.Event()

            async def second() -> None:
                await reach(f"unix:{path}")
                done.set()

            tasks.start_soon(second)
            # Nothing says when it has been turned away once; both orders are right, and the usual one is that it has.
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            server.accept()[0].close()
            server.setblocking(False)
            await trio.lowlevel.wait_readable(server)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(server.accept()[0]))
            async with stream:
                tasks.start_soon(answer_ps, stream)
                await done.wait()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "has guestd started in it, and does it listen on that port"),
        (b"ERR no\n", "the VMM answered b'ERR no"),
        (b"x" * 1000, "the VMM answered b'xxx"),
    ],
)
async def test_a_vmm_that_does_not_connect(tmp_path: Path, answer: bytes, text: str) -> None:
    async def vmm(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(answer)

    async with listening(tmp_path / "s", vmm) as path:
        with pytest.raises(Unavailable, match=text):
            await reach(f"hybrid:{path}:1024")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nnothing", "answered HTTP 404.*nothing"),
        (b"", "ended the WebSocket handshake half-way"),
        (b"\x00guestd\x01 is not HTTP\r\n\r\n", "ended the WebSocket handshake half-way"),
    ],
)
async def test_a_websocket_handshake_that_fails(tmp_path: Path, answer: bytes, text: str) -> None:
    """trio-websocket raises the first out of a task of its own, and never wakes anybody after the second."""

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(answer)

    async with listening(tmp_path / "s", refuse) as path:
        with pytest.raises(Unavailable, match=text):
            await reach(f"ws+unix:{path}")


async def test_a_websocket_that_is_cut_is_a_lost_connection(tmp_path: Path) -> None:
    async def cut(stream: trio.SocketStream) -> None:
        async with background() as tasks:
            request = await wrap_server_stream(tasks, stream)
            websocket = await request.accept()
            await websocket.get_message()
            await websocket.send_message(HELLO[4:])
            await websocket.get_message()
            await trio.aclose_forcefully(stream)

    async with listening(tmp_path / "s", cut) as path:
        with pytest.raises(ConnectionLost, match="WebSocket was closed with 1006"):
            await reach(f"ws+unix:{path}")


async def test_a_text_message_is_not_this_protocol(tmp_path: Path) -> None:
    async def chat(stream: trio.SocketStream) -> None:
        async with background() as tasks:
            request = await wrap_server_stream(tasks, stream)
            websocket = await request.accept()
            await websocket.send_message("hello")
            await trio.sleep_forever()

    async with listening(tmp_path / "s", chat) as path:
        with pytest.raises((ConnectionLost, ProtocolViolation), match="binary"):
            await reach(f"ws+unix:{path}")


# ------------------------------------------------------------------------------------------------- the socket link


async def test_a_socket_takes_what_it_can_at_once_and_the_rest_in_order() -> None:
    near, far = socket.socketpair()
    link, other = SocketLink(near), SocketLink(far)
    text = bytes(range(256)) * 4096
    frames = [
        (data_head(1, 0, at, 65536), memoryview(text)[at : at + 65536]) for at in range(0, len(text), 65536)
    ]
    try:
        first = PREFACE
        assert link.send_now(first, b"") == len(first)
        sent = link.send_now(*frames[0])
        assert sent > 0
        rest = b"".join(frames[0])[sent:]
        got = b""
        other.greeted()
        async with background() as tasks:
            tasks.start_soon(link.send, [(rest, b""), *frames[1:]])
            while len(got) < len(text):
                frame = await other.receive()
                assert frame is not None
                got += frame.payload[9:]
        assert got == text
    finally:
        await link.aclose()
        assert await other.receive() is None
        await other.aclose()


async def test_a_full_socket_takes_nothing_at_once() -> None:
    near, far = socket.socketpair()
    link = SocketLink(near)
    try:
        while link.send_now(bytes(65536), b"") > 0:
            pass
        assert link.send_now(b"x", b"y") == 0
    finally:
        await link.aclose()
        far.close()


# ------------------------------------------------------------------------------------------- a connection on a socket


async def test_frames_of_many_senders_stay_whole_and_in_order_when_the_guest_reads_late(
    tmp_path: Path,
) -> None:
    """A socket takes part of a frame at once. The buggy version let the next frame go before the rest of it."""
    jobs, size = 4, 300_000
    text = bytes(range(256)) * (size // 256 + 1)
    everything_sent = trio.Event()
    got: dict[int, bytes] = {}
    ended = trio.Event()

    async def late(stream: trio.SocketStream) -> None:
        peer = Peer(stream, window=size)
        await peer.greet()
        for _ in range(jobs):
            opened = await peer.expect(Kind.OPEN)
            got[opened.channel] = b""
            await peer.send(accept(opened.channel))
        await everything_sent.wait()
        eofs = 0
        while eofs < jobs:
            seen = await peer.receive()
            assert seen is not None
            if seen.kind is Kind.DATA:
                assert seen.offset == len(got[seen.channel])
                got[seen.channel] += seen.data
            elif seen.kind is Kind.EVENT and seen.fields["event"] == "eof":
                eofs += 1
        ended.set()
        assert await peer.receive() is None

    async with listening(tmp_path / "s", late) as path, connect(f"unix:{path}") as client:
        async with background() as tasks:
            running = [await client.exec(["x"], stdin="stream") for _ in range(jobs)]

            async def feed(job: Job) -> None:
                await job.send(text[:size])
                await job.close_stdin()

            for job in running:
                tasks.start_soon(feed, job)
            await wait_all_tasks_blocked()
            for job in running:
                await job.signal("USR1")  # small frames in between, none of which may overtake
            everything_sent.set()
            await ended.wait()
        assert list(got.values()) == [text[:size]] * jobs


async def test_a_peer_that_pings_and_never_reads_does_not_fill_our_memory(tmp_path: Path) -> None:
    pinged = trio.Event()

    async def ping(stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        await peer.greet()
        for _ in range(500):
            await peer.send(encode(Kind.PING, 0, b"x" * 64) * 200)
        pinged.set()
        await trio.sleep_forever()

    async with listening(tmp_path / "s", ping) as path, connect(f"unix:{path}") as client:
        await pinged.wait()
        await wait_all_tasks_blocked()
        assert 0 < client._connection._queued < 1024 * 1024
