"""The guest-local socket: any user of the guest may connect to it, and nobody can do harm with that.

Everything about it is bounded apart from what the host uses: connections in total and of each user, channels, frames,
what waits to be sent, and how much of the loop's time all of its peers together may take (`Pace`). Who is one too many
is told so where that costs nothing, and closed.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

import trio

from guestd.errors import Forbidden, GuestdError, LimitReached
from guestd.service.agent import Glance, Guest, GuestOperations, Leases
from guestd.service.bounds import Bounds
from guestd.service.connection import Connection
from guestd.transport.access import credentials
from guestd.transport.doors import next_peer, refuse
from guestd.transport.native import NativeLink

if TYPE_CHECKING:
    import socket

    from guestd.service.session import Session
    from guestd.transport.listeners import Listener

_log = logging.getLogger("guestd.agent")
_HANDSHAKE, _WRITE_STALL = 5.0, 10.0
_FRAME, _WINDOW, _CHANNELS, _QUEUE = 64 * 1024, 4 * 1024, 16, 64 * 1024
#: Frames and connections a second, of all together, once they have had a burst of so many.
_RATE, _BURST = 200, 100
#: A connection is as much work as so many frames.
_CONNECTING = 2
#: How many at once are told why they are turned away, and waited for until they have heard it.
_FAREWELLS = 8
#: One line of the log for all who were turned away in so many seconds.
_SAY_EVERY = 10.0


class Pace:
    """Turns at a rate, after a burst, in the order in which they were asked for."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._next = -inf

    async def turn(self, cost: int = 1) -> None:
        now = trio.current_time()
        self._next = max(self._next, now - self._burst / self._rate) + cost / self._rate
        if self._next > now:
            await trio.sleep_until(self._next)
        else:
            await trio.lowlevel.checkpoint()


class AgentDoor:
    """The socket, however it was opened, and all who come through it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._glance = Glance(session)
        self._leases = Leases(session)
        self._pace = Pace(_RATE, _BURST)
        self._bounds = Bounds(
            _HANDSHAKE, _FRAME, _WINDOW, _CHANNELS, _WRITE_STALL, _QUEUE, are_settings=False, quiet=True,
            pace=self._pace.turn,
        )  # fmt: skip
        self._connected: Counter[int] = Counter()
        self._farewells = 0
        self._turned_away = 0
        self._said_at = 0.0

    async def accept(self, listener: Listener, connections: trio.Nursery) -> None:
        """Accept until cancelled; each connection is a task of `connections`."""
        while True:
            sock = await next_peer(listener, self._session)
            try:
                pid, uid, _ = credentials(sock)
                refusal = self._refusal(uid)
            except OSError:
                sock.close()
                continue
            if refusal is None:
                # Counted here: others come before the task begins.
                self._connected[uid] += 1
                connections.start_soon(self._serve, sock, Guest(uid, pid))
            else:
                self._turn_away(sock, refusal, connections)
            await self._pace.turn(_CONNECTING)

    def _refusal(self, uid: int) -> GuestdError | None:
        bounds = self._session.settings.agent
        if not bounds.socket:
            return Forbidden("the guest-local socket is switched off (agent.socket)")
        if self._connected[uid] >= bounds.user_connections:
            most, setting, who = bounds.user_connections, "agent.user_connections", f"of user {uid} "
        elif self._connected.total() >= bounds.connections:
            most, setting, who = bounds.connections, "agent.connections", ""
        else:
            return None
        return LimitReached(
            f"{most} connections {who}are open; close some, or have {setting} raised",
            limit=most,
            setting=setting,
        )

    def _turn_away(self, sock: socket.socket, why: GuestdError, connections: trio.Nursery) -> None:
        self._turned_away += 1
        now = trio.current_time()
        if now >= self._said_at + _SAY_EVERY:
            _log.warning("%d guests turned away, the last because: %s", self._turned_away, why.message)
            self._turned_away, self._said_at = 0, now
        if self._farewells < _FAREWELLS:
            self._farewells += 1
            connections.start_soon(self._say_why, sock, why)
        else:
            sock.close()

    async def _say_why(self, sock: socket.socket, why: GuestdError) -> None:
        try:
            with sock:
                await refuse(sock, why)
        finally:
            self._farewells -= 1

    async def _serve(self, sock: socket.socket, guest: Guest) -> None:
        session, bounds = self._session, self._bounds
        link = NativeLink(sock, f"guest {guest}")
        connection = Connection(
            link, bounds, GuestOperations(session, guest, self._glance, self._leases),
            lambda: session.hello([], bounds), lambda _: None,
        )  # fmt: skip
        session.connections.add(connection)
        session.guests += 1
        try:
            await connection.run()
        except* Exception as group:  # noqa: BLE001  a mistake of guestd's costs this connection, not the session
            _log.error("%s: dropped, by a mistake of guestd's own", guest, exc_info=group)
        finally:
            session.guests -= 1
            session.connections.discard(connection)
            self._connected[guest.uid] -= 1
            if not self._connected[guest.uid]:
                del self._connected[guest.uid]
            with trio.CancelScope(shield=True), suppress(OSError):
                await link.close()
