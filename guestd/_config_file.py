"""The configuration file: TOML, with the line on which each value stands.

tomllib gives values without places, so a second walk over text that tomllib has found valid notes where each
key and each item begins. It decides nothing about values. Imported only when there is a file.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Place = tuple[str | int, ...]

_BLANK = " \t"
_SPACE = " \t\r\n"


class NotToml(Exception):
    """The text is not TOML; `line` is where it stops being."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def read_file(data: bytes) -> tuple[dict[str, Any], Mapping[Place, int]]:
    """What the file says, and the line of each of its keys and items."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NotToml(f"byte 0x{data[error.start]:02x} is not UTF-8", _line(data, error.start)) from None
    # As tomllib does first of all; a \r left over would move no line, since lines are counted by \n.
    text = text.replace("\r\n", "\n")
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).rpartition(" (at ")
        line = place.removeprefix("line ").partition(",")[0]
        raise NotToml(message, int(line) if line.isdecimal() else text.rstrip().count("\n") + 1) from None
    except RecursionError:
        raise NotToml("values are nested too deeply", 1) from None
    try:
        return found, _Walk(text).places()
    except (IndexError, ValueError, RecursionError):
        # A newer TOML than this walk knows. The values are right all the same: start, and name no lines.
        return found, {}


def _line(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


class _Walk:
    """One pass over valid TOML. Every step goes forward, so that it ends on anything else too, with an error."""

    def __init__(self, text: str) -> None:
        self._text = text + "\n"
        self._at = 0
        self._counted = 0
        self._line = 1
        self._places: dict[Place, int] = {}
        # How many [[tables]] of each name there have been.
        self._arrays: dict[Place, int] = {}

    def places(self) -> dict[Place, int]:
        prefix: Place = ()
        while True:
            self._skip_space()
            if self._at >= len(self._text):
                return self._places
            if self._text[self._at] == "[":
                prefix = self._header()
            else:
                self._pair(prefix)

    def _header(self) -> Place:
        line = self._here()
        several = self._text.startswith("[[", self._at)
        self._at += 2 if several else 1
        names = self._names()
        self._at += 2 if several else 1
        place: Place = ()
        for name in names[:-1]:
            place = self._latest((*place, name))
            self._places.setdefault(place, line)
        place = (*place, names[-1])
        self._places.setdefault(place, line)
        if several:
            self._arrays[place] = self._arrays.get(place, 0) + 1
            place = self._latest(place)
            self._places[place] = line
        return place

    def _latest(self, place: Place) -> Place:
        """Below the name of [[tables]], the newest of them is meant."""
        count = self._arrays.get(place)
        return (*place, count - 1) if count else place

    def _pair(self, prefix: Place) -> None:
        line = self._here()
        place = prefix
        for name in self._names():
            place = (*place, name)
            self._places.setdefault(place, line)
        self._at += 1
        self._skip(_BLANK)
        self._value(place)

    def _names(self) -> list[str]:
        """A dotted key, up to the = or ] behind it."""
        names: list[str] = []
        while True:
            self._skip(_BLANK)
            begin = self._at
            if self._text[begin] in "\"'":
                self._string()
                # The escapes of a quoted key are those of a string: let tomllib read them.
                names.append(tomllib.loads(f"key = {self._text[begin : self._at]}")["key"])
            else:
                while self._text[self._at] not in " \t.=]":
                    self._at += 1
                names.append(self._text[begin : self._at])
            self._skip(_BLANK)
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _value(self, place: Place) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._items(place)
        elif first == "{":
            self._inline(place)
        elif first in ",]}#\n":
            raise ValueError("no value")
        else:
            while self._text[self._at] not in ",]}#\n":
                self._at += 1

    def _items(self, place: Place) -> None:
        self._at += 1
        count = 0
        while True:
            self._skip_space()
            if self._text[self._at] == "]":
                break
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._places[*place, count] = self._here()
            self._value((*place, count))
            count += 1
        self._at += 1

    def _inline(self, place: Place) -> None:
        self._at += 1
        while True:
            # Line ends and comments in here are TOML 1.1, which newer tomllibs read.
            self._skip_space()
            if self._text[self._at] == "}":
                break
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._pair(place)
        self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        long = self._text.startswith(quote * 3, self._at)
        mark = quote * 3 if long else quote
        self._at += len(mark)
        if quote == "'":
            self._at = self._text.index(mark, self._at)
        else:
            while not self._text.startswith(mark, self._at):
                self._at += 2 if self._text[self._at] == "\\" else 1
        self._at += len(mark)
        # One or two quotes may stand right before the three that end a long string.
        while long and self._text.startswith(quote, self._at):
            self._at += 1

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _skip(self, what: str) -> None:
        while self._at < len(self._text) and self._text[self._at] in what:
            self._at += 1

    def _skip_space(self) -> None:
        """White space, line ends and comments."""
        self._skip(_SPACE)
        while self._at < len(self._text) and self._text[self._at] == "#":
            self._at = self._text.index("\n", self._at)
            self._skip(_SPACE)
