"""What a setting may be: how a value is written, checked and shown. One class a kind.

A kind reads a value in two ways: `read` takes what TOML gives (a number is a number there), `parse` takes
text, which is all that the kernel command line and the environment have. Both raise Invalid, which collects
everything that is wrong with a value, each with its place inside it.

`guestd init` imports this before it listens, so nothing here needs typing, re or dataclasses.
"""

from __future__ import annotations

from types import MappingProxyType

from guestd._config_units import DIGITS_MAX, is_whole, parse_duration, parse_size, show_duration, show_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Place = tuple[str | int, ...]
    #: What TOML gave, or what a kind made of it: only the kind knows its type.
    Value = Any


class Wrong:
    """One thing that is wrong: where in the value, what (said after its name), and what would be right."""

    __slots__ = ("fix", "place", "what")

    def __init__(self, what: str, fix: str, place: Place = ()) -> None:
        self.what = what
        self.fix = fix
        self.place = place

    def under(self, *place: str | int) -> Wrong:
        """The same, seen from further out."""
        return Wrong(self.what, self.fix, (*place, *self.place))


class Invalid(Exception):
    """A value that cannot be used."""

    def __init__(self, *wrong: Wrong) -> None:
        super().__init__("; ".join(f"{each.what}; {each.fix}" for each in wrong))
        self.wrong = wrong


class Kind:
    """The base: how values of one kind are written."""

    def describe(self) -> str:
        """A noun phrase with its bounds: what follows `expected`."""
        raise NotImplementedError

    def read(self, given: object) -> Value:
        raise NotImplementedError

    def parse(self, text: str) -> Value:
        return self.read(text)

    def show(self, value: Value) -> str:
        return shown(value)

    def public(self, value: Value) -> Value:
        """What of it may be shown to whoever looks at the settings, as it was given or as it was read."""
        return value

    def invalid(self, given: object) -> Invalid:
        return Invalid(Wrong(f"is {shown(given)}", f"expected {self.describe()}"))


class Text(Kind):
    """Text without NUL, since all of it ends in a system call sooner or later."""

    def describe(self) -> str:
        return "text"

    def read(self, given: object) -> str:
        if isinstance(given, str) and "\0" not in given and self.accepts(given):
            return given
        raise self.invalid(given)

    def accepts(self, text: str) -> bool:
        del text
        return True


class Path(Text):
    def __init__(self, *, required: bool) -> None:
        self._required = required

    def describe(self) -> str:
        return "an absolute path" if self._required else 'an absolute path, or "" for the default'

    def accepts(self, text: str) -> bool:
        return text.startswith("/") or not (text or self._required)


class Choice(Text):
    def __init__(self, *choices: str) -> None:
        self._choices = choices

    def describe(self) -> str:
        return "one of " + ", ".join(f'"{choice}"' for choice in self._choices)

    def accepts(self, text: str) -> bool:
        return text in self._choices


class Boolean(Kind):
    def describe(self) -> str:
        return "true or false"

    def read(self, given: object) -> bool:
        if isinstance(given, bool):
            return given
        raise self.invalid(given)

    def parse(self, text: str) -> bool:
        word = text.lower()
        if word in {"true", "yes", "on", "1"}:
            return True
        if word in {"false", "no", "off", "0"}:
            return False
        raise self.invalid(text)


class Integer(Kind):
    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def describe(self) -> str:
        return f"a whole number from {self.show(self.least)} to {self.show(self.most)}"

    def read(self, given: object) -> int:
        if isinstance(given, int) and not isinstance(given, bool) and self.least <= given <= self.most:
            return given
        raise self.invalid(given)

    def parse(self, text: str) -> int:
        number = self._number(text)
        if number is None or not self.least <= number <= self.most:
            raise self.invalid(text)
        return number

    def _number(self, text: str) -> int | None:
        return int(text) if is_whole(text.removeprefix("-")) else None


class Octal(Integer):
    """A mode: octal in text whether or not it says 0o, as umask(1) reads it; TOML writes it 0o022."""

    def describe(self) -> str:
        return f"octal digits from {self.show(self.least)} to {self.show(self.most)}"

    def show(self, value: Value) -> str:
        return f"0o{value:03o}"

    def _number(self, text: str) -> int | None:
        digits = text.removeprefix("0o")
        return int(digits, 8) if 0 < len(digits) <= DIGITS_MAX and not digits.strip("01234567") else None


class Size(Integer):
    """Bytes. TOML may give text too: "1 MiB" reads better than 1048576."""

    def describe(self) -> str:
        least, most = self.show(self.least), self.show(self.most)
        example = self.show(max(self.least, min(self.most, 1 << 20)))
        return f'a number of bytes from {least} to {most}, or text such as "{example}"'

    def read(self, given: object) -> int:
        return self.parse(given) if isinstance(given, str) else super().read(given)

    def show(self, value: Value) -> str:
        return show_size(value)

    def _number(self, text: str) -> int | None:
        return parse_size(text)


