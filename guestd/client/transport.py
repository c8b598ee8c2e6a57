"""Reaching an address: every scheme ends in a `Link`, or in `Unavailable` that says what is wrong and what to try."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, cast

import trio

from guestd.client.link import SocketLink
from guestd.errors import Unavailable
from guestd.wire.address import VSOCK_ANY, Address

if TYPE_CHECKING:
    from guestd.client.link import Link

#: "OK 1073741824\n", with room.
_OK_LIMIT = 64

_HINTS = {
    errno.ENOENT: "there is no such socket; is `guestd serve` running there?",
    errno.ECONNREFUSED: "nobody listens there; is `guestd serve` running?",
    errno.EACCES: "this user may not open it; connect as root or as the user guestd runs as",
    errno.ENOTSOCK: "that path is not a socket",
    errno.ENODEV: "this machine has no vsock device; on a host, load vhost_vsock, or use hybrid:PATH:PORT",
    errno.EAFNOSUPPORT: "this kernel has no such kind of socket",
    errno.ETIMEDOUT: "there was no answer; is the machine running?",
    errno.ECONNRESET: "it was dropped at once; is the machine running, and does guestd listen on that port?",
    errno.EHOSTUNREACH: "there is no route to it",
    errno.ENETUNREACH: "there is no route to it",
}
# Linux reports a file that is no socket as refused, and a full backlog of a Unix socket as EAGAIN.
_BACKLOG_RETRY = 0.01


async def dial(address: Address, tasks: trio.Nursery) -> Link:
    """Connect. What a link needs to run beside its user goes into `tasks`. The caller sets the deadline."""
    try:
        match address.scheme:
            case "unix":
                return SocketLink(await _unix(address.path))
            case "vsock":
                return SocketLink(await _vsock(address))
            case "hybrid":
                return SocketLink(await _hybrid(address))
            case "tcp":
                return SocketLink(_without_trio(await _tcp(address)))
            case "ws" | "wss" | "ws+unix":
                return await _websocket(address, tasks)
    except OSError as error:
        raise _unreachable(address, error) from error
    except Unavailable as error:
        raise Unavailable(f"cannot reach {address}: {error.message}", address=str(address)) from error


async def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    return await _connect(sock, path)


async def _vsock(address: Address) -> socket.socket:
    if address.cid == VSOCK_ANY:
        raise Unavailable("`any` is for listening; a guest has a CID of its own, the host is 2")
    return await _connect(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (address.cid, address.port))


async def _connect(sock: socket.socket, target: str | tuple[int, int]) -> socket.socket:
    sock.setblocking(False)
    try:
        while True:
            error = sock.connect_ex(target)
            if error == errno.EAGAIN and sock.family == socket.AF_UNIX:
                # The backlog is full, and nothing can be waited for that says when it no longer is.
                await trio.sleep(_BACKLOG_RETRY)
                continue
            break
        if error == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


async def _hybrid(address: Address) -> socket.socket:
    """The VMM's socket: it connects to the guest's port when asked to, and says OK with its own port number."""
    sock = await _unix(address.path)
    try:
        sock.send(b"CONNECT %d\n" % address.port)
        # Byte by byte: what comes after the line is guestd's.
        answer = b""
        while not answer.endswith(b"\n"):
            await trio.lowlevel.wait_readable(sock)
            byte = sock.recv(1)
            if not byte:
                raise Unavailable(
                    f"the VMM closed the connection instead of connecting port {address.port} of the guest; "
                    "has guestd started in it, and does it listen on that port?",
                )
            answer += byte
            if len(answer) > _OK_LIMIT:
                break
        if not answer.startswith(b"OK "):
            raise Unavailable(
                f"the VMM answered {answer!r} to CONNECT {address.port}; expected: OK and a port number"
            )
    except BaseException:
        sock.close()
        raise
    return sock


async def _tcp(address: Address) -> trio.SocketStream:
    stream = await trio.open_tcp_stream(address.host, address.port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def _without_trio(stream: trio.SocketStream) -> socket.socket:
    # open_tcp_stream races the addresses of a name, which is worth having; the link wants the bare socket.
    sock = socket.socket(fileno=os.dup(stream.socket.fileno()))
    stream.socket.close()
    return sock


async def _websocket(address: Address, tasks: trio.Nursery) -> Link:
    # trio_websocket and ssl cost 25 ms: only those who ask for it pay.
    from guestd.client.websocket import open_websocket, secure

    by_path = address.scheme == "ws+unix"
    carrier = await trio.open_unix_socket(address.path) if by_path else await _tcp(address)
    try:
        if by_path:
            return await open_websocket(carrier, "localhost", "/", tasks)
        host = f"[{address.host}]" if ":" in address.host else address.host
        stream = await secure(carrier, address.host) if address.scheme == "wss" else carrier
        return await open_websocket(stream, f"{host}:{address.port}", address.path, tasks)
    except BaseException:
        await trio.aclose_forcefully(carrier)
        raise


def _unreachable(address: Address, error: OSError) -> Unavailable:
    # open_tcp_stream raises an OSError of its own with the real ones behind it.
    number = error.errno
    cause = error.__cause__
    if number is None and isinstance(cause, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", cause)
        numbers = [each.errno for each in group.exceptions if isinstance(each, OSError)]
        number = numbers[0] if numbers else None
    elif number is None and isinstance(cause, OSError):
        number = cause.errno
    if isinstance(error, socket.gaierror):
        what = f"the name {address.host!r} is not known ({error.strerror})"
    else:
        what = _HINTS.get(number or 0) or (error.strerror or str(error))
    name = errno.errorcode.get(number) if number is not None else None
    return Unavailable(f"cannot reach {address}: {what}{f' ({name})' if name else ''}", address=str(address))
