"""InvokeAgentRuntimeCommandShell: a shell is opened, or found, and shown over a WebSocket.

The shell is a job like any other, under the `shellId` that the client chose; `guestctl shell ID` reaches it too. What
happens on the WebSocket is in agentcore.shellview.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from guestd.errors import BadRequest, LimitReached
from guestd.service.agentcore import channels
from guestd.service.agentcore.commands import trace_of, user_of
from guestd.service.agentcore.failures import TOO_MANY_SHELLS, AwsError
from guestd.service.agentcore.shellview import ShellView
from guestd.service.shells import read_shell
from guestd.session.jobid import ID_RULE, check_id
from guestd.session.shell import ShellJob
from guestd.wire.messages import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_websocket import WebSocketConnection

    from guestd.service.agentcore.exchange import Exchange, HttpPeer
    from guestd.service.agentcore.routes import Route
    from guestd.service.agentcore.surface import Surface

SHELL_ID = b"X-Amzn-Bedrock-AgentCore-Shell-Id"
#: Subprotocols of which one is said back when it is offered: some browsers give up otherwise.
_SUBPROTOCOLS = (b"v1.command.agentcore.aws.dev", b"base64urlbearerauthorization")
_SPOKEN = {b"base64urlbearerauthorization": "base64UrlBearerAuthorization"}


async def respond(surface: Surface, exchange: Exchange, route: Route, peer: HttpPeer) -> None:
    """Open the shell, or find it, and show it until it ends or the client leaves."""
    if not exchange.wants_websocket:
        raise BadRequest("a shell is reached by a WebSocket (Upgrade: websocket)")
    exchange.check_websocket()
    shell_id = _shell_id(route)
    surface.used("shell")
    await surface.wait_for_mounts(shell_id)
    job, created = _open(surface, shell_id, trace_of(exchange))
    surface.accepted(exchange, route, job=job.id)
    headers = [*surface.headers(exchange, route), (SHELL_ID, job.id.encode())]
    offered = exchange.words(b"sec-websocket-protocol")
    chosen = next((each for each in _SUBPROTOCOLS if each in offered), None)
    everything = route.parameter("replay") == "all"

    async def serve(websocket: WebSocketConnection) -> None:
        view = ShellView(surface, job, websocket, exchange.peer, created=created)
        exchange.leaving.append(view.guestd_leaves)
        peer.asked_by(view.is_there)
        try:
            await view.run(everything=everything)
        finally:
            peer.asked_by(None)

    await exchange.websocket(
        headers,
        channels.MESSAGE_MAX,
        serve,
        patience=surface.session.settings.limits.handshake,
        subprotocol=None if chosen is None else _SPOKEN.get(chosen, chosen.decode()),
    )


def _shell_id(route: Route) -> str:
    shell_id = route.parameter("shellId") or str(uuid.uuid4())
    try:
        check_id(shell_id)
    except BadRequest as error:
        raise BadRequest(f"shellId {error.message}", field="shellId", expected=ID_RULE) from None
    return shell_id


def _open(surface: Surface, shell_id: str, trace: Mapping[str, str]) -> tuple[ShellJob, bool]:
    jobs, settings = surface.session.jobs, surface.session.settings
    known = jobs.get(shell_id) if jobs.knows(shell_id) else None
    if isinstance(known, ShellJob) and known.result is None:
        return known, False
    running = sum(1 for job in jobs if job.kind == "shell" and job.result is None)
    over = TOO_MANY_SHELLS[settings.agentcore.shells_over]
    if running >= settings.agentcore.shells:
        raise AwsError(
            over,
            f"{running} shells are open and the limit is {settings.agentcore.shells}; end some (`guestctl ps` lists"
            " them, those that nobody is attached to as well), or raise agentcore.shells",
        )
    request = read_shell(settings, Fields({"user": user_of(settings), **trace}))
    # Who opens a shell by its id alone says nothing about how it was started.
    request.given = ()
    try:
        return jobs.start_shell(shell_id, request)
    except LimitReached as error:
        raise AwsError(over, error.message) from None
