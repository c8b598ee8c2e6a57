"""A request about files: the channel on one side, the file process on the other, and frames that pass between them.

What the process says are frames already, but for their heads; what the client sends goes to it as it comes. Both ways
the slower side holds up the other: data is taken off the line when the channel has credit for it, and credit is given
for what the process has taken. Nothing is gathered here but one message, and the input that the channel's window
allows.
"""

from __future__ import annotations

import marshal
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import (
    BadOffset,
    BadRequest,
    FileFailed,
    GuestdError,
    ShuttingDown,
    TimedOut,
)
from guestd.service.link import Outgoing
from guestd.storage.file_line import DATA_AT, MESSAGE_MAX
from guestd.tree.holes import CHUNK
from guestd.wire.frames import Kind
from guestd.wire.messages import unpack_payload

if TYPE_CHECKING:
    from guestd.process.identity import Identity
    from guestd.service.channel import Channel
    from guestd.service.files import Files
    from guestd.storage.file_agents import Agent
    from guestd.wire.messages import Fields

#: A transfer is use of the session, and says so this often.
_TOUCH = 1.0
_INPUT = 0
_EMPTY_MAP = b"\x80"


class Transfer:
    """The handler of the channel, and the task that waits for the line."""

    def __init__(
        self,
        files: Files,
        channel: Channel,
        identity: Identity,
        ask: dict[str, Any],
        *,
        takes: bool,
        keeps: bool,
    ) -> None:
        """`takes`: the client sends data. `keeps`: what has come of it stays when the connection is lost."""
        self._files = files
        self._channel = channel
        self.identity = identity
        self.ask = ask
        self._takes = takes
        self._keeps = keeps
        self._watches = ask["op"] == "watch"
        self._agent: Agent | None = None
        self._scope = trio.CancelScope()
        self._buffer = memoryview(bytearray(MESSAGE_MAX))
        # Data that was taken off the line and waits for credit: stream, offset, bytes.
        self._rest: tuple[int, int, memoryview] | None = None
        self._dry = trio.Event()
        self._dry.set()
        self._queue: deque[bytes] = deque()
        self._queued = trio.Event()
        self._next = 0
        # Passed on before ACCEPT, when no credit may be given yet.
        self._owed = 0
        self._accepted = False
        self._sent_all = not takes
        self._done = False
        self._failure: GuestdError | None = None
        # The connection; the process that does it.
        self._lost = self._broken = False
        self._heard = 0.0
        self._touched = 0.0

    # ------------------------------------------------------------------------------------------ the channel's side

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        if not self._takes or stream != _INPUT:
            raise BadRequest(f"data for stream {stream}: {self.ask['op']} takes none of it", field="stream")
        if offset < self._next or (offset > self._next and self.ask["op"] != "write"):
            raise BadOffset(f"data of offset {offset} came where {self._next} was next")
        if self._sent_all:
            raise BadRequest("data came behind its end", field="stream")
        self._next = offset + len(data)
        for at in range(0, len(data), CHUNK):
            piece = data[at : at + CHUNK]
            head = bytes((Kind.DATA, _INPUT)) + (offset + at).to_bytes(8, "little")
            self._give(head, piece)
        self._touch()

    def on_event(self, fields: Fields) -> None:
        if fields.raw("event") != "eof" or not self._takes or self._sent_all:
            return
        last = fields.integer("offset")
        digest = fields.text("digest", None, most=256)
        if last < self._next or (last > self._next and self.ask["op"] != "write"):
            raise BadOffset(f"the end is said to be at {last}, and {self._next} bytes came")
        self._sent_all = True
        self._give(bytes((Kind.EVENT,)) + marshal.dumps({"offset": last, "digest": digest}), b"")

    def pull(self, most: int) -> Outgoing | None:
        if self._rest is not None:
            return self._send_rest(most)
        agent = self._agent
        if agent is None or self._done:
            return None
        try:
            size = agent.line.recv_into(self._buffer)
        except BlockingIOError:
            self._dry.set()
            return None
        except OSError:
            size = 0
        if not size:
            self._broken = True
            self._fail(self._why_it_ended())
            return None
        self._heard = trio.current_time()
        return self._pass_on(self._buffer[0], self._buffer[1:size], most)

    def _pass_on(self, kind: int, payload: memoryview, most: int) -> Outgoing | None:
        match kind:
            case Kind.DATA:
                self._rest = (payload[0], int.from_bytes(payload[1:9], "little"), payload[DATA_AT - 1 :])
                self._touch()
                return self._send_rest(most)
            case Kind.PING:
                # It goes on; and may be quiet for so much longer.
                self._heard += int.from_bytes(payload[:4], "little")
                self._channel.wake()
                return None
            case Kind.REJECT:
                self._done = True
                self._fail(self._files.error(payload))
                return None
            case Kind.ACCEPT:
                self._accepted = True
                if self._takes:
                    # Who does not wait for it begins at 0; the process says when that is wrong.
                    self._next = self._next or int(unpack_payload(payload).get("offset", 0))
                accept = self._channel.relayed(Kind.ACCEPT, payload)
                owed, self._owed = self._owed, 0
                self._channel.consumed(owed)
                return accept
            case Kind.END:
                self._done = True
                if self._accepted:
                    return self._channel.relayed(Kind.END, payload)
                # Both words in one: what is posted as a control frame would go before or behind what is pulled.
                first = self._channel.relayed(Kind.ACCEPT, _EMPTY_MAP).head
                return Outgoing(first + self._channel.relayed(Kind.END, payload).head)
            case _:
                return self._channel.relayed(Kind(kind), payload)

    def _send_rest(self, most: int) -> Outgoing | None:
        assert self._rest is not None
        stream, offset, data = self._rest
        size = min(most, len(data), self._channel.credit.available)
        if not size:
            return None
        self._rest = (stream, offset + size, data[size:]) if size < len(data) else None
        return self._channel.data(stream, offset, data[:size])

    def closed(self) -> None:
        # Still able to send, so it was not the channel that ended.
        self._lost = self._channel.is_open
        self._scope.cancel()

    # ------------------------------------------------------------------------------------------ the process's side

    def _give(self, head: bytes, data: bytes | memoryview) -> None:
        """A message for the process. Data that it has taken may be followed by more."""
        if not self._queue and self._agent is not None:
            try:
                self._agent.line.sendmsg((head, data))
            except BlockingIOError:
                pass
            except OSError:
                return  # its end is read where its last words are
            else:
                self._passed(len(data))
                return
        self._queue.append(head + bytes(data))
        self._queued.set()

    def _passed(self, size: int) -> None:
        if self._accepted:
            self._channel.consumed(size)
        else:
            self._owed += size

    async def run(self) -> dict[str, Any]:
        """Until it is done, one way or the other. Raises what went wrong."""
        files = self._files
        files.under_way.add(self)
        try:
            with self._scope:
                async with files.agents.turn(files.connection_of(self._channel), watches=self._watches):
                    await self._with_agent()
        finally:
            files.under_way.discard(self)
        if self._failure is not None:
            raise self._failure
        return {}

    async def _with_agent(self) -> None:
        files = self._files
        agent = await self._asked_one()
        hangs = False
        try:
            self._heard = trio.current_time()
            self._agent = agent
            async with trio.open_nursery() as nursery:
                if self._takes:
                    nursery.start_soon(self._push, agent)
                nursery.start_soon(self._see_that_it_answers)
                await self._listen(agent)
        except OSError:
            self._broken = True
            self._fail(self._why_it_ended())
        finally:
            hangs = isinstance(self._failure, TimedOut)
            self._agent = None
            if not self._done and not self._scope.cancel_called:
                # Ended from around it: its connection has gone, which it is told of only behind this.
                self._lost = True
            if self._keeps and not self._done and (self._lost or self._broken or hangs):
                files.parts.leave(self.identity, self.ask)
            if self._done and not hangs:
                files.agents.give_back(agent)
            elif self._lost or hangs:
                files.agents.put_away(agent, files.shown(self.ask), hangs=hangs)
            else:
                # Nobody comes back for what it has.
                files.agents.dismiss(agent, bytes((Kind.RESET,)), files.shown(self.ask))

    async def _asked_one(self) -> Agent:
        """A process that has the request. One that was ended while it had nothing to do concerns no client."""
        request = bytes((Kind.OPEN,)) + marshal.dumps(self.ask)
        while True:
            agent = await self._files.agents.get(self.identity, watches=self._watches)
            try:
                agent.line.send(request)
            except BrokenPipeError:
                self._files.agents.put_away(agent)
                continue
            except BaseException:
                self._files.agents.put_away(agent)
                raise
            return agent

    async def _listen(self, agent: Agent) -> None:
        while True:
            await trio.lowlevel.wait_readable(agent.line)
            self._dry = trio.Event()
            self._channel.wake()
            await self._dry.wait()

    async def _push(self, agent: Agent) -> None:
        """What did not go at once."""
        while True:
            while self._queue:
                try:
                    agent.line.send(self._queue[0])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(agent.line)
                    continue
                except OSError:
                    return  # its end is read where its last words are
                message = self._queue.popleft()
                if message[0] == Kind.DATA:
                    self._passed(len(message) - DATA_AT)
            self._queued = trio.Event()
            await self._queued.wait()

    async def _see_that_it_answers(self) -> None:
        """A file system that does not answer: nobody waits for it for ever."""
        limit = self._files.timeout
        while True:
            owes = self._sent_all or bool(self._queue) or not self._accepted
            waits_for_credit = self._rest is not None or not self._dry.is_set()
            if not owes or waits_for_credit or (self._watches and self._accepted):
                self._heard = max(self._heard, trio.current_time())
            left = self._heard + limit - trio.current_time()
            if left <= 0:
                where = self._files.shown(self.ask)
                self._fail(
                    TimedOut(
                        f"the file system of {where} has not answered {self.ask['op']} for {limit:g} s (files.timeout);"
                        " look at its mount, or its server",
                        path=where,
                    )
                )
                return
            await trio.sleep(min(left, limit / 4))

    def _fail(self, error: GuestdError) -> None:
        self._failure = self._failure or error
        self._scope.cancel()

    def stop(self, error: GuestdError, *, keep: bool) -> None:
        """From outside: it is not to go on. `keep`: what there is of an upload is for who comes back."""
        self._lost = keep and self._keeps
        self._fail(error)

    def _why_it_ended(self) -> GuestdError:
        if self._files.stopping:
            return ShuttingDown("the session is stopping: the transfer was given up")
        return FileFailed(
            f"the process that did {self.ask['op']} of {self._files.shown(self.ask)} has ended in the middle of it: it"
            " was killed, or failed, and then guestd's log says more; ask again",
        )

    def _touch(self) -> None:
        now = trio.current_time()
        if now - self._touched >= _TOUCH and not self._watches:
            self._touched = now
            self._files.touch(self.ask)
