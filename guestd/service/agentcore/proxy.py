"""What is passed on to the workload: invocations, its ping, its WebSocket, and any port that is allowed.

Bodies pass piece by piece in both directions, at the pace of whoever takes them; nothing is gathered, so events arrive
as they are sent. Headers pass as they are, but for those of the connection, for what opens guestd, and for signatures
that are meant for the control plane.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager, nullcontext, suppress
from math import inf
from typing import TYPE_CHECKING

import h11
import trio

from guestd.errors import Forbidden, GuestdError, Unavailable
from guestd.lifecycle.idle import Hold
from guestd.service.agentcore import bearer, routes
from guestd.service.agentcore.eventstream import as_json
from guestd.service.agentcore.failures import WORKLOAD, AwsError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from guestd.service.agentcore.exchange import Exchange
    from guestd.service.agentcore.routes import Route
    from guestd.service.agentcore.surface import Surface

    RawHeaders = Sequence[tuple[bytes, bytes]]

_log = logging.getLogger("guestd.agentcore")
_HOST = "127.0.0.1"
_PIECE = 64 * 1024
#: Of the head of an answer; more than of a request, since it is the guest's own program that sends it.
_HEAD_MAX = 64 * 1024
#: By protocol: where the workload listens, and at which path it is invoked.
_WHERE = {"http": (8080, "/invocations"), "mcp": (8000, "/mcp"), "a2a": (9000, "/")}
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"expect",
}  # fmt: skip
#: What a client that only listens asks with: such a request keeps nothing awake by being open.
_LISTENING = {"GET", "HEAD", "OPTIONS"}
_LOOK_AGAIN = 0.05
#: Of what a workload says with an error, so much is repeated.
_SHOWN = 2000
#: Moved bytes are noted so often.
_NOTED = 1.0
_ID_TO_WORKLOAD = b"X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"


async def respond(surface: Surface, exchange: Exchange, route: Route, token: bytes | None) -> None:
    """Pass the request on, and its answer back."""
    port, path = place_of(surface, route)
    if route.operation == routes.PORT and not any(
        low <= port <= high for low, high in surface.settings.ports
    ):
        raise Forbidden(f"port {port} is not among those that may be reached (agentcore.ports)")
    upgrade = exchange.wants_websocket
    if upgrade:
        exchange.check_websocket()
    is_ping = route.operation == routes.PING
    if not is_ping:
        surface.used(route.operation)
    head = _head(surface, exchange, route, path, token, upgrade=upgrade)
    invokes = not upgrade and exchange.method not in _LISTENING
    # Also while it waits for a workload that is just starting.
    with _counted(surface) if invokes else nullcontext():
        try:
            stream = await _connect(surface, port, patient=not is_ping)
        except Unavailable:
            if is_ping and surface.session.life.workload is None:
                await _ping(surface, exchange, route)
                return
            raise
        async with stream:
            await _Passing(surface, exchange, route, stream).run(head)


def place_of(surface: Surface, route: Route) -> tuple[int, str]:
    """The port and the target that are asked for there."""
    query = f"?{route.query}" if route.query else ""
    if route.operation == routes.PORT:
        return route.port, (route.rest or "/") + query
    usual, path = _WHERE[surface.settings.protocol]
    port = surface.settings.port or usual
    if route.operation == routes.WORKLOAD:
        return port, (path.rstrip("/") + route.rest if route.rest else path) + query
    return port, f"/{route.operation}{query}"


async def _connect(surface: Surface, port: int, *, patient: bool) -> trio.SocketStream:
    """A connection; a workload that is only just starting is waited for."""
    until = trio.current_time() + (surface.settings.connect if patient else 0.0)
    while True:
        sock = trio.socket.socket()
        try:
            await sock.connect((_HOST, port))
            return trio.SocketStream(sock)
        except OSError as error:
            sock.close()
            workload = surface.session.life.workload
            if workload is None or workload.state == "ended" or trio.current_time() >= until:
                why = os.strerror(error.errno or 0)
                raise Unavailable(f"nothing answers on port {port} of the guest: {why}") from None
        except BaseException:
            sock.close()
            raise
        # Nobody tells when another process begins to listen.
        await trio.sleep(_LOOK_AGAIN)


async def _ping(surface: Surface, exchange: Exchange, route: Route) -> None:
    """Without a workload guestd says how the session is."""
    verdict = surface.session.life.watch.verdict(thorough=False)
    wall, _ = surface.session.clock()
    at = wall if verdict.busy else wall - (verdict.now - verdict.last.at)
    said = {"status": "HealthyBusy" if verdict.busy else "Healthy", "time_of_last_update": int(at)}
    headers = [*surface.headers(exchange, route), (b"Content-Type", b"application/json")]
    await exchange.answer(200, headers, as_json(said))


@contextmanager
def _counted(surface: Surface) -> Generator[None]:
    """The session is busy as long as a request to the workload is open."""
    life = surface.session.life
    workload, watch = life.workload, life.watch
    if workload is None:
        number = watch.hold(Hold("an invocation", inf))
        try:
            yield
        finally:
            watch.release(number)
        return
    workload.invocations += 1
    try:
        yield
    finally:
        workload.invocations -= 1
        watch.touch("invocation")


def _head(
    surface: Surface, exchange: Exchange, route: Route, target: str, token: bytes | None, *, upgrade: bool
) -> h11.Request:
    from guestd.service.agentcore.surface import SESSION_ID, request_id

    chunked = b"chunked" in exchange.words(b"transfer-encoding")
    headers = _passed(bearer.without(exchange.headers, token), chunked=chunked)
    names = {name.lower() for name, _ in headers}
    if b"host" not in names:
        headers.insert(0, (b"Host", f"{_HOST}".encode()))
    if chunked:
        headers.append((b"Transfer-Encoding", b"chunked"))
    if route.arn is not None:
        if SESSION_ID.lower() not in names:
            headers.append((SESSION_ID, surface.session_id(exchange, route)))
        if _ID_TO_WORKLOAD.lower() not in names:
            headers.append((_ID_TO_WORKLOAD, request_id(exchange)))
    if upgrade:
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return h11.Request(method=exchange.method, target=target, headers=headers)


def _passed(headers: RawHeaders, *, chunked: bool = False) -> list[tuple[bytes, bytes]]:
    """Without what concerns one connection alone, and what its Connection header names. What comes in chunks has no
    other length: two readers could take it for two messages.
    """
    named = {
        word.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for word in value.split(b",")
    }
    if chunked:
        named.add(b"content-length")
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP | named]


class _Passing:
    """One request on its way to the workload, and the answer on its way back."""

    def __init__(self, surface: Surface, exchange: Exchange, route: Route, stream: trio.SocketStream) -> None:
        self._surface = surface
        self._exchange = exchange
        self._route = route
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_MAX)
        self._noted = 0.0
        self._failure: GuestdError | AwsError | None = None
        #: The client has broken its request off.
        self._left = False
        #: A client that asks for a WebSocket is watched until it is answered: then it is read from.
        self._watching = trio.CancelScope()
        self._watched = trio.Event()

    async def run(self, head: h11.Request) -> None:
        """To the end of the answer."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_request, head, nursery.cancel_scope)
            try:
                await self._pass_answer()
            except (GuestdError, AwsError) as error:
                self._failure = error
            except (trio.BrokenResourceError, h11.RemoteProtocolError, h11.LocalProtocolError) as error:
                # Of which side it is, only the other one's being there tells.
                self._failure = Unavailable(f"the workload broke off its answer: {error}")
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _say(self, data: bytes | None) -> None:
        if data:
            await self._stream.send_all(data)

    # -------------------------------------------------------------------------------- to the workload

    async def _pass_request(self, head: h11.Request, scope: trio.CancelScope) -> None:
        exchange = self._exchange
        try:
            await self._say(self._h11.send(head))
            if exchange.wants_websocket:
                await self._watch_until_answered(scope)
                return
            while piece := await self._receive():
                self._note()
                await self._say(self._h11.send(h11.Data(data=piece)))
            if self._failure is None and not self._left:
                await self._say(self._h11.send(h11.EndOfMessage()))
        except (trio.BrokenResourceError, h11.LocalProtocolError):
            # The workload takes no more of it; it may have answered already.
            return
        finally:
            self._watched.set()
        if self._failure is None:
            if not self._left:
                await exchange.hung_up()
            _log.info("%s: closed before it was answered", exchange.peer)
        # Nobody waits for the answer: the workload is to see that.
        scope.cancel()

    async def _watch_until_answered(self, scope: trio.CancelScope) -> None:
        with self._watching:
            await self._exchange.hung_up()
            _log.info("%s: closed before it was answered", self._exchange.peer)
            scope.cancel()

    async def _receive(self) -> bytes:
        try:
            return await self._exchange.receive()
        except GuestdError as error:
            self._failure = error
            return b""
        except trio.BrokenResourceError:
            self._left = True
            return b""

    # -------------------------------------------------------------------------------- from the workload

    async def _pass_answer(self) -> None:
        exchange = self._exchange
        while True:
            event = await self._next()
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    self._watching.cancel()
                    await self._watched.wait()
                    await exchange.inform(101, event.headers.raw_items(), event.reason)
                    await self._pass_bytes()
                    return
                if event.status_code != 100:
                    await exchange.inform(event.status_code, _passed(event.headers.raw_items()), event.reason)
            elif isinstance(event, h11.Response):
                if event.status_code >= 400 and self._is_aws:
                    raise AwsError(WORKLOAD, await self._explain(event.status_code))
                await exchange.begin(event.status_code, self._answer_headers(event), event.reason)
            elif isinstance(event, h11.Data):
                self._note()
                await exchange.send(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                await exchange.end(_passed(event.headers.raw_items()))
                return
            else:
                raise h11.RemoteProtocolError("it closed before its answer was whole")

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event  # pyright: ignore[reportReturnType]  of the two sentinels only this one is left
            self._h11.receive_data(await self._stream.receive_some(_PIECE))

    @property
    def _is_aws(self) -> bool:
        """What an SDK asks for has an SDK's errors."""
        return (
            self._route.operation == routes.WORKLOAD
            and self._route.arn is not None
            and self._surface.settings.protocol == "http"
        )

    def _answer_headers(self, event: h11.Response) -> list[tuple[bytes, bytes]]:
        chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
        headers = _passed(event.headers.raw_items(), chunked=chunked)
        if self._route.arn is not None:
            names = {name.lower() for name, _ in headers}
            own = self._surface.headers(self._exchange, self._route)
            headers += [(name, value) for name, value in own if name.lower() not in names]
        return headers

    async def _explain(self, status: int) -> str:
        body = bytearray()
        with suppress(h11.RemoteProtocolError), trio.move_on_after(1.0):
            while len(body) < _SHOWN:
                event = await self._next()
                if not isinstance(event, h11.Data):
                    break
                body += event.data
        said = body[:_SHOWN].decode("utf-8", "replace").strip()
        return f"Received error ({status}) from runtime{': ' + said if said else ''}"

    async def _pass_bytes(self) -> None:
        """Whatever is spoken after 101, both ways until both have ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_to_workload)
            await self._exchange.write(self._h11.trailing_data[0])
            while data := await self._stream.receive_some(_PIECE):
                self._note()
                await self._exchange.write(data)
            nursery.cancel_scope.cancel()

    async def _pass_to_workload(self) -> None:
        while data := await self._exchange.read():
            self._note()
            await self._stream.send_all(data)
        await self._stream.send_eof()

    def _note(self) -> None:
        now = time.monotonic()
        if now - self._noted >= _NOTED:
            self._noted = now
            self._surface.used("bytes")
