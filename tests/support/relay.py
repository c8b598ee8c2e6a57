"""A Unix socket in front of guestd's own that a test can cut, as a network would: at once, for as long as it likes."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path


class Relay:
    """Passes any number of connections on. After `cut` all are gone and no other is taken, until `mend`."""

    def __init__(self, path: Path, target: str) -> None:
        self.address = f"unix:{path}"
        self.connections = 0
        self._path = path
        self._target = target
        self._listener: socket.socket | None = None
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._woken, self._wake = socket.socketpair()
        self._lock = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self.mend()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wake.send(b"x")
        self._thread.join()
        self.cut()
        self._woken.close()
        self._wake.close()

    def mend(self) -> None:
        """Take connections from now on."""
        with self._lock:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self._path))
            listener.listen()
            self._listener = listener
        self._wake.send(b"x")

    def cut(self) -> None:
        """End all connections, without a word."""
        with self._lock:
            if self._listener is not None:
                self._listener.close()
                os.unlink(self._path)
                self._listener = None
            for each in list(self._pairs):
                self._end(each)
        with suppress(OSError):
            self._wake.send(b"x")

    def _end(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        if other is not None:
            self._pairs.pop(other, None)
            one.close()
            other.close()

    def _serve(self) -> None:
        while not self._over:
            with self._lock:
                looked = [self._woken, *self._pairs, *([self._listener] if self._listener else [])]
            try:
                ready, _, _ = select.select(looked, [], [])
            except (OSError, ValueError):
                continue  # one was closed meanwhile
            with self._lock:
                for each in ready:
                    if each is self._woken:
                        each.recv(4096)
                    elif each is self._listener:
                        self._accept(each)
                    elif each in self._pairs:
                        self._pass_on(each)

    def _accept(self, listener: socket.socket) -> None:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._target)
        self._pairs[near], self._pairs[far] = far, near
        self.connections += 1

    def _pass_on(self, source: socket.socket) -> None:
        with suppress(OSError):
            data = source.recv(65536)
            if data:
                self._pairs[source].sendall(data)
                return
        self._end(source)
