"""guestctl's own stdin, stdout and stderr, without ever making the loop wait and without changing them.

O_NONBLOCK belongs to the open file, which guestctl shares with the shell that started it and with whoever else
writes there: set it, and they fail. So, by what the descriptor is:
- a file or a device that never waits is written as it is;
- a pipe or a terminal is opened once more through /proc, which gives an open file of our own;
- a socket takes the wish not to wait with each call;
- anything else, or a refusal of the above, is written by a thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_READ_SIZE = 64 * 1024


class Outlet:
    """One descriptor to write to. BrokenPipeError when nobody reads it any more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own: int | None = None
        self._lock = trio.Lock()
        self._write: Callable[[memoryview], Awaitable[int]] | None = None

    async def write(self, data: bytes) -> None:
        """Write all of it, whole lines and pieces of other tasks never in between."""
        async with self._lock:
            write = self._write = self._write or self._choose()
            rest = memoryview(data)
            while rest:
                rest = rest[await write(rest) :]

    def close(self) -> None:
        """Close what was opened here; the descriptor itself stays."""
        if self._own is not None:
            trio.lowlevel.notify_closing(self._own)
            os.close(self._own)
            self._own = None

    def _choose(self) -> Callable[[memoryview], Awaitable[int]]:
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISSOCK(mode):
            return self._to_socket
        if not stat.S_ISFIFO(mode) and not os.isatty(self._fd):
            return self._at_once
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._own = os.open(f"/proc/self/fd/{self._fd}", flags)
            return self._to_own
        return self._by_thread

    async def _at_once(self, data: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        return os.write(self._fd, data)

    async def _to_own(self, data: memoryview) -> int:
        assert self._own is not None
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return os.write(self._own, data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._own)

    async def _to_socket(self, data: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        sock = socket.socket(fileno=self._fd)
        try:
            while True:
                try:
                    return sock.send(data, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._fd)
        finally:
            sock.detach()

    async def _by_thread(self, data: memoryview) -> int:
        while True:
            try:
                return await trio.to_thread.run_sync(os.write, self._fd, data, abandon_on_cancel=True)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)


async def read_some(fd: int) -> bytes:
    """The next bytes of an input; empty at its end. One reader: then what is readable does not wait."""
    while True:
        try:
            await trio.lowlevel.wait_readable(fd)
        except PermissionError:
            await trio.lowlevel.checkpoint()  # a file: always readable, and epoll will not have it
        try:
            return os.read(fd, _READ_SIZE)
        except BlockingIOError:
            continue
