"""The least client of the native protocol: blocking, one thread, on the frames of guestd.wire.

It exists so that the figures are the supervisor's. It does what the protocol demands of a client,
identifiers and credit included, and checks that results are exact and bytes are in order; it has no event
loop and no other comfort.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Self

from bench.measure import SubjectFailed
from guestd.wire.channel import Window
from guestd.wire.frames import FRAME_LIMIT, PREFACE, Decoder, Frame, Kind, data_head, encode, read_data
from guestd.wire.hello import Hello
from guestd.wire.messages import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Credit for each channel. Large enough that bulk output never waits for a CREDIT that is on its way.
WINDOW = 4 * 1024 * 1024


class Connection:
    """One connection. `run` does one command; `open`, `frame` and `pass_on` are its parts, for a row of
    its own.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._decoder = Decoder(limit=FRAME_LIMIT)
        self._windows: dict[int, Window] = {}
        # By channel and stream, where the next byte belongs.
        self._offsets: dict[tuple[int, int], int] = {}
        self._withheld: dict[int, int] = {}
        self._last_channel = -1
        self._commands = 0
        self._ids = os.urandom(6).hex()
        hello = Hello(agent="guestd-bench", window=WINDOW)
        self._socket.sendall(PREFACE + encode(Kind.HELLO, 0, pack(hello.to_map())))
        self.hello = Hello.from_map(unpack(self.frame()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open(self, request: Mapping[str, object]) -> int:
        """Send OPEN; the channel's number."""
        self._last_channel += 2
        channel = self._last_channel
        self._windows[channel] = Window(WINDOW)
        self._socket.sendall(encode(Kind.OPEN, channel, pack(request)))
        return channel

    def frame(self) -> Frame:
        """The next frame, of any channel. Its payload is good until the next call."""
        while (frame := self._decoder.next()) is None:
            received = self._socket.recv_into(self._decoder.writable())
            if not received:
                raise SubjectFailed("guestd closed the connection")
            self._decoder.wrote(received)
        if frame.kind is Kind.GOAWAY:
            raise SubjectFailed(f"guestd said goodbye: {unpack(frame)}")
        return frame

    def pass_on(self, frame: Frame, *, withhold: bool = False) -> int:
        """Take a DATA frame: its bytes must follow those before. Returns how many they are.

        `withhold` keeps the credit for them back until `release`.
        """
        data = read_data(frame.payload)
        size = len(data.data)
        key = frame.channel, data.stream
        expected = self._offsets.get(key, 0)
        if data.offset != expected:
            raise SubjectFailed(f"a frame at offset {data.offset} came at {expected}")
        self._offsets[key] = expected + size
        window = self._windows[frame.channel]
        window.received(size)
        if grant := window.consumed(size):
            self._withheld[frame.channel] = self._withheld.get(frame.channel, 0) + grant
        if not withhold:
            self.release(frame.channel)
        return size

    def outstanding(self, channel: int) -> int:
        """How many bytes guestd may still send on that channel."""
        return self._windows[channel]._left - self._withheld.get(channel, 0)

    def release(self, channel: int) -> None:
        """Send what credit is due to that channel."""
        if grant := self._withheld.pop(channel, 0):
            self._socket.sendall(encode(Kind.CREDIT, channel, pack({"bytes": grant})))

    def expect(self, channel: int, stream: int, offset: int) -> None:
        """The next byte of that stream is the one at `offset`."""
        self._offsets[channel, stream] = offset

    def send(self, channel: int, stream: int, offset: int, data: bytes) -> None:
        """Send input. Nobody here sends as much on one channel as the credit that a hello gives."""
        self._socket.sendall(data_head(channel, stream, offset, len(data)) + data)

    def end(self, channel: int, offset: int) -> None:
        """Say that this was all the input."""
        self._socket.sendall(encode(Kind.EVENT, channel, pack({"event": "eof", "offset": offset})))

    def leave(self, channel: int) -> None:
        """Give up a channel, and wait until guestd has done the same."""
        self._socket.sendall(encode(Kind.RESET, channel, pack({})))
        while (frame := self.frame()).channel != channel or frame.kind not in {Kind.RESET, Kind.END}:
            continue
        self._forget(channel)

    def command(self, argv: list[str], **fields: object) -> dict[str, object]:
        """A request that starts something, with an id of its own as every careful client sends it."""
        self._commands += 1
        return {"op": "exec", "id": f"{self._ids}-{self._commands}", "argv": argv, "stdin": "none", **fields}

    def run(self, request: Mapping[str, object]) -> int:
        """One command to its end with status 0. Returns how many bytes of stdout came."""
        channel = self.open(request)
        size = 0
        while True:
            frame = self.frame()
            if frame.channel != channel:
                continue
            if frame.kind is Kind.DATA:
                size += self.pass_on(frame)
            elif frame.kind in {Kind.END, Kind.REJECT, Kind.RESET}:
                self.finish(frame)
                return size

    def ping(self) -> None:
        """A word and its echo, which the loop gives as soon as it has a turn."""
        self._socket.sendall(encode(Kind.PING, 0, b"bench"))
        while self.frame().kind is not Kind.PONG:
            continue

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """An operation without data: its result."""
        channel = self.open(request)
        while (frame := self.frame()).channel != channel or frame.kind is Kind.ACCEPT:
            continue
        return self.finish(frame, status=None)

    def finish(self, frame: Frame, *, status: int | None = 0) -> dict[str, Any]:
        """The last frame of a channel: END, with `status` where one is demanded."""
        self._forget(frame.channel)
        fields = unpack(frame)
        if frame.kind is not Kind.END or (status is not None and fields.get("status") != status):
            raise SubjectFailed(f"guestd answered {frame.kind.name} {fields}")
        return fields

    def _forget(self, channel: int) -> None:
        del self._windows[channel]
        self._withheld.pop(channel, None)
        for stream in [stream for number, stream in self._offsets if number == channel]:
            del self._offsets[channel, stream]
