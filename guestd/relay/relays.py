"""All relays of the session, and the forwards: begun after READY, listening before the first program can be started.

Where somebody keeps descriptors, the listening sockets are kept under the relays' names: whoever connects while a
supervisor is replaced waits in the backlog. Connections that were being passed on break.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from guestd.process.handed import RELAY
from guestd.relay.forwards import Forwards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from guestd.config import Settings
    from guestd.process.store import FdStore
    from guestd.relay.plan import Plan
    from guestd.relay.relay import Relay
    from guestd.wire.address import Address

    class Owner(Protocol):
        """The session, as far as it is needed here."""

        settings: Settings
        session_id: str
        boot_id: str
        generation: int


_log = logging.getLogger("guestd.relay")
_BACKLOG = 512
#: Before it is tried again to listen where somebody else does.
_AGAIN, _AGAIN_MAX = 1.0, 30.0


class Relays:
    """See the module. `used` is told of what counts as use of the session, `say` of what has happened."""

    def __init__(
        self,
        session: Owner,
        used: Callable[[str], None],
        say: Callable[..., None],
        store: FdStore,
        handed: Mapping[str, list[int]],
    ) -> None:
        self.forwards = Forwards(session.settings, used)
        self.relays: list[Relay] = []
        self._session = session
        self._store = store
        self._listeners: dict[str, socket.socket] = {}
        kept = {name.removeprefix(RELAY): fds for name, fds in handed.items() if name.startswith(RELAY)}
        if session.settings.relay:
            # Late: few have any.
            from guestd.relay.plan import plans_of
            from guestd.relay.relay import Relay

            for plan in plans_of(session.settings.relay):
                relay = Relay(plan, self._identity, say)
                self.relays.append(relay)
                self._take_up(plan, kept.pop(plan.name, []))
                self._listen(relay)
        for name, fds in kept.items():
            # Settings have changed: that one is no more.
            store.forget(RELAY + name)
            for fd in fds:
                os.close(fd)

    async def run(self) -> None:
        """Pass on until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for relay in self.relays:
                    nursery.start_soon(self._keep, relay)
                await trio.sleep_forever()
        finally:
            for sock in self._listeners.values():
                sock.close()
            self._listeners.clear()

    def end(self) -> None:
        """The session is over: nobody is to come after this one."""
        for relay in self.relays:
            name = relay.plan.name
            if name in self._listeners:
                self._store.forget(RELAY + name)
                if relay.plan.listen.scheme == "unix":
                    with suppress(OSError):
                        os.unlink(relay.plan.listen.path)

    async def mend(self) -> dict[str, int]:
        """The session was resumed and is another one: connections that have said the old one are ended."""
        told = [relay for relay in self.relays if relay.plan.preface != "none"]
        return {"broken_off": sum(relay.break_off("the session was resumed") for relay in told)}

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "relays": [relay.describe() for relay in self.relays],
            "forwards": self.forwards.describe(),
        }

    def _identity(self) -> Any:  # noqa: ANN401  typed where relays are: without any, nothing of them is imported
        from guestd.relay.preface import Identity

        session = self._session
        return Identity(session.session_id, session.boot_id, session.generation)

    async def _keep(self, relay: Relay) -> None:
        name = relay.plan.name
        delay = _AGAIN
        while name not in self._listeners:
            await trio.sleep(delay)
            delay = min(2 * delay, _AGAIN_MAX)
            self._listen(relay)
        await relay.accept(self._listeners[name])

    def _listen(self, relay: Relay) -> None:
        plan = relay.plan
        if plan.name in self._listeners:
            return
        try:
            sock = _open(plan.listen)
        except OSError as error:
            what = error.strerror or str(error)
            if relay.why != what:
                _log.warning("relay %s: cannot listen on %s: %s; trying again", plan.name, plan.listen, what)
            relay.why = what
            return
        relay.why = ""
        self._listeners[plan.name] = sock
        self._store.keep(RELAY + plan.name, [sock.fileno()])

    def _take_up(self, plan: Plan, fds: list[int]) -> None:
        """The socket that the supervisor before this one listened on, if it is still what is wanted."""
        for fd in fds:
            sock = _as_listener(fd)
            if (
                sock is not None
                and plan.name not in self._listeners
                and _address_of(sock) == _meant(plan.listen)
            ):
                self._listeners[plan.name] = sock
                continue
            if sock is None:
                os.close(fd)
            else:
                sock.close()
        if fds and plan.name not in self._listeners:
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
