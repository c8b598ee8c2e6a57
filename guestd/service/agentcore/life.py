"""The end of the session, asked for as AgentCore's clients do; and what probes ask."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from guestd.service.agentcore.exchange import Exchange
    from guestd.service.agentcore.routes import Route
    from guestd.service.agentcore.surface import Surface

_JSON = [(b"Content-Type", b"application/json")]


async def stop(surface: Surface, exchange: Exchange, route: Route) -> None:
    """Stop, and answer when all is flushed; the receipt is the body. Asked for again, it is the same stop."""
    order = surface.session.life.stop
    told = trio.Event()
    order.ask("asked", by=exchange.peer)
    surface.accepted(exchange, route)

    def listen(_: dict[str, Any]) -> None:
        told.set()

    if order.receipt is None:
        order.listeners.append(listen)
        await told.wait()
    body = json.dumps(order.receipt, default=str).encode()
    await exchange.answer(200, [*surface.headers(exchange, route), *_JSON], body)


async def live(exchange: Exchange) -> None:
    """It answers, so it lives."""
    await exchange.answer(200, _JSON, b'{"status":"ok"}')


async def ready(surface: Surface, exchange: Exchange) -> None:
    """May something new be started?"""
    if surface.session.life.stop.asked.is_set():
        await exchange.answer(503, _JSON, b'{"status":"stopping"}')
    else:
        await exchange.answer(200, _JSON, b'{"status":"ready"}')
