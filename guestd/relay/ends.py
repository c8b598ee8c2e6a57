"""One end of a connection that is passed on: a stream socket, with what passing on needs of it, and nothing that waits
for anybody else.

A connection that breaks must not look like one that has ended: until both sides have said their end, a TCP socket is
set so that closing it is a reset. So also the death of this process is one, by the kernel's own hand. (Unix and vsock
sockets have no such thing: there it looks like an end.)
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.errors import Refused

if TYPE_CHECKING:
    from guestd.wire.address import Address

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PLAIN_CLOSE = struct.pack("ii", 0, 0)
_INTERNET = {socket.AF_INET, socket.AF_INET6}
#: Nothing can be waited for that says when the backlog of a Unix socket has room again.
_BACKLOG_RETRY = 0.01
#: A path may lie on a file system that does not answer: whoever looks it up waits in a thread, and only so many do.
_LOOKING_UP = trio.CapacityLimiter(8)
_HINTS = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.ENOENT: "there is no such socket",
    errno.ENOTSOCK: "that path is not a socket",
    errno.EHOSTUNREACH: "there is no route to it",
    errno.ENETUNREACH: "there is no route to it",
    errno.ENODEV: "this machine has no vsock device",
    # What a vsock says when nobody listens on the host's port.
    errno.ECONNRESET: "nobody listens there, or it was dropped at once",
    errno.ETIMEDOUT: "there was no answer",
}


class End:
    """See the module. Owns the socket. Tests put one in its place that fails in chosen ways."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        if sock.family in _INTERNET:
            with suppress(OSError):  # gone already: the first read says so
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    @property
    def socket(self) -> socket.socket:
        return self._socket

    def places(self) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
        """Where the one who connected is, and where it connected to, if that is TCP and it is still there."""
        if self._socket.family not in _INTERNET:
            return None, None
        try:
            source, target = self._socket.getpeername(), self._socket.getsockname()
        except OSError:
            return None, None
        return (source[0], source[1]), (target[0], target[1])

    def receive_into(self, room: memoryview) -> int:
        """At once, or BlockingIOError. 0: the other side has said its end."""
        return self._socket.recv_into(room)

    def receive(self, most: int) -> bytes:
        """The same, in memory of its own."""
        return self._socket.recv(most)

    def send(self, data: memoryview) -> int:
        """At once, as much as there is room for, or BlockingIOError."""
        return self._socket.send(data)

    async def readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    def is_over(self) -> bool:
        """Has the other side ended or broken it, or said what nobody asked for?"""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    async def gone(self) -> None:
        """Wait until the other side has ended or broken it. What it says meanwhile is left where it is."""
        while True:
            await self.readable()
            try:
                if self._socket.recv(1, socket.MSG_PEEK):
                    await trio.sleep_forever()
                return
            except BlockingIOError:
                continue
            except OSError:
                return

    def finish(self) -> None:
        """Say this side's end; the other direction goes on."""
        self._socket.shutdown(socket.SHUT_WR)

    def settle(self) -> None:
        """Both sides have said their end: closing is nothing but closing from now on."""
        if self._socket.family in _INTERNET:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _PLAIN_CLOSE)

    def close(self) -> None:
        """Unless it is settled, whoever is at the other end sees a reset."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


async def connect(address: Address, timeout: float) -> End:
    """A connection to whoever listens there. Refused says what is in the way."""
    try:
        with trio.fail_after(timeout):
            return End(await _connect(address))
    except trio.TooSlowError:
        raise Refused(
            f"cannot connect to {address}: there was no answer within {timeout:g} s", address=str(address)
        ) from None
    except OSError as error:
        raise refused(address, error) from None


def refused(address: Address, error: OSError) -> Refused:
    """What is wrong, in words."""
    if isinstance(error, socket.gaierror):
        what, name = f"the name {address.host!r} is not known", None
    else:
        what = _HINTS.get(error.errno or 0) or error.strerror or str(error)
        name = errno.errorcode.get(error.errno or 0)
    return Refused(
        f"cannot connect to {address}: {what}{f' ({name})' if name else ''}",
        address=str(address),
        errno=error.errno,
    )


async def _connect(address: Address) -> socket.socket:
    match address.scheme:
        case "unix":
            return await _unix(address.path)
        case "vsock":
            return await _one(socket.AF_VSOCK, (address.cid, address.port))
        case "tcp":
            return await _tcp(address.host, address.port)
        case _:
            raise ValueError(address)


async def _tcp(host: str, port: int) -> socket.socket:
    failure: OSError | None = None
    for family, where in await _places(host, port):
        try:
            return await _one(family, where)
        except OSError as error:  # the next address may answer
            failure = failure or error
    raise failure or OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))


async def _places(host: str, port: int) -> list[tuple[int, object]]:
    if host == "localhost":
        # Many a development server listens on only one of them. No resolver is asked: there may be none.
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    infos = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(info[0], info[4]) for info in infos]


async def _one(family: int, where: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(where)  # pyright: ignore[reportArgumentType]  each family has an address type of its own
        if error == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            await trio.lowlevel.checkpoint()
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        trio.lowlevel.notify_closing(sock)
        sock.close()
        raise
    return sock


async def _unix(path: str) -> socket.socket:
    while True:
        looking = _Looking(path)
        try:
            error = await trio.to_thread.run_sync(looking.up, abandon_on_cancel=True, limiter=_LOOKING_UP)
        except BaseException:
            looking.give_up()
            raise
        if not error:
            return looking.socket
        looking.give_up()
        if error != errno.EAGAIN:
            raise OSError(error, os.strerror(error))
        await trio.sleep(_BACKLOG_RETRY)


class _Looking:
    """A Unix socket that a thread connects. Whoever comes last, the thread or who has given up, closes it."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self._path = path
        self._lock = threading.Lock()
        self._begun = self._over = self._given_up = False

    def up(self) -> int:
        with self._lock:
            if self._given_up:
                return errno.ECANCELED
            self._begun = True
        error = self.socket.connect_ex(self._path)
        with self._lock:
            self._over = True
            if self._given_up:
                self.socket.close()
        return error

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            if self._over or not self._begun:
                self.socket.close()
