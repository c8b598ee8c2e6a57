"""A job kept attached across lost connections. One task holds a connection; when it is lost, it waits, connects again,
and attaches where the output had come to. Output, input and signals go through the same object the whole time.

- Input is kept until the guest has passed it on, and sent again from where the guest says it is.
- Signals are sent once. One that is given while there is no connection waits for the next.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import trio

from guestd.client.attachment import Attachment, ItemT
from guestd.client.backoff import Notice
from guestd.client.channel import again
from guestd.errors import ConnectionLost, GuestdError, ShuttingDown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from guestd.client.backoff import Backoff
    from guestd.client.client import Client
    from guestd.wire.result import Result

JobT = TypeVar("JobT", bound=Attachment[Any])

#: What another attempt may cure.
_PASSING = (ConnectionLost, Unavailable, ShuttingDown)
#: Reasons for the end of a connection that it may not: the next would end in the same way.
_LASTING = frozenset({"protocol", "version", "unauthorized", "forbidden", "bad_request"})
#: A connection that lasted this long, or brought anything, was worth having: waiting begins anew after it.
_WORTHWHILE = 10.0
#: Input that is kept to be sent again: this, or the guest's window if that is more. Less could wait for
#: credit that only comes when more has been sent.
_INPUT_KEPT = 256 * 1024
#: How much of it is sent in one go: between two steps what has been passed on is forgotten.
_INPUT_STEP = 64 * 1024


class Final(ConnectionLost):
    """A loss that no further attempt can cure."""


def is_passing(error: GuestdError) -> bool:
    """May another connection cure it?"""
    return (
        isinstance(error, _PASSING)
        and not isinstance(error, Final)
        and error.details.get("reason") not in _LASTING
    )


class Input:
    """Bytes given, and not yet known to be passed on. `start` is the offset of the first that is kept."""

    def __init__(self) -> None:
        self.start = 0
        self.kept = bytearray()
        self.limit = _INPUT_KEPT
        self.ended = False

    @property
    def end(self) -> int:
        return self.start + len(self.kept)

    @property
    def room(self) -> int:
        return max(0, self.limit - len(self.kept))

    def forget(self, offset: int) -> bool:
        """The guest has passed on everything before `offset`. True when that made room."""
        size = min(max(offset - self.start, 0), len(self.kept))
        del self.kept[:size]
        self.start += size
        return size > 0

    def since(self, offset: int, most: int) -> bytes:
        at = offset - self.start
        return bytes(self.kept[at : at + most])


class Keeper(Generic[JobT, ItemT]):
    """See the module. Used like the attachment that it keeps."""

    def __init__(
        self,
        dial: Callable[[], AbstractAsyncContextManager[Client]],
        id: str,
        *,
        types: bool,
        give_up: float | None,
        backoff: Backoff,
        notice: Callable[[Notice], None],
    ) -> None:
        self.id = id
        #: The job as it is attached now, or was last.
        self.job: JobT | None = None
        self._dial = dial
        # Input is passed on.
        self._types = types
        self._give_up = math.inf if give_up is None else give_up
        self._backoff = backoff
        self._notice = notice
        self._client: Client | None = None
        self._guest: dict[str, Any] | None = None
        # Attachments whose output is not taken yet, oldest first; each goes on where the one before it ended.
        self._jobs: deque[JobT] = deque()
        self._input = Input()
        self._signals: deque[str] = deque()
        self._iterated = False
        self._discarding = False
        self._result: Result | None = None
        self._failure: GuestdError | None = None
        self._changed = trio.lowlevel.ParkingLot()
        # The attachment was given up on purpose, for another one over the same connection.
        self._anew = False

    async def _open(self, client: Client) -> JobT:
        """Attach, for the first time or again. What may be asked for twice is decided there."""
        raise NotImplementedError

    # -- for the user --

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def settled(self) -> bool:
        """The end has come, or it is known that none will."""
        return self._result is not None or self._failure is not None

    @property
    def behind(self) -> bool:
        """Something of an attachment, also of one that is lost, is not taken yet."""
        return len(self._jobs) > 0

    def __aiter__(self) -> Self:
        self._iterated = True
        return self

    async def __anext__(self) -> ItemT:
        while True:
            if self._jobs:
                try:
                    return cast("ItemT", await anext(aiter(self._jobs[0])))
                except _PASSING:
                    self._jobs.popleft()
                    self._changed.unpark_all()
                    continue
            if self._failure is not None:
                raise again(self._failure)
            await self._changed.park()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Give input. Waits while as much as the guest's window is under way."""
        rest = memoryview(data).cast("B")
        while rest:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            size = min(len(rest), self._input.room)
            if size == 0:
                await self._changed.park()
                continue
            self._input.kept += rest[:size]
            rest = rest[size:]
            self._wake()

    def offer(self, data: bytes) -> bool:
        """Give input if there is room for all of it now. False when there is not, or nobody takes it any more."""
        if self._input.ended or self.settled or len(data) > self._input.room:
            return False
        self._input.kept += data
        self._wake()
        return True

    async def close_stdin(self) -> None:
        """The command reads end of file after what was given."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._input.ended = True
        self._wake()

    async def flush(self) -> None:
        """Wait until what was given has left this side; without a connection there is nothing to wait for."""
        while self.job is not None and not self.job.over and self.job.input_offset < self._input.end:
            await self._changed.park()
        if self._client is not None:
            await self._client.drain()

    async def signal(self, name: str) -> None:
        """Send a signal now, or when there is a connection again."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._signals.append(name)
        self._send_signals()

    async def kill(self, *, grace: float | None = None) -> None:
        """End the job, politely and then not."""
        if self._client is None:
            raise ConnectionLost("there is no connection to kill it over")
        await self._client.kill(self.id, grace=grace)

    async def result(self) -> Result:
        """How it ended. Output is thrown away if nobody has begun to take it."""
        if not self._iterated:
            self._discarding = True
            for job in self._jobs:
                job.discard()
        while self._result is None:
            if self._failure is not None:
                raise again(self._failure)
            await self._changed.park()
        return self._result

    def _check_open(self) -> None:
        if self._input.ended:
            raise trio.ClosedResourceError("the input of this job was closed")
        if self._failure is not None:
            raise again(self._failure)
        if self._result is not None:
            raise trio.BrokenResourceError("the job has ended; nobody takes input any more")

    def _wake(self) -> None:
        self._changed.unpark_all()
        if self.job is not None:
            self.job.changed.unpark_all()

    def _send_signals(self) -> None:
        while self._signals and self.job is not None and not self.job.over:
            self.job.signal_now(self._signals.popleft())

    # -- the keeper --

    async def begin(self, tasks: trio.Nursery) -> None:
        """Connect and attach for the first time."""
        tasks.start_soon(self._keep, name=f"guestd client: keeps {self.id} attached")
        while self.job is None:
            if self._failure is not None:
                raise again(self._failure)
            await self._changed.park()

    async def _keep(self) -> None:
        """Hold a connection until the job's end has come, or giving up is right."""
        lost_at: float | None = None
        attempt = 0
        while True:
            began, before = trio.current_time(), self._progress()
            try:
                async with self._dial() as client:
                    job = await self._attach(client)
                    began = trio.current_time()
                    if lost_at is not None:
                        self._notice(Notice("again"))
                    while await self._serve(job):
                        job = await self._attach(client)
                    self._result = job.outcome
                    error = job.error or ConnectionLost("the connection ended")
            except GuestdError as caught:
                error = caught
            connected, self._client = self._client is not None, None
            now = trio.current_time()
            if connected and (self._progress() != before or now - began >= _WORTHWHILE):
                lost_at, attempt = None, 0
            lost_at = now if lost_at is None else lost_at
            left = lost_at + self._give_up - now
            if self._result is not None or left <= 0 or not self._is_passing(error):
                self._failure = None if self._result is not None else error
                self._wake()
                return
            delay = min(self._backoff.delay(attempt), left)
            self._notice(Notice("lost" if connected or attempt == 0 else "failed", error, delay))
            attempt += 1
            await trio.sleep(delay)
            await self._until_read()

    def _is_passing(self, error: GuestdError) -> bool:
        # Who never reached the guest can see at once what is wrong: only a loss is worth waiting out.
        return self._guest is not None and is_passing(error)

    def _progress(self) -> object:
        """What changes when a connection brings anything: output that came, input that went."""
        return (self.job.positions, self._input.start) if self.job is not None else None

    async def _until_read(self) -> None:
        """At most two attachments wait to be read: however often the line drops, memory stays bounded."""
        while len(self._jobs) > 1:
            await self._changed.park()

    async def _attach(self, client: Client) -> JobT:
        job = await self._open(client)
        self._guest = client.guest
        if self._discarding:
            job.discard()
            self._jobs.clear()
        self._input.limit = max(_INPUT_KEPT, client.hello.window)
        self._client = client
        self.job = job
        self._jobs.append(job)
        self._send_signals()
        self._wake()
        return job

    async def _serve(self, job: JobT) -> bool:
        """Pass on input until the job is over or the connection is. True when it is to be attached to anew."""
        given = self._input
        if self._types and job.input_offset < given.start:
            raise Final(
                f"the guest has lost input: it is at {job.input_offset}, after it had passed on {given.start}"
            )
        closed = not self._types
        while not job.over:
            if given.forget(job.input_taken):
                self._changed.unpark_all()
            chunk = b"" if closed else given.since(job.input_offset, _INPUT_STEP)
            try:
                if chunk:
                    await job.send(chunk)
                    self._changed.unpark_all()
                elif given.ended and not closed:
                    await job.close_stdin()
                    closed = True
                else:
                    await job.changed.park()
            except (ConnectionLost, trio.BrokenResourceError):
                await job.wait_over()
        self._changed.unpark_all()
        anew, self._anew = self._anew, False
        if anew:
            await self._until_read()
        return anew
