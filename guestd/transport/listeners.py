"""Listening: sockets made from addresses, or handed over by whoever started guestd (LISTEN_FDS)."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from guestd.config import is_loopback
from guestd.errors import ConfigError
from guestd.wire.address import DEFAULT_PORT, VSOCK_ANY, Address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestd.config import Settings

_log = logging.getLogger("guestd.listen")
_BACKLOG = 512


class Listener(NamedTuple):
    """A listening socket. `path` is removed at the end when guestd made it."""

    sock: socket.socket
    name: str
    path: str | None = None

    def close(self) -> None:
        self.sock.close()
        if self.path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.path)


def passed_listeners(fds: Iterable[int], *, has_token: bool) -> list[Listener]:
    """Sockets that somebody else has opened. They follow the same rule. Whatever else is among them is passed over."""
    found: list[Listener] = []
    for fd in fds:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            continue
        sock = socket.socket(fileno=fd)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.detach()
            continue
        sock.setblocking(False)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            _check_reach(sock.getsockname()[0], _name(sock), has_token=has_token)
        found.append(Listener(sock, _name(sock)))
    return found


def open_listeners(settings: Settings, *, has_token: bool) -> list[Listener]:
    """Listen where the settings say; without a word, on the guest's own socket and on vsock where there is
    one.
    """
    opened: list[Listener] = []
    try:
        if settings.listen:
            opened += [open_listener(address, settings, has_token=has_token) for address in settings.listen]
        else:
            path = f"{settings.runtime_dir}/guestd.sock"
            opened.append(open_listener(Address("unix", path=path), settings, has_token=has_token))
            everywhere = Address("vsock", cid=VSOCK_ANY, port=DEFAULT_PORT)
            try:
                opened.append(open_listener(everywhere, settings, has_token=has_token))
            except ConfigError as error:
                _log.info("no vsock here: %s", error)
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    return opened


def open_agent_listener(settings: Settings) -> Listener | None:
    """The guest-local socket. Nobody has asked for it by name, so a world in which it cannot be is no reason not to
    start.
    """
    address = Address("unix", path=f"{settings.runtime_dir}/agent.sock")
    try:
        return _unix(address, settings.runtime_dir, public=True)
    except (ConfigError, OSError) as error:
        _log.info("no guest-local socket: %s", error)
        return None


def open_listener(address: Address, settings: Settings, *, has_token: bool) -> Listener:
    """One listener. ConfigError says what is wrong with the address, or with the world."""
    try:
        match address.scheme:
            case "unix":
                return _unix(address, settings.runtime_dir, public=bool(settings.access.unix_uids))
            case "vsock":
                sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
                return _listening(sock, (address.cid, address.port), str(address))
            case "tcp":
                _check_reach(address.host, str(address), has_token=has_token)
                if not has_token:
                    _log.warning(
                        "%s: any process of this machine may connect; token_file asks for a token", address
                    )
                return _tcp(address)
            case _:
                raise ConfigError(
                    f"cannot listen on {address}: guestd listens on unix, vsock and tcp; WebSocket clients come to the"
                    " same sockets",
                )
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None


def _check_reach(host: str, name: str, *, has_token: bool) -> None:
    if not is_loopback(host) and not has_token:
        raise ConfigError(
            f"cannot listen on {name}: it is reachable from beyond this machine and there is no token;"
            " set token_file, or listen on tcp:127.0.0.1:PORT",
        )


def _unix(address: Address, runtime_dir: str, *, public: bool) -> Listener:
    path = address.path
    folder = os.path.dirname(path)
    if folder == runtime_dir:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    elif folder and not os.path.isdir(folder):
        # Only guestd's own directory is made: any other that is not there is a typing error.
        raise ConfigError(
            f"cannot listen on {address}: there is no directory {folder!r}; make it, or correct the path"
        )
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode is right from the first moment: between bind and chmod anybody could connect. Where other users
    # are let in by name, every user may knock, and is asked who it is.
    before = os.umask(0o111 if public else 0o177)
    try:
        return _listening(sock, path, str(address), path)
    finally:
        os.umask(before)


def _clear_stale(path: str) -> None:
    """A socket that nobody listens on any more is in the way; one that somebody listens on is somebody's."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"cannot listen on unix:{path}: there is a file of that name that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise ConfigError(
        f"cannot listen on unix:{path}: another process listens there; is guestd running already?"
    )


def _tcp(address: Address) -> Listener:
    infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = infos[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener = _listening(sock, where, str(address))
    # Port 0 means any: say which one it became.
    return listener._replace(name=_name(sock))


def _listening(sock: socket.socket, where: object, name: str, path: str | None = None) -> Listener:
    try:
        sock.setblocking(False)
        sock.bind(where)  # pyright: ignore[reportArgumentType]  each family has an address type of its own
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"cannot listen on {name}: another process listens there") from None
        raise
    return Listener(sock, name, path)


def _name(sock: socket.socket) -> str:
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return str(Address("unix", path=os.fsdecode(where)))
    if sock.family == socket.AF_VSOCK:
        return str(Address("vsock", cid=where[0], port=where[1]))
    return str(Address("tcp", host=where[0], port=where[1]))
