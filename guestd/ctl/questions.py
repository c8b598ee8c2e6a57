"""Questions that programs put to their terminal, taken out of old output. Pure.

Where is the cursor, which terminal is this, what colour is the background: the terminal answers as if somebody had
typed it. Shown again later, an old question would be answered again, into a shell that has not asked.
"""

from __future__ import annotations

import re

_ST = rb"(?:\x07|\x1b\\|\x9c)"
_QUESTION = re.compile(
    rb"\x05"
    rb"|\x1bZ"
    rb"|\x1b\[(?:[>=]?[\d;]*c|[?>]?[\d;]*n|\??[\d;]*\$p|1[1-9][\d;]*t|2[01][\d;]*t|\?u|>[\d;]*q|[\d;]*x|[\d;]*\*y)"
    rb"|\x1b\](?:[^\x07\x1b\x9c]*;)?\?(?:;[^\x07\x1b\x9c]*)?" + _ST + rb"|\x1bP[+$]q[^\x1b\x9c]*" + _ST
    # A picture is confirmed, or refused, by the same way.
    + rb"|\x1b_G[^\x1b\x9c]*" + _ST
)  # fmt: skip
#: What may be the beginning of one. What is longer, is none.
_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P_][^\x07\x1b\x9c]*\x1b?)?")
_BEGUN_MAX = 4096


class Questions:
    """Takes them out of output that comes in pieces."""

    def __init__(self) -> None:
        self._begun = b""

    def without(self, data: bytes) -> bytes:
        """What is left of it, and can be told by now."""
        data = self._begun + data
        self._begun = b""
        last = self._last_begun(data)
        if last is not None:
            data, self._begun = data[:last], data[last:]
        return _QUESTION.sub(b"", data)

    def of(self, offset: int, data: bytes, end: int) -> bytes:
        """Output at an offset, of which everything before `end` is old."""
        old = min(max(0, end - offset), len(data))
        if old == len(data):
            return self.without(data)
        return (self.without(data[:old]) if old else b"") + self.rest() + data[old:]

    def rest(self) -> bytes:
        """Nothing old follows: what was held back."""
        rest, self._begun = self._begun, b""
        return rest

    @staticmethod
    def _last_begun(data: bytes) -> int | None:
        at = len(data)
        # The end of a string is an escape too: the one before it is then the beginning.
        for _ in range(2):
            at = data.rfind(b"\x1b", max(0, len(data) - _BEGUN_MAX), at)
            if at < 0:
                return None
            if _BEGUN.fullmatch(data, at):
                before = data.rfind(b"\x1b", max(0, len(data) - _BEGUN_MAX), at)
                return (
                    before if before >= 0 and at == len(data) - 1 and _BEGUN.fullmatch(data, before) else at
                )
        return None
