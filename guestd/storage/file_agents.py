"""The supervisor's side of the file processes: one for each request that is worked on, kept warm for the next one.

A process serves one user and one request at a time; so whatever holds one up (a dead server, a frozen disk) holds up
that request alone. One that is no longer wanted is told by the end of its line, then killed, and what cannot be
killed is left behind and told. Their number is bounded, and who comes beyond it waits.
"""

from __future__ import annotations

import importlib.util
import logging
import marshal
import os
import signal
import socket
import sys
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import trio

import guestd
from guestd.errors import LimitReached
from guestd.process.plan import Plan
from guestd.storage.file_line import OPEN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from guestd.config import Settings
    from guestd.process.identity import Identity
    from guestd.process.reaper import Exit
    from guestd.process.spawn import Spawner

_log = logging.getLogger("guestd.files")
#: How long a process that is no longer wanted may take to clean up behind itself.
_TIDY = 2.0
#: After SIGKILL, for the kernel to take it away.
_GONE = 1.0
#: Processes that could not be ended. With so many of them something is wrong that more would make worse.
STUCK_MAX = 32
#: Of the packet queue between the two: a few chunks.
_QUEUE = 1024 * 1024
_SO_SNDBUFFORCE = 32


class Key(NamedTuple):
    """What makes one process as good as another."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    watches: bool


class Agent:
    """One file process, and this side's end of the line to it."""

    def __init__(self, key: Key, line: socket.socket) -> None:
        self.key = key
        self.line = line
        self.pid = 0
        self.ended = trio.Event()
        self.status: int | None = None
        self.idle_since = 0.0

    def told(self, ended: Exit) -> None:
        self.status = ended.status
        self.ended.set()

    def close(self) -> None:
        """Nothing more will be asked: it cleans up and ends."""
        if self.line.fileno() >= 0:
            trio.lowlevel.notify_closing(self.line)
            self.line.close()


