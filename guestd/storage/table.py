"""This process's table of mounts, and when it changes."""

from __future__ import annotations

import os
import select

import trio

from guestd.storage.mountinfo import Mounted, parse

_PATH = "/proc/self/mountinfo"


def read_table() -> list[Mounted]:
    """As it is now. The kernel has all of it in memory: nothing is waited for."""
    with open(_PATH, encoding="utf-8", errors="surrogateescape") as file:
        return parse(file)


class MountTable:
    """Tells of changes. The kernel reports one to each open file once, as an exceptional condition, which Trio has no
    name for; so there is an epoll of its own between the two.
    """

    def __init__(self) -> None:
        self._waited = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
        self._asked = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._waited, select.EPOLLPRI)
        self._poll = select.poll()
        self._poll.register(self._asked, select.POLLPRI)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._waited)
        os.close(self._asked)

    async def changed(self) -> None:
        """Wait until it is another one than when this last returned."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait, nursery.cancel_scope)
            # To register it is to ask, and whoever asks is told only once: a change of just before would be lost. The
            # second file knows of it.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            if self._poll.poll(0):
                nursery.cancel_scope.cancel()
        self._epoll.poll(0)
        self._poll.poll(0)

    async def _wait(self, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        scope.cancel()
