"""What HTTP requests mean: the routes of AgentCore Runtime, probes, and who may ask for what.

One of these for a session, made when the first HTTP request comes.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import trio

from guestd import observe
from guestd.errors import (
    BadRequest,
    GuestdError,
    InternalError,
    NotFound,
    Unauthorized,
)
from guestd.service.agentcore import bearer, commands, life, proxy, routes, shells
from guestd.service.agentcore.failures import AwsError, body_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from guestd.service.agentcore.exchange import Exchange, HttpPeer
    from guestd.service.agentcore.routes import Route
    from guestd.service.agentcore.shellview import ShellView
    from guestd.service.session import Session
    from guestd.session.attachment import Attachment
    from guestd.session.job import Job

_log = logging.getLogger("guestd.agentcore")
SESSION_ID = b"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
REQUEST_ID = b"x-amzn-RequestId"
_JSON = (b"Content-Type", b"application/json")
_PROBES = {routes.LIVE, routes.READY}
_GET, _POST = ("GET", "HEAD"), ("POST",)
#: Which methods an operation is asked for with; any, where a workload has to say.
_METHODS = {
    routes.COMMANDS: _POST, routes.STOP: _POST, routes.SHELLS: _GET, routes.PING: _GET, routes.LIVE: _GET,
    routes.READY: _GET,
}  # fmt: skip


class Surface:
    """See the module."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settings = session.settings.agentcore
        #: Who sits at a shell by this surface: one at a time.
        self.seats: dict[str, ShellView] = {}
        #: Up to where the client of a shell has it all, for when it comes back.
        self.places: dict[str, int] = {}
        #: Who shows a command to the client that started it: whoever asks again is that client.
        self.streams: dict[str, Attachment] = {}
        session.jobs.listeners.append(self._job_ended)

    @classmethod
    def of(cls, session: Session) -> Surface:
        """The session's one."""
        if session.surface is None:
            session.surface = cls(session)
        return session.surface

    def _job_ended(self, job: Job) -> None:
        self.places.pop(job.id, None)

    def route(self, exchange: Exchange) -> Route | None:
        """What is asked for; None when it is nothing of this surface."""
        route = routes.parse(exchange.target)
        if route is None or self.settings.enabled or route.operation in _PROBES:
            return route
        return None

    def accepted(self, exchange: Exchange, route: Route, **facts: object) -> None:
        """It is being done: for those who record who asked for what."""
        observe.did(_deed(route), exchange.peer, result="accepted", **facts)

    def used(self, what: str) -> None:
        """The session is being used."""
        self.session.requested = (f"agentcore {what}", time.monotonic())

    async def wait_for_mounts(self, job_id: str | None) -> None:
        """What is started waits for the file systems that have to be there; who comes back to a job starts nothing."""
        mounts = self.session.life.mounts
        if not mounts.is_open and not (job_id is not None and self.session.jobs.knows(job_id)):
            await mounts.wait()

    # ------------------------------------------------------------------------------------- answering

    async def respond(self, exchange: Exchange, route: Route, token: bytes | None, peer: HttpPeer) -> None:
        """Answer one request."""
        _log.debug("%s: %s %s", exchange.peer, exchange.method, exchange.target)
        try:
            if route.operation not in _PROBES:
                self._check_token(exchange, token)
                self._check_session(exchange, route)
            self._check_method(exchange, route)
            await self._operation(exchange, route, token, peer)
        except (GuestdError, AwsError) as error:
            failure, _ = body_of(error)
            observe.did(_deed(route), exchange.peer, result=failure.name, why=error.message)
            await self._fail(exchange, route, error)
        except trio.BrokenResourceError:
            raise  # the client has gone, and hears nothing any more
        except Exception:
            if exchange.began:
                raise
            _log.exception(
                "%s: guestd made a mistake with %s %s", exchange.peer, exchange.method, exchange.target
            )
            await self._fail(
                exchange, route, InternalError("guestd made a mistake; its log has the traceback")
            )

    def _operation(
        self, exchange: Exchange, route: Route, token: bytes | None, peer: HttpPeer
    ) -> Awaitable[None]:
        match route.operation:
            case routes.COMMANDS:
                return commands.respond(self, exchange, route)
            case routes.SHELLS:
                return shells.respond(self, exchange, route, peer)
            case routes.STOP:
                return life.stop(self, exchange, route)
            case routes.LIVE:
                return life.live(exchange)
            case routes.READY:
                return life.ready(self, exchange)
            case routes.UNKNOWN:
                raise NotFound(
                    f"there is no {exchange.target.partition('?')[0][:200]!r} here; a runtime has invocations,"
                    " commands, ws, ws/shells, ping, stopruntimesession, and ports/PORT/…"
                )
            case _:
                return proxy.respond(self, exchange, route, token)

    async def _fail(self, exchange: Exchange, route: Route, error: GuestdError | AwsError) -> None:
        failure, body = body_of(error)
        _log.info(
            "%s: %s %s: %s (%s)",
            exchange.peer,
            exchange.method,
            exchange.target[:200],
            error.message,
            failure.name,
        )
        if exchange.began:
            # The client has a head already: only the connection can tell it that this is not the end.
            raise ConnectionAbortedError(error.message)
        more = [(b"WWW-Authenticate", b"Bearer")] if failure.status == 401 else []
        await exchange.answer(
            failure.status,
            [*self.headers(exchange, route), _JSON, (b"x-amzn-ErrorType", failure.name.encode()), *more],
            body,
        )

    def headers(self, exchange: Exchange, route: Route) -> list[tuple[bytes, bytes]]:
        """What every answer of this surface has."""
        return [(SESSION_ID, self.session_id(exchange, route)), (REQUEST_ID, request_id(exchange))]

    def session_id(self, exchange: Exchange, route: Route) -> bytes:
        """The client's own, or one that is made up: as long as AWS wants one that comes back."""
        given = _session_id(exchange, route)
        return given or self.settings.session_id.encode() or f"guestd-{self.session.session_id}".encode()

    # -------------------------------------------------------------------------------------- checking

    def _check_token(self, exchange: Exchange, token: bytes | None) -> None:
        if token is not None and not bearer.admits(exchange.headers, token):
            raise Unauthorized(
                "this listener wants a token: `Authorization: Bearer TOKEN`, or `X-Guestd-Token: TOKEN` beside a"
                " signature"
            )

    def _check_session(self, exchange: Exchange, route: Route) -> None:
        wanted, given = self.settings.session_id.encode(), _session_id(exchange, route)
        if wanted and given and given != wanted:
            raise NotFound(
                "this guest is another session (agentcore.session_id); the control plane knows where yours is"
            )

    def _check_method(self, exchange: Exchange, route: Route) -> None:
        methods = _METHODS.get(route.operation)
        if methods is not None and exchange.method not in methods:
            raise BadRequest(f"{route.operation} is asked for with {methods[0]}, not {exchange.method}")


def _deed(route: Route) -> str:
    return f"agentcore {route.operation}"


def _session_id(exchange: Exchange, route: Route) -> bytes:
    given = exchange.header(SESSION_ID.lower()) or b""
    if given:
        return given
    # A browser cannot set headers of a WebSocket.
    in_query = (route.parameter(SESSION_ID.decode()) or "").strip()
    return in_query.encode() if in_query.isascii() and in_query.isprintable() else b""


def request_id(exchange: Exchange) -> bytes:
    """The client's own name for it, or one that is made up."""
    return (
        exchange.header(b"amz-sdk-invocation-id")
        or exchange.header(b"x-amzn-requestid")
        or os.urandom(16).hex().encode()
    )
