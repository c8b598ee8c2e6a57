"""The descriptors that must outlive this process, kept by whoever started it: systemd's protocol for that, which
`guestd init` speaks too.

Sending is done without waiting, and in order. What the receiver has no room for waits here and follows; whatever has
been sent survives this process, even if nobody has read it yet.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log = logging.getLogger("guestd.store")
#: In milliseconds: how long everybody waits for room. The kernel keeps ten messages where nobody has said otherwise,
#: and whoever reads them may have to wait for a processor.
_PATIENCE = 250
_LAST_WORDS = 1.0
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS}


class FdStore:
    """See the module. Without anybody who keeps descriptors, `there` is False and nothing is sent."""

    def __init__(self, environ: Mapping[str, str], held: Mapping[str, int] | None = None) -> None:
        """`held`: what is kept already, how many under each name."""
        path = environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        room = environ.get("FDSTORE", "")
        if path and room.isdecimal() and int(room) > 0:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            try:
                self._socket.connect("\0" + path[1:] if path.startswith("@") else path)
            except OSError as error:
                _log.warning("nobody keeps descriptors at %s: %s", path, error.strerror)
                self._socket.close()
                self._socket = None
        self._held = dict(held or {})
        self._room = (int(room) if room.isdecimal() else 0) - sum(self._held.values())
        # What waits: a text, and descriptors of its own until it has left.
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._nursery: trio.Nursery | None = None
        self._sending = False

    @property
    def there(self) -> bool:
        return self._socket is not None

    def run_in(self, nursery: trio.Nursery) -> None:
        """Where the task lives that sends what could not be sent at once."""
        self._nursery = nursery

    @property
    def room(self) -> int:
        """How many more are kept. Whoever keeps them throws away what is too much."""
        return self._room

    def keep(self, name: str, fds: Sequence[int]) -> bool:
        """Keep these under that name, beside those that are there already. False when there is no room for them."""
        if len(fds) > self.room:
            return False
        self._held[name] = self._held.get(name, 0) + len(fds)
        self._room -= len(fds)
        # Not polled: a pipe whose other end has closed still holds what was written to it.
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}".encode(), fds)
        return True

    def forget(self, name: str) -> None:
        """Give back everything of that name."""
        self._room += self._held.pop(name, 0)
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), ())

    async def flush(self) -> None:
        """Wait for a moment until everything has left."""
        with trio.move_on_after(_LAST_WORDS, shield=True):
            await self._flush()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()

    def _send(self, text: bytes, fds: Sequence[int]) -> None:
        if self._socket is None:
            return
        if not self._queue and (self._try(text, fds) or self._try_again(text, fds)):
            return
        self._queue.append((text, [os.dup(fd) for fd in fds]))
        if not self._sending and self._nursery is not None:
            self._sending = True
            self._nursery.start_soon(self._flush)

    def _try(self, text: bytes, fds: Sequence[int]) -> bool:
        assert self._socket is not None
        try:
            if fds:
                socket.send_fds(self._socket, [text], fds)
            else:
                self._socket.send(text)
        except OSError as error:
            if error.errno in _FULL:
                return False
            _log.warning("descriptors could not be kept: %s", error.strerror)
        return True

    def _try_again(self, text: bytes, fds: Sequence[int]) -> bool:
        """There is no room. Whoever makes some does little else, and what follows relies on this having left."""
        assert self._socket is not None
        ready = select.poll()
        ready.register(self._socket, select.POLLOUT)
        return bool(ready.poll(_PATIENCE)) and self._try(text, fds)

    async def _flush(self) -> None:
        try:
            while self._queue and self._socket is not None:
                text, fds = self._queue[0]
                if self._try(text, fds):
                    _close_all(fds)
                    self._queue.popleft()
                else:
                    await trio.lowlevel.wait_writable(self._socket)
        finally:
            self._sending = False


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
