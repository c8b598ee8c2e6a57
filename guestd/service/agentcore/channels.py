"""Messages of a shell's WebSocket: one channel byte, then the payload. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple, cast

from guestd.wire.result import Outcome

if TYPE_CHECKING:
    from guestd.wire.result import Result

STDIN, STDOUT, STDERR, STATUS, RESIZE, HEARTBEAT, CLOSE = 0, 1, 2, 3, 4, 5, 0xFF
#: A message with its channel byte; a longer one ends the connection with TOO_BIG.
MESSAGE_MAX = 64 * 1024
OUTPUT_MAX = MESSAGE_MAX - 1
#: So many text messages in a row are no mistake any more.
TEXTS_MAX = 5

NORMAL, GOING_AWAY, UNSUPPORTED, POLICY, TOO_BIG, FAILURE, TAKEN_OVER = (
    1000, 1001, 1003, 1008, 1009, 1011, 4000,
)  # fmt: skip
_SIZE_MAX = 65535


def message(channel: int, payload: bytes | memoryview = b"") -> bytes:
    return b"".join((bytes((channel,)), payload))


def confirmation(shell_id: str, *, reconnected: bool, dropped: int) -> bytes:
    """The first message: which shell it is, and how much of its output can no longer be shown."""
    metadata: dict[str, object] = {"shellId": shell_id, "reconnected": reconnected}
    if dropped:
        metadata["bytesDropped"] = dropped
    return _status(metadata, "Success")


def failure(text: str) -> bytes:
    """Something of the platform's went wrong."""
    return _status({}, "Failure", reason="InternalError", message=text, code=500)


def ending(result: Result) -> bytes:
    """How the shell's program ended."""
    if result.outcome in {Outcome.NOT_STARTED, Outcome.UNKNOWN}:
        return failure(result.message or "what became of the shell is not known")
    if result.status == 0:
        return _status({}, "Success")
    causes = [{"reason": "ExitCode", "message": str(result.status)}]
    if result.signal is not None:
        causes.append({"reason": "Signal", "message": str(result.signal)})
    return _status(
        {},
        "Failure",
        reason="NonZeroExitCode",
        message=f"command terminated with exit code {result.status}",
        details={"causes": causes},
    )


def _status(metadata: dict[str, object], status: str, **more: object) -> bytes:
    said = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": status, **more}
    return message(STATUS, json.dumps(said, separators=(",", ":")).encode())


def diagnostic(text: str) -> bytes:
    """For the person at the other end."""
    return message(STDERR, f"guestd: {text}\n".encode())


class Wanted(NamedTuple):
    """A size; 0 where the client has no terminal and does not know."""

    columns: int
    rows: int


def read_resize(payload: bytes) -> Wanted | None:
    """The size that a message asks for; None when it cannot be understood."""
    try:
        said: object = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    sizes = cast("dict[str, object]", said)
    columns, rows = _side(sizes.get("width")), _side(sizes.get("height"))
    return None if columns is None or rows is None else Wanted(columns, rows)


def _side(given: object) -> int | None:
    is_one = isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= _SIZE_MAX
    return given if is_one and isinstance(given, int) else None


class Allowance:
    """So many a second, and no more than one second's worth at once. 0 is any number."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._left = float(rate)
        self._at = now

    def take(self, now: float) -> bool:
        """One more; False when it is one too many."""
        if not self._rate:
            return True
        self._left = min(float(self._rate), self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
