"""Bytes as text, piece by piece: a character that is cut in two waits for its other half. Pure.

What is no UTF-8 becomes U+FFFD, as often as a decoder of the whole would write it.
"""

from __future__ import annotations

import codecs

_DECODER = codecs.getincrementaldecoder("utf-8")


class Text:
    """One stream of bytes."""

    def __init__(self) -> None:
        self._decoder = _DECODER("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def end(self) -> str:
        """What is left when nothing more comes here: the end of the stream, or a hole in it."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
