"""What is typed at this terminal: the key that leaves, found among all that is for the guest. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PASTE, _PASTED = b"\x1b[200~", b"\x1b[201~"
#: A press of one key, whatever it sends: a function key, a letter of any alphabet, Alt and a letter.
_KEY = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|\x1b?[\x00-\x7f\xc0-\xff][\x80-\xbf]*", re.DOTALL)
#: What a terminal reports by itself: the mouse, the focus. Nobody typed that.
_REPORT = re.compile(rb"\x1b\[<[\d;]*[Mm]|\x1b\[M...|\x1b\[[IO]", re.DOTALL)
_INTERRUPT = "c"
_CTRL, _LOCKS = 4, 64 | 128


@dataclass(frozen=True)
class Key:
    """Ctrl and another key. `letter` as it is written on it, in lower case."""

    letter: str

    @property
    def name(self) -> str:
        return f"Ctrl+{self.letter.upper()}"

    @property
    def byte(self) -> bytes:
        return bytes([ord(self.letter.upper()) & 0x1F])

    @property
    def pattern(self) -> bytes:
        """The ways in which terminals send it: plain, and as programs ask for that want to know each key exactly."""
        code = b"%d" % ord(self.letter)
        modified = b"(?P<modifiers>\\d+)"
        kitty = rb"\x1b\[%s(?::\d*)*;%s(?::[12])?u" % (code, modified)
        xterm = rb"\x1b\[27;%s;%s~" % (modified.replace(b"modifiers", b"more"), code)
        return b"%s|%s|%s" % (re.escape(self.byte), kitty, xterm)


INTERRUPT = Key(_INTERRUPT)


class Keys:
    """Finds the `leaving` keys. What is pasted is never a key."""

    def __init__(self, *leaving: Key) -> None:
        patterns = [b"(?P<k%d>%s)" % (at, _apart(key.pattern, at)) for at, key in enumerate(leaving)]
        self._leaving = leaving
        self._pattern = re.compile(b"|".join([re.escape(_PASTE), *patterns]))
        self._pasting = False

    def feed(self, data: bytes) -> tuple[bytes, Key | None]:
        """What of it is for the guest, and the key that leaves, if it is among it; what came behind it is dropped."""
        alone = self._pattern.fullmatch(data) if self._pasting else None
        if alone is not None and alone[0] != _PASTE:
            # A key by itself is no part of a paste, whose end was lost then.
            self._pasting = False
        at = 0
        while at < len(data):
            if self._pasting:
                end = data.find(_PASTED, at)
                if end < 0:
                    break
                at, self._pasting = end + len(_PASTED), False
                continue
            found = self._pattern.search(data, at)
            if found is None:
                break
            at = found.end()
            if found[0] == _PASTE:
                self._pasting = True
            elif (key := self._key(found)) is not None:
                return data[: found.start()], key
        return data, None

    def _key(self, found: re.Match[bytes]) -> Key | None:
        for at, key in enumerate(self._leaving):
            if found[f"k{at}"] is not None:
                modifiers = found[f"modifiers{at}"] or found[f"more{at}"]
                # One more than the sum of those that are held; Caps Lock and Num Lock change nothing.
                if modifiers is None or (int(modifiers) - 1) & ~_LOCKS == _CTRL:
                    return key
        return None


def _apart(pattern: bytes, at: int) -> bytes:
    """Names of groups have to differ within one pattern."""
    return pattern.replace(b"modifiers>", b"modifiers%d>" % at).replace(b"more>", b"more%d>" % at)


def count(typed: bytes) -> int:
    """How many keys that was, for a person."""
    return len(_KEY.findall(typed))


def without_reports(typed: bytes) -> bytes:
    """Only what somebody typed."""
    return _REPORT.sub(b"", typed) if b"\x1b[" in typed else typed