class Duration(Kind):
    """Seconds. Anywhere a number, or text with units."""

    def __init__(self, least: float, most: float) -> None:
        self.least = least
        self.most = most

    def describe(self) -> str:
        least, most = self.show(self.least), self.show(self.most)
        return f'seconds from {least} to {most}, or text such as "90s" or "1h30m"'

    def read(self, given: object) -> float:
        if isinstance(given, str):
            return self.parse(given)
        # Comparing is also what refuses TOML's nan and inf.
        if (
            isinstance(given, (int, float))
            and not isinstance(given, bool)
            and self.least <= given <= self.most
        ):
            return float(given)
        raise self.invalid(given)

    def parse(self, text: str) -> float:
        seconds = parse_duration(text)
        if seconds is None or not self.least <= seconds <= self.most:
            raise self.invalid(text)
        return seconds

    def show(self, value: Value) -> str:
        return show_duration(value)


class ListOf(Kind):
    """A list. In text: separated by commas, or as TOML writes it."""

    def __init__(self, item: Kind) -> None:
        self.item = item

    def describe(self) -> str:
        return f"a list, each item {self.item.describe()}"

    def read(self, given: object) -> tuple[Any, ...]:
        items = as_list(given)
        if items is None:
            raise self.invalid(given)
        return self._each(items, self.item.read)

    def parse(self, text: str) -> tuple[Any, ...]:
        if text.lstrip().startswith("["):
            return self.read(toml_value(text, self))
        return self._each([part.strip() for part in text.split(",")] if text.strip() else [], self.item.parse)

    def show(self, value: Value) -> str:
        return f"[{', '.join(self.item.show(item) for item in value)}]"

    def _each(self, items: list[Any], take: Callable[[Any], Any]) -> tuple[Any, ...]:
        found: list[Any] = []
        wrong: list[Wrong] = []
        for at, item in enumerate(items):
            try:
                found.append(take(item))
            except Invalid as error:
                wrong += [each.under(at) for each in error.wrong]
        if wrong:
            raise Invalid(*wrong)
        return tuple(found)


class TableOf(Kind):
    """A table whose keys are the user's own. Each entry is set, overridden and traced on its own."""

    def __init__(self, value: Kind, name: Text, *, lower: bool = False) -> None:
        self.value = value
        self._name = name
        self._lower = lower

    def describe(self) -> str:
        return f"a table, each value {self.value.describe()}"

    def entry(self, name: str) -> str:
        """The entry's name as it is kept; the environment can only write some of them in upper case."""
        try:
            return self._name.read(name.lower() if self._lower else name)
        except Invalid:
            wrong = Wrong("has a name that cannot be used", f"expected {self._name.describe()}")
            raise Invalid(wrong) from None

    def read(self, given: object) -> dict[str, Any]:
        entries = as_table(given)
        if entries is None:
            raise self.invalid(given)
        found: dict[str, Any] = {}
        wrong: list[Wrong] = []
        for name, value in entries.items():
            try:
                found[self.entry(name)] = self.value.read(value)
            except Invalid as error:
                wrong += [each.under(name) for each in error.wrong]
        if wrong:
            raise Invalid(*wrong)
        return found

    def parse(self, text: str) -> dict[str, Any]:
        return self.read(toml_value(text, self))

    def show(self, value: Value) -> str:
        return f"{{{', '.join(f'{name} = {self.value.show(entry)}' for name, entry in value.items())}}}"


def toml_value(text: str, kind: Kind) -> Value:
    """A value as TOML writes it, out of a source that has only text."""
    import tomllib

    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        raise kind.invalid(text) from None
    if len(found) > 1:
        raise kind.invalid(text)
    return found["value"]


def shown(value: Value, most: int = 80) -> str:
    """A value as a person would have written it in the file, never more than a little of it."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    elif as_table(value) is not None:
        text = "a table"
    else:
        text = repr(value)
    if not text.isprintable():
        text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def nearest(name: str, known: tuple[str, ...]) -> str | None:
    """The right name that was probably meant."""
    # Late: 5 ms, and only a mistake needs it.
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    if close:
        return close[0]
    # The name may be right and its section missing or wrong: `tape` for `command.tape`.
    last = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = difflib.get_close_matches(name.rpartition(".")[2], last, 1, 0.75)
    return last[close[0]] if close else None


def as_table(given: Value) -> Mapping[str, Value] | None:
    table: Mapping[str, Value] = given
    is_one = isinstance(given, (dict, MappingProxyType))
    return table if is_one else None


def as_list(given: Value) -> list[Value] | None:
    items: Iterable[Value] = given
    is_one = isinstance(given, (list, tuple))
    return list(items) if is_one else None
