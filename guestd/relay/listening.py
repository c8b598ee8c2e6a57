"""The sockets that relays listen on: taken up from the supervisor before this one, or opened.

They are there before guestd says that it is ready. Where somebody keeps descriptors they are kept, under the relays'
names.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from guestd.process.handed import RELAY
from guestd.relay.plan import plans_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.config import Settings
    from guestd.process.store import FdStore
    from guestd.relay.plan import Plan
    from guestd.wire.address import Address

_log = logging.getLogger("guestd.relay")
_BACKLOG = 512


class Listening:
    """See the module. `why` says of a relay that does not listen what is in the way."""

    def __init__(self, settings: Settings, store: FdStore, handed: Mapping[str, list[int]]) -> None:
        self.plans = plans_of(settings.relay)
        self.sockets: dict[str, socket.socket] = {}
        self.why: dict[str, str] = {}
        self._store = store
        kept = {name.removeprefix(RELAY): fds for name, fds in handed.items() if name.startswith(RELAY)}
        for plan in self.plans:
            self._take_up(plan, kept.pop(plan.name, []))
            self.open(plan)
        for name, fds in kept.items():
            # Settings have changed: that one is no more.
            store.forget(RELAY + name)
            for fd in fds:
                os.close(fd)

    def open(self, plan: Plan) -> bool:
        """Listen, if nobody else does there."""
        name = plan.name
        if name in self.sockets:
            return True
        try:
            sock = _open(plan.listen)
        except OSError as error:
            what = error.strerror or str(error)
            if self.why.get(name) != what:
                _log.warning("relay %s: cannot listen on %s: %s; trying again", name, plan.listen, what)
            self.why[name] = what
            return False
        self.why.pop(name, None)
        self.sockets[name] = sock
        self._store.keep(RELAY + name, [sock.fileno()])
        return True

    def close(self) -> None:
        """This process listens no more; the next one may."""
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()

    def end(self) -> None:
        """Nobody is to listen any more."""
        for plan in self.plans:
            if plan.name in self.sockets:
                self._store.forget(RELAY + plan.name)
                if plan.listen.scheme == "unix":
                    with suppress(OSError):
                        os.unlink(plan.listen.path)

    def _take_up(self, plan: Plan, fds: list[int]) -> None:
        """The socket that the supervisor before this one listened on, if it is still what is wanted."""
        for fd in fds:
            sock = _as_listener(fd)
            if (
                sock is not None
                and plan.name not in self.sockets
                and _address_of(sock) == _meant(plan.listen)
            ):
                self.sockets[plan.name] = sock
                continue
            if sock is None:
                os.close(fd)
            else:
                sock.close()
        if fds and plan.name not in self.sockets:
            self._store.forget(RELAY + plan.name)


def _as_listener(fd: int) -> socket.socket | None:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return None
    sock = socket.socket(fileno=fd)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        return None
    sock.setblocking(False)
    return sock


def _open(address: Address) -> socket.socket:
    if address.scheme == "unix":
        return _open_unix(address.path)
    family, _, _, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _listening(sock, where)
    except BaseException:
        sock.close()
        raise


def _open_unix(path: str) -> socket.socket:
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Every program of the guest may connect: that is what a relay is for.
    before = os.umask(0o111)
    try:
        return _listening(sock, path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)


def _clear_stale(path: str) -> None:
    """A socket that nobody listens on any more is in the way; one that somebody listens on stays, and bind says so."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                except BlockingIOError:
                    pass


def _listening(sock: socket.socket, where: object) -> socket.socket:
    sock.setblocking(False)
    sock.bind(where)  # pyright: ignore[reportArgumentType]  each family has an address type of its own
    sock.listen(_BACKLOG)
    return sock


def _address_of(sock: socket.socket) -> object:
    where = sock.getsockname()
    return where if sock.family == socket.AF_UNIX else (where[0], where[1])


def _meant(address: Address) -> object:
    if address.scheme == "unix":
        return address.path
    host = {"localhost": "127.0.0.1"}.get(address.host, address.host)
    return (host, address.port)
