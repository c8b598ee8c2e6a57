"""The file process's end of the line to the supervisor: one packet, one message, in order both ways.

A message is a frame's kind and its payload, as docs/protocol.md has them, so that the supervisor passes on what comes
without a look inside. Only requests and the events of the client come marshalled, since they are the supervisor's own
words.
"""

from __future__ import annotations

import _socket
import marshal  # the supervisor's own words: nobody else holds the other end
import os
import struct
import time

from guestd.storage.file_packing import pack
from guestd.tree.holes import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Frames by their numbers on the wire.
PING, OPEN, ACCEPT, REJECT, DATA, EVENT, END, RESET = 0x03, 0x10, 0x11, 0x12, 0x13, 0x14, 0x16, 0x17
#: The most that one message holds: a chunk and what is before it.
MESSAGE_MAX = CHUNK + 64
#: Where data begins in a message: kind, stream, offset.
DATA_AT = 10
_DATA_HEAD = struct.Struct("<BBQ")
#: How often it is said that something long goes on.
_ALIVE = 0.5
#: The `patience` for the end of a write: it may take so long while a disk takes what memory has gathered.
SYNC_PATIENCE = 600


class Refused(Exception):
    """What was asked cannot be done; told by code and message, as the supervisor's own errors are."""

    def __init__(self, code: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Gone(BaseException):
    """Nobody wants the answer any more. `kept`: the connection was lost, and whoever asked may come back."""

    def __init__(self, *, kept: bool) -> None:
        self.kept = kept


class Line:
    """See the module. One task at a time."""

    def __init__(self, fd: int) -> None:
        self.socket = _socket.socket(fileno=fd)
        self._buffer = bytearray(MESSAGE_MAX)
        self._view = memoryview(self._buffer)
        self._spoke = 0.0

    # ------------------------------------------------------------------------------------------ to the supervisor

    def say(self, kind: int, fields: dict[str, Any]) -> None:
        self._send(bytes((kind,)) + pack(fields))

    def room(self) -> memoryview:
        """A message for data, to be filled from DATA_AT on and given to `data`."""
        return memoryview(bytearray(MESSAGE_MAX))

    def data(self, room: memoryview, stream: int, offset: int, size: int) -> None:
        """Send what was filled in."""
        _DATA_HEAD.pack_into(room, 0, DATA, stream, offset)
        self._send(room[: DATA_AT + size])

    def bytes(self, stream: int, offset: int, data: bytes) -> None:
        """Send data that lies elsewhere."""
        self._send(_DATA_HEAD.pack(DATA, stream, offset), data)

    def alive(self) -> None:
        """It goes on. Called often; said now and then."""
        if time.monotonic() - self._spoke > _ALIVE:
            self.patience(0)

    def patience(self, seconds: int) -> None:
        """There may be no further word for so much longer than usual."""
        self._send(bytes((PING,)) + seconds.to_bytes(4, "little"))

    def _send(self, *parts: bytes | memoryview) -> None:
        try:
            self.socket.sendmsg(parts)
        except OSError:
            # A reset that came before tells that nobody will come back for it.
            raise Gone(kept=not self._was_reset()) from None
        self._spoke = time.monotonic()

    def _was_reset(self) -> bool:
        """Did the supervisor say so before it closed? What it has not read itself makes its end an error, which
        overtakes on this kind of socket what was said before; it is told once.
        """
        while True:
            try:
                size = self.socket.recv_into(self._view, 0, _socket.MSG_DONTWAIT)
            except ConnectionResetError:
                continue
            except OSError:
                return False
            if not size:
                return False
            if self._buffer[0] == RESET:
                return True

    # ---------------------------------------------------------------------------------------- from the supervisor

    def receive(self) -> tuple[int, memoryview]:
        """The next message: its kind and its payload, which is good until the next call."""
        try:
            size = self.socket.recv_into(self._view)
        except OSError:
            raise Gone(kept=not self._was_reset()) from None
        if not size:
            raise Gone(kept=True)
        kind = self._buffer[0]
        if kind == RESET:
            raise Gone(kept=False)
        return kind, self._view[1:size]

    def next_request(self) -> dict[str, Any] | None:
        """The next thing to do; None when nobody is there any more."""
        try:
            while True:
                kind, payload = self.receive()
                # Anything else was on its way to a request that is over.
                if kind == OPEN:
                    return read_message(payload)
        except Gone:
            return None


def read_message(payload: memoryview) -> dict[str, Any]:
    """A request, or an event of the client's, as the supervisor has read it."""
    found: dict[str, Any] = marshal.loads(payload)  # noqa: S302  see its import
    return found


def refusal(error: OSError, path: bytes) -> Refused:
    """The kernel's word about a path, for a person."""
    number = error.errno or 0
    name = os.strerror(number) if number else str(error)
    shown = path.decode("utf-8", "surrogateescape")
    code = {2: "not_found", 20: "not_found", 17: "conflict"}.get(number, "file")
    what = {
        1: "this is not permitted to this user",
        2: "no such file or directory",
        13: "this user may not",
        17: "it exists already",
        18: "it, or a symlink on the way, leads out of the root, or to another file system",
        20: "something on the way to it is no directory",
        28: "no space is left on its file system",
        30: "its file system is read-only",
        39: "the directory is not empty; `recursive` removes what is in it too",
        40: "too many symlinks on the way to it",
        122: "the quota is used up",
    }.get(number, name)
    if error.filename and number in {5, 28, 30, 122} and os.fsencode(str(error.filename)) != path:
        what += f" (at {os.fsdecode(error.filename)!r})"
    import errno

    short = errno.errorcode.get(number, str(number))
    return Refused(code, f"{shown!r}: {what} ({short})", path=shown, errno=number, errno_name=short)
