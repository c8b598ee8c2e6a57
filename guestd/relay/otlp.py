"""The relay that reads what passes: OTLP over HTTP, whose resources get the session's attributes.

Each request is taken whole, bounded, and sent on with its resources edited; what is no OTLP export passes as it comes.
A connection to the target serves all requests of one connection of the guest's. What the target does not take is
answered at once, in words, with a status after which exporters come again.
"""

from __future__ import annotations

import errno
import zlib
from typing import TYPE_CHECKING

import h11
import trio

from guestd.errors import Refused
from guestd.relay import answers
from guestd.relay.http_side import FRAMING, Side, header_of, headers_to_pass, request_headers_to_pass
from guestd.relay.otlp_wire import Malformed, with_attributes, with_attributes_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from guestd.relay.ends import End
    from guestd.relay.plan import Plan
    from guestd.relay.pump import Gone

#: How long the target has to take an export and answer it. Exporters give up after ten seconds, if not told otherwise.
_ANSWER = 30.0
_SIGNALS = (b"/v1/traces", b"/v1/metrics", b"/v1/logs", b"/v1development/profiles", b"/v1/profiles")
_PROTOBUF = (b"application/x-protobuf", b"application/protobuf")
_JSON = b"application/json"
#: A body this small is edited where it is; for others a thread costs less than the wait of everybody else.
_AT_ONCE = 16 * 1024
_GZIP = 31
#: What all connections of a relay may hold of bodies at once, and how many bodies are edited beside the loop.
_BODIES = 32 * 1024 * 1024
_EDITING = trio.CapacityLimiter(2)
_WHAT_IS_TAKEN = (
    "it takes OTLP over HTTP/1.1, and no gRPC; OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf tells a program so"
)


