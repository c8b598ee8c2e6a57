"""Programs at the two ends of a connection that is passed on: servers of a test's own, in threads that end with it."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

#: Far above what anything takes: a hang becomes a failure.
PATIENCE = 30.0
_RESET = struct.pack("ii", 1, 0)

#: With fewer, a thousand connections at once look like an attack to the kernel: it resets those that had no place.
_BACKLOG = 4096


class Program:
    """Listens, and gives each connection to `serve` in a thread of its own. What goes wrong there fails the test."""

    def __init__(self, serve: Callable[[socket.socket], None], path: str | None = None) -> None:
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
            self.port = int(self._listener.getsockname()[1])
            self.address = f"tcp:127.0.0.1:{self.port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(_BACKLOG)
            self.address = f"unix:{path}"
        self._serve = serve
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self.failures: list[BaseException] = []
        self._accepting = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert not self.failures, self.failures

    def stop(self) -> None:
        """Nobody listens there any more, and all connections are gone."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._run, args=(sock,))
            self._threads.append(thread)
            self._open.add(sock)
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        try:
            with sock:
                self._serve(sock)
        except OSError as error:
            if error.errno not in {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.EBADF}:
                self.failures.append(error)
        except BaseException as error:  # noqa: BLE001  the test is to hear of it
            self.failures.append(error)
        finally:
            self._open.discard(sock)


def echo(sock: socket.socket) -> None:
    """Say what was said, then the end."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def count(sock: socket.socket) -> None:
    """Read to the end, then say how much that was."""
    size = 0
    while data := sock.recv(65536):
        size += len(data)
    sock.sendall(b"%d" % size)


def abort(sock: socket.socket) -> None:
    """Break it off: a reset, not an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


@contextlib.contextmanager
def connected(port: int | str) -> Generator[socket.socket]:
    """A connection to a port of the loopback, or to a path."""
    if isinstance(port, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(port)
    else:
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    with sock:
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """Everything to the end; ConnectionResetError where it is no end."""
    found = bytearray()
    while data := sock.recv(65536):
        found += data
    return bytes(found)


def is_turned_away(port: int) -> bool:
    """Is a connection that is made broken off? So promptly, sometimes, that whoever makes it has not noticed it yet."""
    try:
        with connected(port) as sock:
            return is_reset(sock)
    except ConnectionResetError:
        return True


def is_reset(sock: socket.socket) -> bool:
    """Is it broken off, and not ended?"""
    try:
        read_all(sock)
    except ConnectionResetError:
        return True
    return False
