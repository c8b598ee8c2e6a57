"""The exporter's process, from guestd's side: started, fed, asked, replaced when it dies.

It is a process of its own because an exporter takes the interpreter's lock when it likes: importing one costs a tenth
of a second of it, each batch some milliseconds, and with gRPC 25 MB (docs/decisions.md has the measurements). So what
the loop pays for telemetry is a tuple for each fact, and one write for all that came within a tenth of a second.

Bounds: facts wait in a queue that drops the oldest and counts them; the process takes them as quickly as it can read,
whatever its collector does, and has queues of the same kind. If serve dies, the process hears it, sends what it has,
and ends; what was still open in that moment it knows.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import msgpack
import trio

import guestd
from guestd.errors import StartFailed
from guestd.process.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.process.identity import Identity
    from guestd.process.spawn import Spawner

_log = logging.getLogger("guestd.telemetry")
#: How long a fact waits for others to leave with it.
GATHER = 0.1
#: Packed and sent at once: a moment of the loop's, and one write.
_BATCH = 200
_BATCH_BYTES = 256 * 1024
_READ = 64 * 1024
#: After its death it is started again; doubled up to the second while it does not last.
_AGAIN, _AGAIN_MAX, _LASTED = 0.25, 60.0, 60.0
#: Before it is killed, when it was asked to end.
_LEAVING = 0.3
_CODE = "import sys; sys.path.insert(0, {root!r}); from guestd.telemetry.outlet.main import main; main()"

Message = tuple[object, ...]


class Outflow:
    """See the module. `hello` makes the first message of each process."""

    def __init__(
        self, spawner: Spawner, own: Identity, environment: Mapping[str, str], limit: int,
        hello: Callable[[], Message],
    ) -> None:  # fmt: skip
        self._spawner = spawner
        self._own = own
        self._environment = environment
        self._limit = limit
        self._hello = hello
        self._queue: deque[tuple[Message | Callable[[], Message], Callable[[], None] | None]] = deque()
        self._news = trio.Event()
        self._asked = 0
        self._flushes: dict[int, trio.Event] = {}
        self._flushed: dict[int, bool] = {}
        self._socket: socket.socket | None = None
        self._gone = trio.Event()
        self._urgent = trio.Event()
        self._leaving = False
        self.pid: int | None = None
        self.starts = 0
        self.failure: str | None = None
        #: Facts that the queue had no room for, and those that an exporter had when it died.
        self.dropped = self.lost = 0
        self._sent = 0
        #: What the process says of itself.
        self.report: dict[str, Any] = {}
        #: Called when a process has begun: what is open is to be told once more.
        self.begun: Callable[[], None] = lambda: None
        #: Called before facts are sent.
        self.gather: Callable[[], None] = lambda: None

    # ------------------------------------------------------------------------------------ in the loop

    def put(self, message: Message | Callable[[], Message], then: Callable[[], None] | None = None) -> None:
        """To be sent soon. A function is called then: most facts are cheaper to tell a moment later, or never. `then`
        is called when it has left.
        """
        if len(self._queue) >= self._limit:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append((message, then))
        self._news.set()

    def wake(self) -> None:
        """There is something to gather."""
        self._news.set()

    # ------------------------------------------------------------------------------------ its life

    async def run(self) -> None:
        """Keep one running, until cancelled."""
        patience = _AGAIN
        while not self._leaving:
            begun = trio.current_time()
            try:
                await self._run_one()
            except (OSError, StartFailed) as error:
                self.failure = f"the exporter could not be started: {error}"
                _log.warning("%s", self.failure)
            if self._leaving:
                return
            if trio.current_time() - begun > _LASTED:
                patience = _AGAIN
            await trio.sleep(patience)
            patience = min(2 * patience, _AGAIN_MAX)

    async def _run_one(self) -> None:
        ended = trio.Event()
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with mine:
            with theirs:
                mine.setblocking(False)
                root = os.path.dirname(os.path.dirname(guestd.__file__))
                argv = [sys.executable, "-I", "-c", _CODE.format(root=root)]
                plan = Plan(
                    program=sys.executable, argv=[os.fsencode(word) for word in argv],
                    env={os.fsencode(name): os.fsencode(value) for name, value in self._environment.items()},
                    cwd=["/"], identity=self._own, fds={0: theirs.fileno(), 1: 2, 2: 2},
                )  # fmt: skip
                pid = await self._spawner.start(plan, lambda _: ended.set())
            self.pid, self._socket, self._gone = pid, mine, ended
            self._spawner.spared.add(pid)
            self.starts += 1
            self._sent, self.report, self.failure = 0, {}, None
            try:
                await self._serve(mine, ended)
            finally:
                self.pid = self._socket = None
                for flush in self._flushes.values():
                    flush.set()
                if not ended.is_set() and not self._leaving:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._spawner.spared.discard(pid)
            self.lost += max(0, self._sent - int(self.report.get("taken", 0)))
            self.failure = "the exporter died and is started again"
            if not self._leaving:
                _log.warning("telemetry: %s", self.failure)

    async def _serve(self, sock: socket.socket, ended: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, sock)
            nursery.start_soon(self._hear, sock)
            await ended.wait()
            nursery.cancel_scope.cancel()

    async def _send(self, sock: socket.socket) -> None:
        pack = msgpack.Packer(unicode_errors="surrogateescape", default=str).pack
        waiting = bytearray(pack(self._hello()))
        left: list[Callable[[], None]] = []
        self.begun()
        while True:
            if not waiting:
                await self._news.wait()
                with trio.move_on_after(GATHER):
                    await self._urgent.wait()
                self._news = trio.Event()
                self.gather()
            while self._queue and len(waiting) < _BATCH_BYTES:
                for _ in range(min(_BATCH, len(self._queue))):
                    message, then = self._queue.popleft()
                    waiting += pack(message() if callable(message) else message)
                    self._sent += 1
                    if then is not None:
                        left.append(then)
                await trio.lowlevel.checkpoint()
            if self._queue:
                self._news.set()
            with suppress(BlockingIOError):
                try:
                    sent = sock.send(waiting)
                except BrokenPipeError:
                    return  # it has ended, which somebody else is about to hear
                del waiting[:sent]
            if waiting:
                await trio.lowlevel.wait_writable(sock)
                continue
            for each in left:
                each()
            left.clear()

    async def _hear(self, sock: socket.socket) -> None:
        unpacker = msgpack.Unpacker(max_buffer_size=1024 * 1024)
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(_READ)
            except (BlockingIOError, ConnectionResetError):
                data = b""
            if not data:
                return
            unpacker.feed(data)
            for message in unpacker:
                kind, *rest = cast("list[Any]", message)
                if kind == "report":
                    self.report = rest[0]
                elif kind == "flushed" and rest[0] in self._flushes:
                    self._flushed[rest[0]] = rest[1]
                    self._flushes[rest[0]].set()

    # ------------------------------------------------------------------------------------ the end

    async def flush(self, limit: float) -> bool:
        """Have all that is known sent to the collector, within `limit` seconds. True when it has taken everything."""
        if self._socket is None:
            return False
        self._asked += 1
        number = self._asked
        self._flushes[number] = done = trio.Event()
        try:
            self.put(("flush", number, limit))
            self._urgent.set()
            with trio.move_on_after(limit):
                await done.wait()
        finally:
            del self._flushes[number]
            self._urgent = trio.Event()
        return self._flushed.pop(number, False)

    async def leave(self) -> None:
        """End it: at once, or by force a moment later."""
        self._leaving = True
        pid, sock = self.pid, self._socket
        if pid is None or sock is None:
            return
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        gone = self._gone
        with trio.move_on_after(_LEAVING, shield=True):
            await gone.wait()
        if not gone.is_set():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with trio.move_on_after(_LEAVING, shield=True):
                await gone.wait()

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "pid": self.pid,
            "starts": self.starts,
            "failure": self.failure,
            "waiting": len(self._queue),
            "dropped": self.dropped,
            "lost": self.lost,
            **{name: value for name, value in self.report.items() if name != "taken"},
        }