class Answered(Exception):
    """The relay answers this itself."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class _Gone(Exception):
    """The target has gone in the middle of something."""


class _Left(Exception):
    """Who asked has gone, and nobody wants an answer any more."""


class Budget:
    """What all connections of a relay hold of bodies together."""

    def __init__(self) -> None:
        self.left = _BODIES

    def take(self, size: int) -> None:
        if size > self.left:
            raise Answered(503, f"programs send more at once than {_BODIES} bytes in all; come again")
        self.left -= size


class OtlpRelay:
    """One connection of the guest's. `dial` connects to the target, `attributes` are those of the session by now."""

    def __init__(
        self,
        near: End,
        plan: Plan,
        up: Gone,
        down: Gone,
        dial: Callable[[], Awaitable[End]],
        attributes: Callable[[], Mapping[str, str | int]],
        edited: Callable[[], None],
        budget: Budget,
    ) -> None:
        self._near = Side(near, h11.SERVER, down)
        self._far: Side | None = None
        self._plan = plan
        self._up = up
        self._dial = dial
        self._attributes = attributes
        self._edited = edited
        self._budget = budget
        self._held = 0
        #: Of what it answered itself, the last; "" where it has not.
        self.why = ""
        #: That was because nobody took the connection.
        self.unreached = False

    async def run(self) -> None:
        """Serve requests until one side wants no more. OSError: the guest's side is broken."""
        near = self._near
        try:
            while True:
                try:
                    event = await near.next()
                    if not isinstance(event, h11.Request):
                        return
                    await self._serve(event)
                except Answered as answered:
                    await self._answer(answered.status, answered.text)
                    return
                except _Left:
                    self.why = "gone before the answer"
                    return
                except Refused as error:
                    self.unreached = True
                    await self._answer(503, f"nobody takes this; {error.message}")
                    return
                except h11.RemoteProtocolError as error:
                    await self._answer(400, f"this cannot be understood ({error}): {_WHAT_IS_TAKEN}")
                    return
                if near.http.our_state is not h11.DONE or near.http.their_state is not h11.DONE:
                    return
                near.http.start_next_cycle()
        finally:
            self._let_go()
            self.close()

    def _hold(self, size: int) -> None:
        self._budget.take(size)
        self._held += size

    def _let_go(self) -> None:
        self._budget.left += self._held
        self._held = 0

    def close(self) -> None:
        """Between two requests that is an end, and otherwise a break."""
        far, self._far = self._far, None
        if far is not None:
            if far.http.our_state is h11.IDLE:
                far.end.settle()
            far.end.close()

    async def _answer(self, status: int, text: str) -> None:
        self.why = text
        http = self._near.http
        if http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return  # an answer is on its way already: closing says that it is not whole
        said = answers.body(self._plan.name, text)
        response = h11.Response(
            status_code=status, headers=answers.headers(status, said), reason=answers.reason(status)
        )
        await self._near.send(response, h11.Data(data=said), h11.EndOfMessage())

    async def _serve(self, request: h11.Request) -> None:
        if request.http_version not in {b"1.0", b"1.1"}:
            raise Answered(400, f"this is HTTP {request.http_version.decode()}: {_WHAT_IS_TAKEN}")
        kind = _kind_of(request)
        if request.method == b"CONNECT":
            raise Answered(400, f"this is no proxy: {_WHAT_IS_TAKEN}")
        if kind is None:
            await self._pass_through(request)
            return
        body = await self._edit(kind, request, await self._read_body())
        self._let_go()
        self._hold(len(body))
        headers = [
            each
            for each in request_headers_to_pass(request)
            if each[0] not in FRAMING | {b"content-encoding"}
        ]
        headers.append((b"content-length", b"%d" % len(body)))
        whole = h11.Request(method=request.method, target=request.target, headers=headers)
        reused = self._far is not None
        try:
            response = await self._export(whole, body)
        except (_Gone, OSError):
            self.close()
            if not reused:
                raise Answered(502, f"{self._plan.to} broke the connection off before it answered") from None
            # What was kept open from the request before was closed meanwhile: that says nothing about this one.
            try:
                response = await self._export(whole, body)
            except (_Gone, OSError):
                raise Answered(502, f"{self._plan.to} broke the connection off before it answered") from None
        self._let_go()
        await self._pass_response(response)

    # ------------------------------------------------------------------------------------------- exports

    async def _read_body(self) -> bytes:
        body = bytearray()
        while True:
            event = await self._near.next()
            if isinstance(event, h11.Data):
                self._hold(len(event.data))
                body += event.data
                if len(body) > self._plan.body:
                    raise Answered(
                        413, f"the body is longer than {self._plan.body} bytes (relay.{self._plan.name}.body)"
                    )
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            else:
                raise _Left

    async def _edit(self, kind: bytes, request: h11.Request, body: bytes) -> bytes:
        encoding = header_of(request, b"content-encoding").lower()
        if encoding not in {b"", b"identity", b"gzip"}:
            raise Answered(
                415, f"the encoding {encoding.decode('latin-1')!r} is not known here: use gzip, or none"
            )
        attributes = dict(self._attributes())

        def edit() -> bytes:
            plain = _unpack(body, self._plan.body) if encoding == b"gzip" else body
            change = with_attributes_json if kind == _JSON else with_attributes
            return change(plain, attributes)

        try:
            if len(body) <= _AT_ONCE and encoding != b"gzip":
                found = edit()
            else:
                found = await trio.to_thread.run_sync(edit, limiter=_EDITING)
        except _TooLong:
            raise Answered(
                413, f"the body unpacks to more than {self._plan.body} bytes (relay.{self._plan.name}.body)"
            ) from None
        except (Malformed, zlib.error) as error:
            raise Answered(400, f"this is no OTLP export: {error}") from None
        self._edited()
        return found

    async def _export(self, request: h11.Request, body: bytes) -> h11.Response:
        return await self._first_answer(
            await self._connected(), request, h11.Data(data=body), h11.EndOfMessage()
        )

    async def _first_answer(self, far: Side, *said: h11.Event) -> h11.Response:
        """What the target says, once it was told; meanwhile it is watched whether anybody still wants to know."""
        found: list[h11.Response] = []
        failure: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                try:
                    with trio.fail_after(_ANSWER):
                        await far.send(*said)
                        found.append(await _response(far))
                except (_Gone, OSError, h11.RemoteProtocolError, trio.TooSlowError) as error:
                    failure.append(error)
                nursery.cancel_scope.cancel()

            async def watch() -> None:
                await self._near.end.gone()
                failure.append(_Left())
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            nursery.start_soon(watch)
        if found:
            return found[0]
        error = failure[0]
        if isinstance(error, trio.TooSlowError):
            self.close()
            raise Answered(
                504, f"{self._plan.to} did not take the request and answer it within {_ANSWER:g} s"
            )
        if isinstance(error, h11.RemoteProtocolError):
            self.close()
            raise Answered(502, f"what {self._plan.to} answered is no HTTP: {error}")
        raise error

    # ------------------------------------------------------------------------------------------- the rest

    async def _pass_through(self, request: h11.Request) -> None:
        far = await self._connected()
        try:
            await far.send(
                h11.Request(
                    method=request.method, target=request.target, headers=request_headers_to_pass(request)
                )
            )
            while True:
                event = await self._near.next()
                if not isinstance(event, (h11.Data, h11.EndOfMessage)):
                    raise _Left
                await far.send(event)
                if isinstance(event, h11.EndOfMessage):
                    break
            response = await self._first_answer(far)
        except _Gone:
            self.close()
            raise Answered(502, f"{self._plan.to} broke the connection off before it answered") from None
        await self._pass_response(response)

    async def _pass_response(self, response: h11.Response) -> None:
        far = self._far
        assert far is not None
        headers = headers_to_pass(response.headers)
        await self._near.send(
            h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)
        )
        while True:
            try:
                event = await far.next()
            except h11.RemoteProtocolError as error:
                raise OSError(errno.EPROTO, str(error)) from None
            if isinstance(event, h11.Data):
                await self._near.send(event)
            elif isinstance(event, h11.EndOfMessage):
                await self._near.send(event)
                break
            else:
                raise OSError(errno.EPROTO, "the target broke off in the middle of its answer")
        if far.http.our_state is h11.DONE and far.http.their_state is h11.DONE:
            far.http.start_next_cycle()
        else:
            self.close()

    async def _connected(self) -> Side:
        far = self._far
        if far is not None and far.end.is_over():
            self.close()
            far = None
        if far is None:
            far = self._far = Side(await self._dial(), h11.CLIENT, self._up)
        return far


class _TooLong(Exception):
    pass


async def _response(far: Side) -> h11.Response:
    while True:
        event = await far.next()
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise _Gone


def _unpack(body: bytes, most: int) -> bytes:
    out = bytearray()
    rest = body
    while rest:
        # A file of gzip may be several behind one another.
        one = zlib.decompressobj(_GZIP)
        out += one.decompress(rest, most + 1 - len(out))
        if len(out) > most:
            raise _TooLong
        if not one.eof:
            raise Malformed("its gzip is cut off")
        rest = one.unused_data
    return bytes(out)


def _kind_of(request: h11.Request) -> bytes | None:
    """The format of an export; None for anything else."""
    path = request.target.partition(b"?")[0].rstrip(b"/")
    if request.method != b"POST" or not path.endswith(_SIGNALS):
        return None
    kind = header_of(request, b"content-type").partition(b";")[0].strip().lower()
    if kind in _PROTOBUF:
        return _PROTOBUF[0]
    return _JSON if kind == _JSON else None
