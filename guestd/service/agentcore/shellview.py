"""One client at a shell, over a WebSocket.

Promises. One client of this surface sits at a shell at a time, and owns it: the next one takes it over. A client that
comes back is shown what it has not had, as far as it is kept and not more than `agentcore.replay`; one that takes its
output too slowly is sent away, and never shown output with a hole in it. A shell that its client leaves goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed

from guestd import observe
from guestd.errors import LimitReached
from guestd.process.terminal import Size
from guestd.service.agentcore import channels
from guestd.service.writer import COALESCE_BYTES, COALESCE_TIME
from guestd.session.attachment import Gap, stop_viewing
from guestd.session.terminal import OWNER
from guestd.session.terminal_recording import TERMINAL
from guestd.wire.result import EndedBy, Outcome

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

    from guestd.service.agentcore.surface import Surface
    from guestd.session.attachment import Attachment
    from guestd.session.keyboard import Typist
    from guestd.session.shell import ShellJob
    from guestd.session.terminal import Terminal

#: What is typed waits for the program up to here; then nothing more is read from the client.
_TYPED_MAX = 512 * 1024
#: How often a client is asked up to where it has everything.
_ASK_EVERY = 1.0
#: For the last messages, and the other side's word that it has them.
_CLOSE_PATIENCE = 2.0
_GONE = 1.0


class ShellView:
    """One client at a shell. It is a seat at the terminal."""

    role = OWNER
    client: str | None = None

    def __init__(
        self, surface: Surface, job: ShellJob, websocket: WebSocketConnection, peer: str, *, created: bool
    ) -> None:
        self.name = peer
        self.since = surface.session.clock()[0]
        self._surface = surface
        self._settings = surface.session.settings
        self._job = job
        self._websocket = websocket
        self._created = created
        self._attachment: Attachment | None = None
        self._typist: Typist | None = None
        self._typed = 0
        self._room = trio.Event()
        self._news = trio.Event()
        self._attached = trio.Event()
        #: What it is closed with, once that is decided: code, reason, and last messages.
        self._end: tuple[int, str, tuple[bytes, ...]] | None = None
        self._sending = trio.CancelScope()
        self._echoes: list[bytes] = []
        self._wants_end = False
        #: Up to where this client has it all.
        self.had = 0
        self._sent = 0
        self._last_sent = 0.0

    # -------------------------------------------------------------------------------------- as a seat

    def role_changed(self, by: str) -> None:
        """Somebody has taken the window's size over; typing goes on."""

    def size_changed(self, size: Size) -> None: ...

    def input_changed(self, *, blocked: bool, waiting: int) -> None: ...

    # --------------------------------------------------------------------------------------- its life

    async def run(self, *, everything: bool) -> None:
        """Until the shell has ended, the client has left, or another one has come."""
        surface, job = self._surface, self._job
        before = surface.seats.get(job.id)
        if before is not None:
            surface.places[job.id] = before.had
            before.close(channels.TAKEN_OVER, "another client has taken this shell over")
        surface.seats[job.id] = self
        observe.began("attachment", self, job=job.id, job_of=job, who=self.name, role=self.role)
        job.start_settled.then(self._wake)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                if await self._begin(everything=everything):
                    nursery.start_soon(self._ask_what_it_had)
                    nursery.start_soon(self._watch_time)
                await self._write()
                nursery.cancel_scope.cancel()
        finally:
            self._leave()

    def _leave(self) -> None:
        stop_viewing(self, self._attachment)
        if self._job.terminal is not None:
            self._job.terminal.leave(self)
        if self._surface.seats.get(self._job.id) is self:
            del self._surface.seats[self._job.id]
            closed = self._websocket.closed
            if closed is not None and closed.code in {channels.NORMAL, channels.GOING_AWAY, channels.POLICY}:
                # Closed in order by both sides, so all that was sent has arrived.
                self.had = self._sent
            if self._job.result is None:
                self._surface.places[self._job.id] = self.had

    def close(self, code: int, reason: str, *last: bytes) -> None:
        """End this connection. The first reason counts."""
        if self._end is None:
            self._end = (code, reason, last)
            # A client that takes nothing hears no reason either.
            self._sending.deadline = min(self._sending.deadline, trio.current_time() + _GONE)
            self._room.set()
            self._wake()

    def guestd_leaves(self) -> None:
        """Guestd goes: for good, or to make room for another one, to which the client comes back."""
        if self._job.result is None:
            self.close(channels.GOING_AWAY, "guestd is being replaced; come back at once")

    async def is_there(self, patience: float) -> bool:
        with trio.move_on_after(patience):
            try:
                await self._websocket.ping()
            except ConnectionClosed:
                return False
            return True
        return False

    def _wake(self) -> None:
        self._news.set()

    # ----------------------------------------------------------------------------------------- output

    async def _begin(self, *, everything: bool) -> bool:
        """Attach, once the shell runs; the first message says what will be shown."""
        while not self._job.start_settled.happened and self._end is None:
            await self._wait()
        terminal, result = self._job.terminal, self._job.result
        never_ran = result is not None and result.outcome is Outcome.NOT_STARTED
        if self._end is not None or terminal is None or never_ran:
            return False
        recording = terminal.recording
        newest = max(recording.start, recording.end - self._settings.agentcore.replay)
        had = 0 if everything else min(self._surface.places.pop(self._job.id, 0), recording.end)
        at = max(had, newest)
        self._sent = self.had = at
        self._attachment = self._job.attach({TERMINAL: at}, self._wake, holds=True)
        terminal.sit(self)
        if terminal.keyboard is not None:
            self._typist = terminal.keyboard.typist(None)
        first = channels.confirmation(self._job.id, reconnected=not self._created, dropped=at - had)
        self._echoes.insert(0, first)
        self._attached.set()
        return True

    async def _wait(self) -> None:
        """For more; and little output in quick succession is sent together."""
        await self._news.wait()
        attachment = self._attachment
        if attachment is not None and attachment.pending < COALESCE_BYTES and self._job.result is None:
            await trio.sleep_until(self._last_sent + COALESCE_TIME)
        self._news = trio.Event()

    async def _write(self) -> None:
        """Only this task sends messages: one that is cancelled in its middle leaves half of it on the wire."""
        while self._end is None and self._websocket.closed is None:
            message = self._next()
            if message is None:
                await self._wait()
                continue
            if not await self._send(message):
                return
            if self._attachment is not None:
                self._sent = self._attachment.position(TERMINAL)
        if self._end is None or self._websocket.closed is not None:
            return
        code, reason, last = self._end
        for message in last:
            if not await self._send(message):
                return
        with trio.move_on_after(_CLOSE_PATIENCE):
            await self._websocket.aclose(code, reason)

    async def _send(self, message: bytes) -> bool:
        stall = self._settings.limits.write_stall if self._end is None else _GONE
        with trio.move_on_after(stall) as self._sending:
            try:
                await self._websocket.send_message(message)
            except ConnectionClosed:
                return False
            self._last_sent = trio.current_time()
            return True
        return False

    def _next(self) -> bytes | None:
        if self._echoes:
            return self._echoes.pop(0)
        attachment = self._attachment
        if attachment is None or attachment.finished:
            if self._job.result is not None:
                self._shell_ended()
            return None
        pending = attachment.pending
        if not pending:
            return None
        piece = attachment.take(channels.OUTPUT_MAX)
        if isinstance(piece, Gap):
            # It comes back and is told how much it has missed; bytes with a hole in them would ruin its screen.
            self.close(channels.POLICY, "this client takes its output too slowly")
            return None
        return None if piece is None else channels.message(channels.STDOUT, piece.data)

    def _shell_ended(self) -> None:
        result = self._job.result
        assert result is not None
        last = channels.ending(result)
        if self._wants_end:
            self._is_gone()
        elif self._attachment is None:
            # The client waits for this one before any other.
            last = channels.failure(result.message or "the shell could not be started")
        if result.outcome in {Outcome.NOT_STARTED, Outcome.UNKNOWN}:
            self.close(channels.FAILURE, "the shell could not be started or was lost", last)
        elif result.ended_by is EndedBy.STOP:
            self.close(channels.GOING_AWAY, "the session has stopped", last, channels.message(channels.CLOSE))
        else:
            self.close(channels.NORMAL, "the shell has ended", last)

    async def _ask_what_it_had(self) -> None:
        """A pong says that all before its ping has arrived: where to go on for a client that is lost."""
        try:
            while True:
                await trio.sleep(_ASK_EVERY)
                if self._sent > self.had:
                    sent = self._sent
                    await self._websocket.ping()
                    self.had = sent
        except ConnectionClosed:
            self._wake()

    async def _watch_time(self) -> None:
        limit = self._settings.agentcore.connection_lifetime
        if limit:
            await trio.sleep(limit)
            self.close(channels.POLICY, f"a connection lasts {limit:g} s at most; the shell goes on")

    # ------------------------------------------------------------------------------------------ input

    async def _read(self) -> None:
        allowance = channels.Allowance(self._settings.agentcore.frames, trio.current_time())
        texts = 0
        try:
            while True:
                message = await self._websocket.get_message()
                if not allowance.take(trio.current_time()):
                    limit = self._settings.agentcore.frames
                    self.close(channels.POLICY, f"more than {limit} frames a second (agentcore.frames)")
                    return
                if isinstance(message, str):
                    texts += 1
                    if texts == channels.TEXTS_MAX:
                        self.close(channels.UNSUPPORTED, "text messages: a shell takes binary ones")
                        return
                    continue
                texts = 0
                if message:
                    await self._take(message[0], memoryview(message)[1:])
        except ConnectionClosed:
            self._wake()

    async def _take(self, channel: int, payload: memoryview) -> None:
        match channel:
            case channels.STDIN:
                await self._type(payload)
            case channels.RESIZE:
                self._resize(bytes(payload))
            case channels.HEARTBEAT:
                self._say(channels.message(channels.HEARTBEAT, payload))
            case channels.CLOSE:
                await self._end_shell()
            case _:
                pass  # of a newer protocol

    def _say(self, message: bytes) -> None:
        self._echoes.append(message)
        self._wake()

    async def _type(self, data: memoryview) -> None:
        terminal = await self._running()
        if terminal is None or terminal.keyboard is None or self._typist is None:
            return
        while self._typed > _TYPED_MAX:
            self._room = trio.Event()
            await self._room.wait()
            if self._end is not None:
                return
        terminal.has_typed()
        self._last_sent = 0.0
        self._typed += len(data)
        try:
            terminal.keyboard.type(self._typist, self._typist.offset, data, self._consumed)
        except LimitReached as error:
            # Others have typed ahead as well. What is lost is said.
            self._typed -= len(data)
            self._say(channels.diagnostic(f"{len(data)} bytes were not typed: {error.message}"))

    def _consumed(self, size: int) -> None:
        self._typed -= size
        if self._typed <= _TYPED_MAX:
            self._room.set()

    async def _running(self) -> Terminal | None:
        """The terminal, once this client is attached: what is sent before waits here."""
        await self._attached.wait()
        return self._job.terminal

    def _resize(self, payload: bytes) -> None:
        wanted = channels.read_resize(payload)
        if wanted is None:
            self._say(channels.diagnostic('a size is {"width":COLUMNS,"height":ROWS}'))
        elif self._job.terminal is not None and self._job.terminal.owner in {self, None}:
            # 0 is a client without a terminal: the size stays as it is.
            self._job.terminal.resize(Size(wanted.columns, wanted.rows), self)

    async def _end_shell(self) -> None:
        """The client wants it gone for good, and hears when it is."""
        self._wants_end = True
        self._job.end(EndedBy.KILL)
        with trio.move_on_after(self._job.terms.grace + _GONE):
            await self._job.ended.wait()
        self._is_gone()

    def _is_gone(self) -> None:
        self.close(channels.NORMAL, "the shell was ended", channels.message(channels.CLOSE))
