"""Accepting: from a connected socket to a served connection. Access first, then the dialect by the first
byte.

0x00 begins the native preface, an upper-case letter an HTTP request. Everything before a peer's hello is
bounded in bytes and time, and connections are bounded in number, so whoever says nothing, or nonsense, costs
little and not for long.
"""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd import observe
from guestd.errors import GuestdError, LimitReached, ProtocolViolation, leaves
from guestd.service.bounds import of_limits
from guestd.service.connection import Connection
from guestd.service.operations import SessionOperations
from guestd.transport.native import NativeLink
from guestd.wire.frames import PREFACE, Kind, encode
from guestd.wire.messages import pack

if TYPE_CHECKING:
    from guestd.service.link import Link
    from guestd.service.session import Session
    from guestd.transport.access import Access
    from guestd.transport.listeners import Listener

_log = logging.getLogger("guestd.listen")
#: When this process has no descriptor left for one more connection.
_OUT_OF_FDS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BREATHER = 0.1
#: How long, and how much, a refused peer may still say before its connection is closed under it.
_FAREWELL, _FAREWELL_READS, _FAREWELL_SIZE = 1.0, 16, 64 * 1024
#: What the kernel buffers for a peer. Bulk needs room for a full gather; more only adds delay before what
#: comes after it.
_SEND_BUFFER = 512 * 1024
_SO_SNDBUFFORCE = 32
FEATURES = ["exec", "attach", "shell", "spool", "websocket"]


class Doors:
    """All listeners of a supervisor, and what comes in through them."""

    def __init__(self, session: Session, access: Access) -> None:
        self._session = session
        self._access = access
        self._operations = SessionOperations(session)
        self._waiting = 0

    async def accept(self, listener: Listener, connections: trio.Nursery) -> None:
        """Accept until cancelled; each connection is a task of `connections`."""
        while True:
            connections.start_soon(self._serve, await next_peer(listener, self._session))

    async def _serve(self, sock: socket.socket) -> None:
        self._waiting += 1
        try:
            with sock:
                peer = self._access.describe(sock)
                try:
                    await self._serve_peer(sock, peer)
                except* GuestdError as group:
                    error = next(leaves(group))
                    _log.warning("%s: refused: %s (%s)", peer, error.message, error.code)
                    observe.did("refused", peer, result=error.code, why=error.message)
                    await refuse(sock, error)
                except* trio.TooSlowError:
                    _log.warning("%s: dropped: it said nothing for too long (limits.handshake)", peer)
                except* (
                    OSError,
                    trio.BrokenResourceError,
                    trio.ClosedResourceError,
                    trio.EndOfChannel,
                ) as group:
                    _log.info("%s: the connection broke: %r", peer, group.exceptions[0])
                except* Exception as group:  # noqa: BLE001  a mistake of guestd's costs this connection, not the session
                    _log.error("%s: dropped, by a mistake of guestd's own", peer, exc_info=group)
        except OSError as error:
            _log.info("a peer was gone before it was asked who it is: %s", error)
        finally:
            self._waiting -= 1

    async def _serve_peer(self, sock: socket.socket, peer: str) -> None:
        limits = self._session.settings.limits
        self._access.check_peer(sock)
        if self._waiting > limits.connections:
            raise LimitReached(
                f"{limits.connections} connections are open; close some, or raise limits.connections",
                limit=limits.connections, setting="limits.connections",
            )  # fmt: skip
        with trio.fail_after(limits.handshake):
            first = await _peek(sock)
        await self._serve_dialect(first, sock, peer)

    async def _serve_dialect(self, first: bytes, sock: socket.socket, peer: str) -> None:
        if first == PREFACE[:1]:
            _tune(sock)
            link = NativeLink(sock, peer)
            try:
                await self._serve_link(link, sock.family)
            finally:
                with trio.CancelScope(shield=True):
                    await link.close()
        elif first.isalpha() and first.isupper():
            from guestd.transport.http import serve_http

            family = sock.family
            await serve_http(
                sock, peer, self._session, self._access, lambda link: self._serve_link(link, family)
            )
        elif first:
            raise ProtocolViolation(
                f"the connection began with {first!r}: neither the preface nor an HTTP request"
            )

    async def _serve_link(self, link: Link, family: int) -> None:
        session = self._session
        bounds = of_limits(session.settings.limits)
        connection = Connection(
            link, bounds, self._operations, lambda: session.hello(FEATURES, bounds),
            lambda hello: self._access.check_hello(family, hello),
        )  # fmt: skip
        session.connections.add(connection)
        session.served += 1
        try:
            await connection.run()
        finally:
            session.connections.discard(connection)


async def next_peer(listener: Listener, session: Session) -> socket.socket:
    """Whoever connects next. Those who come while guestd makes room wait for the one after it, which listens too."""
    while True:
        await trio.lowlevel.wait_readable(listener.sock)
        if session.leaving:
            await trio.sleep_forever()
        try:
            sock, _ = listener.sock.accept()
        except BlockingIOError:
            continue
        except OSError as error:
            # A connection that was gone before it was taken is that peer's affair.
            if error.errno in _OUT_OF_FDS:
                _log.warning("%s: cannot accept: %s; trying again", listener.name, error.strerror)
                await trio.sleep(_BREATHER)
            continue
        sock.setblocking(False)
        return sock


async def refuse(sock: socket.socket, error: GuestdError) -> None:
    """Say why, and wait until the peer has closed, or has had time to.

    Closed with something of the peer's unread, a socket is reset, and the reason is lost on its way.
    """
    with suppress(OSError), trio.move_on_after(_FAREWELL):
        sock.send(PREFACE + encode(Kind.GOAWAY, 0, pack(error.to_map())))
        sock.shutdown(socket.SHUT_WR)
        for _ in range(_FAREWELL_READS):
            await trio.lowlevel.wait_readable(sock)
            if not sock.recv(_FAREWELL_SIZE):
                break


def _tune(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    except PermissionError:
        # Not root: as much of it as net.core.wmem_max allows.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    with suppress(OSError):
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _peek(sock: socket.socket) -> bytes:
    """The first byte, left where it is."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        with suppress(BlockingIOError):
            return sock.recv(1, socket.MSG_PEEK)
