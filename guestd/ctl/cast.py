"""An asciicast, version 2, line by line: a header, then events with their time. Pure.

What a terminal prints is bytes, which may be cut in the middle of a letter; a cast is text. So letters are put together
across pieces, and bytes that are no text become the sign for that.
"""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Cast:
    """Makes the lines of one cast. `idle_limit`: no pause is longer than that. Times never go back."""

    def __init__(self, idle_limit: float | None = None) -> None:
        self._idle_limit = idle_limit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Of the last event: when it was, and at which time it is in the cast.
        self._before = 0.0
        self._at = 0.0

    def header(self, columns: int, rows: int, timestamp: float, env: Mapping[str, str]) -> str:
        fields: dict[str, object] = {
            "version": 2,
            "width": columns,
            "height": rows,
            "timestamp": int(timestamp),
            "env": dict(env),
        }
        if self._idle_limit is not None:
            fields["idle_time_limit"] = self._idle_limit
        return json.dumps(fields) + "\n"

    def output(self, time: float, data: bytes) -> str:
        """What was printed; nothing, as long as it is no whole letter."""
        text = self._decoder.decode(data)
        return self._event(time, "o", text) if text else ""

    def size(self, time: float, columns: int, rows: int) -> str:
        return self._event(time, "r", f"{columns}x{rows}")

    def marker(self, time: float, text: str) -> str:
        """A place in the cast. What follows does not go on with what came before it."""
        return self.rest(time) + self._event(time, "m", text)

    def rest(self, time: float) -> str:
        """Nothing follows that could complete a letter."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self._event(time, "o", text) if text else ""

    def _event(self, time: float, kind: str, text: str) -> str:
        pause = max(0.0, time - self._before)
        if self._idle_limit is not None:
            pause = min(pause, self._idle_limit)
        self._before = max(self._before, time)
        self._at += pause
        return json.dumps([round(self._at, 6), kind, text], ensure_ascii=False) + "\n"
