"""A shell of guestd's on the bench's little client: keys typed one by one, and what its terminal shows."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from bench.measure import SubjectFailed
from guestd.wire.frames import Kind, read_data
from guestd.wire.messages import unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.client import Connection
    from guestd.wire.frames import Frame

INPUT, TERMINAL, SCREEN = 0, 3, 4
#: What a channel ends with.
_LAST = frozenset({Kind.END, Kind.REJECT, Kind.RESET})


class Shell:
    """One channel that shows a shell: a new one with `argv`, else the one whose `id` is among the fields, from `start`
    on.

    Frames of other channels that come meanwhile are taken too: `passed` counts their bytes, and `withhold` keeps their
    credit back, which holds them up.
    """

    def __init__(
        self, connection: Connection, argv: list[str] | None = None, *, start: object = None, **fields: object
    ) -> None:
        self.connection = connection
        self.id = str(fields.get("id") or f"bench-{os.urandom(6).hex()}")
        program = {} if argv is None else {"argv": argv, "cwd": "/"}
        place = {} if start is None else {"from": start}
        request = {"op": "shell", "client": "bench", **program, **place, **fields, "id": self.id}
        self._channel = connection.open(request)
        self._typed = 0
        self.passed = 0
        self.accepted: dict[str, Any] = {}
        #: The last event of each kind.
        self.events: dict[str, dict[str, Any]] = {}

    def echo(self, key: bytes, *, withhold: bool = False) -> float:
        """Type one key; how many milliseconds until its echo is here."""
        begin = time.perf_counter()
        self.connection.send(self._channel, INPUT, self._typed, key)
        self._typed += len(key)
        while key not in self._shown(withhold=withhold):
            continue
        return (time.perf_counter() - begin) * 1e3

    def read_until(self, marker: bytes) -> None:
        """Read on until that text was shown."""
        kept = b""
        while marker not in kept:
            kept = kept[-len(marker) :] + self._shown()

    def read(self, size: int, stream: int = TERMINAL) -> None:
        """Read so many bytes of that stream."""
        left = size
        while left > 0:
            frame = self._next()
            if frame.kind is Kind.DATA and read_data(frame.payload).stream == stream:
                left -= self.connection.pass_on(frame)

    def restored(self) -> dict[str, Any]:
        """Read the picture that an attachment begins with, to its last byte; the event that announced it."""
        while "restore" not in self.events:
            self._next()
        event = self.events.pop("restore")
        if not event["bytes"]:
            raise SubjectFailed("guestd has no picture of this screen")
        self.read(event["bytes"], SCREEN)
        self.connection.expect(self._channel, TERMINAL, event["offset"])
        return event

    def pass_for(self, seconds: float) -> None:
        """Take what other channels send, for so long. They must never stop sending."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self._other(self.connection.frame(), withhold=False)

    def read_to_end(self) -> int:
        """Read on to the END with status 0. Returns how many bytes were shown."""
        size = 0
        while (frame := self._own_frame()).kind not in _LAST:
            if frame.kind is Kind.DATA:
                size += self.connection.pass_on(frame)
        self.connection.finish(frame)
        return size

    def leave(self) -> None:
        """Let go of it; the shell goes on."""
        self.connection.leave(self._channel)

    def kill(self) -> None:
        """End it, and see its end."""
        asked = self.connection.open({"op": "kill", "id": self.id})
        waiting = {self._channel, asked}
        while waiting:
            frame = self.connection.frame()
            if frame.channel not in waiting:
                self._other(frame, withhold=False)
            elif frame.kind in _LAST:
                self.connection.finish(frame, status=None)
                waiting.remove(frame.channel)
            elif frame.kind is Kind.DATA:
                self.connection.pass_on(frame)

    def _shown(self, *, withhold: bool = False) -> bytes:
        while (frame := self._next(withhold=withhold)).kind is not Kind.DATA:
            continue
        shown = bytes(read_data(frame.payload).data)
        self.connection.pass_on(frame)
        return shown

    def _next(self, *, withhold: bool = False) -> Frame:
        frame = self._own_frame(withhold=withhold)
        if frame.kind in _LAST:
            fields = self.connection.finish(frame, status=None)
            raise SubjectFailed(f"the shell has ended too soon: {fields}")
        return frame

    def _own_frame(self, *, withhold: bool = False) -> Frame:
        while (frame := self.connection.frame()).channel != self._channel:
            self._other(frame, withhold=withhold)
        if frame.kind is Kind.ACCEPT:
            self.accepted = unpack(frame)
        elif frame.kind is Kind.EVENT:
            event = unpack(frame)
            self.events[event["event"]] = event
            if event["event"] == "gap":
                self.connection.expect(self._channel, event["stream"], event["to"])
        return frame

    def _other(self, frame: Frame, *, withhold: bool) -> None:
        if frame.kind is Kind.DATA:
            self.passed += self.connection.pass_on(frame, withhold=withhold)
        elif frame.kind in _LAST:
            self.connection.finish(frame, status=None)
            raise SubjectFailed("a command or shell that was to go on has ended")


def start_detached(connection: Connection, argv: list[str], **fields: object) -> Mapping[str, Any]:
    """Start a shell that nobody is attached to; what guestd says of it."""
    shell_id = f"bench-{os.urandom(6).hex()}"
    request = {"op": "shell", "id": shell_id, "argv": argv, "cwd": "/", "detach": True, **fields}
    channel = connection.open(request)
    while (frame := connection.frame()).channel != channel or frame.kind is not Kind.ACCEPT:
        if frame.channel == channel and frame.kind in _LAST:
            connection.finish(frame)
    accepted = unpack(frame)
    while (frame := connection.frame()).channel != channel:
        continue
    connection.finish(frame, status=None)
    return accepted