class Agents:
    """All of them. `stuck` are those that could not be ended."""

    def __init__(
        self,
        settings: Settings,
        spawner: Spawner,
        own: Identity,
        drop: list[int],
        nursery: trio.Nursery,
        say: Callable[..., None],
    ) -> None:
        self._settings = settings
        self._spawner = spawner
        self._own = own
        self._drop = drop
        self._nursery = nursery
        self._say = say
        self._idle: list[Agent] = []
        # Those that have not ended, as far as anybody has looked.
        self._there: set[Agent] = set()
        self._sweeping = False
        self._closed = False
        self._working = trio.CapacityLimiter(settings.files.processes)
        self._watching = trio.CapacityLimiter(max(1, settings.files.watchers))
        self._of_connections: WeakKeyDictionary[object, trio.CapacityLimiter] = WeakKeyDictionary()
        self.stuck: dict[int, str] = {}
        self.working = 0

    @asynccontextmanager
    async def turn(self, connection: object, *, watches: bool) -> AsyncGenerator[None]:
        """One of the places, for the length of a block. Waits for it, and not for ever."""
        files = self._settings.files
        if len(self.stuck) >= STUCK_MAX:
            raise LimitReached(
                f"{len(self.stuck)} processes wait for file systems that do not answer ({self._stuck_where()}); nothing"
                " more is asked of files until some of them have",
                limit=STUCK_MAX,
            )
        limits: list[tuple[trio.CapacityLimiter, str, int]] = []
        if watches:
            limits.append((self._watching, "files.watchers", files.watchers))
        else:
            own = self._of_connections.get(connection)
            if own is None:
                own = self._of_connections[connection] = trio.CapacityLimiter(files.per_connection)
            limits = [
                (own, "files.per_connection", files.per_connection),
                (self._working, "files.processes", files.processes),
            ]
        # A borrower of its own: one task may have several requests.
        borrower = object()
        with ExitStack() as taken:
            for limiter, setting, limit in limits:
                with trio.move_on_after(files.wait if limit else 0) as patience:
                    await limiter.acquire_on_behalf_of(borrower)
                    taken.callback(limiter.release_on_behalf_of, borrower)
                if patience.cancelled_caught or not limit:
                    raise LimitReached(
                        f"{limit} requests like it are worked on, and none has ended in {files.wait:g} s; ask for less"
                        f" at once, or raise {setting}",
                        limit=limit, setting=setting,
                    )  # fmt: skip
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1

    async def get(self, identity: Identity, *, watches: bool) -> Agent:
        """One that has nothing to do, or a new one. Raises StartFailed."""
        key = Key(identity.uid, identity.gid, identity.groups, watches)
        for agent in reversed(self._idle):
            if agent.key == key:
                self._idle.remove(agent)
                if not agent.ended.is_set():
                    return agent
                agent.close()
        return await self._start(key, identity)

    async def _start(self, key: Key, identity: Identity) -> Agent:
        change = (identity.uid, identity.gid, identity.groups) != self._own[:3]
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agent = Agent(key, mine)
        try:
            with theirs, open(os.devnull, "r+b", buffering=0) as null:
                for each in (mine, theirs):
                    _widen(each)
                mine.setblocking(False)
                fds: dict[int, int | None] = {0: null.fileno(), 1: null.fileno(), 2: 2, 3: theirs.fileno()}
                agent.pid = await self._spawner.start(self._plan(fds, change=change), agent.told)
            first = {
                "change": change, "uid": identity.uid, "gid": identity.gid, "groups": list(identity.groups),
                "name": identity.name, "watches": key.watches, "version": guestd.__version__,
            }  # fmt: skip
            mine.send(bytes((OPEN,)) + marshal.dumps(first))
        except BaseException:
            agent.close()
            raise
        self._there = {each for each in self._there if not each.ended.is_set()} | {agent}
        return agent

    def _plan(self, fds: dict[int, int | None], *, change: bool) -> Plan:
        root = os.path.dirname(os.path.dirname(guestd.__file__))
        # Isolated and without site, as the launcher: nothing of the environment reaches what is root to begin with.
        # What watching needs lies among the packages, behind everything else.
        more = [os.path.dirname(each) for each in map(_origin, ("pyinotify", "asyncore")) if each]
        code = (
            f"import sys; sys.path.insert(0, {root!r}); sys.path += {more!r};"
            " from guestd.storage.agent import main; main()"
        )
        settings = self._settings.command
        return Plan(
            program=sys.executable,
            argv=[os.fsencode(word) for word in (sys.executable, "-I", "-S", "-c", code)],
            env={},
            cwd=["/"],
            identity=self._own,
            fds=fds,
            umask=settings.umask,
            oom_score_adj=settings.oom_score_adj,
            # Another user has none; and without some of them it could not become that user.
            drop_capabilities=[] if change else self._drop,
        )

    def give_back(self, agent: Agent) -> None:
        """It has done what was asked, all of it."""
        if self._closed or not self._settings.files.warm or agent.key.watches:
            self.put_away(agent)
            return
        agent.idle_since = trio.current_time()
        if len(self._idle) >= self._settings.files.processes:
            # Each is some megabytes, and many users may have asked.
            self.put_away(self._idle.pop(0))
        self._idle.append(agent)
        if not self._sweeping:
            self._sweeping = True
            self._nursery.start_soon(self._sweep)

    async def _sweep(self) -> None:
        """End those that have had nothing to do for long."""
        warm = self._settings.files.warm
        while self._idle:
            await trio.sleep_until(self._idle[0].idle_since + warm)
            now = trio.current_time()
            while self._idle and (self._idle[0].idle_since + warm <= now or self._idle[0].ended.is_set()):
                self.put_away(self._idle.pop(0))
        self._sweeping = False

    def put_away(self, agent: Agent, where: str = "", *, hangs: bool = False) -> None:
        """It is not wanted any more: it ends, or is ended. `hangs`: it had its time already."""
        agent.close()
        self._nursery.start_soon(self._end, agent, where, 0.0 if hangs else _TIDY)

    def dismiss(self, agent: Agent, last: bytes, where: str) -> None:
        """The same, once it has taken a last message, for which its queue may have no room yet."""
        self._nursery.start_soon(self._dismiss, agent, last, where)

    async def _dismiss(self, agent: Agent, last: bytes, where: str) -> None:
        try:
            with trio.move_on_after(_TIDY):
                while True:
                    try:
                        agent.line.send(last)
                        break
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(agent.line)
        except OSError:
            pass  # it has gone by itself
        finally:
            self.put_away(agent, where)

    async def _end(self, agent: Agent, where: str, grace: float) -> None:
        with trio.move_on_after(grace):
            await agent.ended.wait()
        if agent.ended.is_set():
            return
        with suppress(ProcessLookupError):
            os.kill(agent.pid, signal.SIGKILL)
        with trio.move_on_after(_GONE):
            await agent.ended.wait()
        if agent.ended.is_set():
            return
        _log.warning(
            "a file process (%d) waits for a file system that does not answer, and is left behind: %s",
            agent.pid,
            where,
        )
        self._say("file_system_hangs", pid=agent.pid, path=where)
        self.stuck[agent.pid] = where
        await agent.ended.wait()
        del self.stuck[agent.pid]
        self._say("file_system_answers", pid=agent.pid, path=where)

    async def wait_ended(self) -> None:
        """Until all have ended, but those that cannot be ended. Each is put away by whoever has it."""
        for agent in list(self._there):
            if agent.pid not in self.stuck:
                await agent.ended.wait()

    def _stuck_where(self) -> str:
        return ", ".join(sorted(set(self.stuck.values()))[:3])

    def close(self) -> None:
        """No more: the session ends."""
        self._closed = True
        for agent in self._idle:
            self.put_away(agent)
        self._idle.clear()


def _widen(line: socket.socket) -> None:
    """Room for a few chunks; without the right to that, what the system allows, in which one fits."""
    try:
        line.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _QUEUE)
    except PermissionError:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)


def _origin(name: str) -> str | None:
    found = importlib.util.find_spec(name)
    return None if found is None else found.origin
