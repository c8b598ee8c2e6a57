"""Sections: tables of keys as classes, and the merge of what several sources give into one of them.

In a Section subclass each attribute is a Key; in an instance it is the value. The sources only say what they
give, and one merge reads all of it, so that a mistake in a source which is overridden is told too. A value
that cannot be used leaves in force what a lower source gave.

Plain classes throughout: dataclasses and typing cost more to import than everything here.
"""

from __future__ import annotations

from types import MappingProxyType

from guestd._config_kinds import Invalid, Kind, TableOf, Wrong, as_list, as_table, nearest, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import NoReturn

    from guestd._config_kinds import Place, Value


class Origin:
    """Where a value comes from. `raw` is what was written there."""

    __slots__ = ("line", "name", "raw", "source")

    def __init__(self, source: str, name: str = "", line: int | None = None, raw: object = None) -> None:
        self.source = source
        self.name = name
        self.line = line
        self.raw = raw

    def __str__(self) -> str:
        words = self.name if self.source == "flag" else f"{self.source} {self.name}".rstrip()
        return words if self.line is None else f"{words}:{self.line}"

    def __repr__(self) -> str:
        return f"Origin({self}, raw={self.raw!r})"

    def at_line(self, line: int) -> Origin:
        return Origin(self.source, self.name, line, self.raw)

    def at(self, lines: Mapping[Place, int], place: Place) -> Origin:
        """The line of the innermost part of a place that has one."""
        for size in range(len(place), 0, -1):
            if place[:size] in lines:
                return self.at_line(lines[place[:size]])
        return self


DEFAULT = Origin("default")


class Key:
    """One setting: what it may be, what it is when nobody says anything, and what it is for."""

    __slots__ = ("default", "empty", "help", "kind")

    def __init__(self, kind: Kind, default: object, help_: str, empty: str = "") -> None:
        self.kind = kind
        self.default = default
        self.help = help_
        #: What the default means when it says nothing (0, "", []).
        self.empty = empty

    def show(self, value: Value) -> str:
        return f"({self.empty})" if self.empty and not value else self.kind.show(value)


class Section:
    """A table of settings. Does not change."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"settings do not change: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"settings do not change: {name} cannot be deleted")

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class Record(Kind):
    """A table as an item of a list: a Section of its own, given whole by one source."""

    def __init__(self, section: type[Section]) -> None:
        self._section = section

    def describe(self) -> str:
        return f"a table with keys out of {', '.join(keys_of(self._section))}"

    def read(self, given: object) -> Section:
        table = as_table(given)
        if table is None:
            raise self.invalid(given)
        values, wrong = walk(self._section, table)
        merged = merge(self._section, [Given(name, entry, value, DEFAULT) for name, entry, value in values])
        wrong += [each.under(*given.place) for given, each in merged.wrong]
        if wrong:
            raise Invalid(*wrong)
        return merged.section


class Given:
    """One value from one source; `entry` is the name inside a table of the user's own keys."""

    __slots__ = ("_lines", "_origin", "entry", "key", "place", "text", "value")

    def __init__(
        self,
        key: str,
        entry: str | None,
        value: Value,
        origin: Origin,
        *,
        text: bool = False,
        lines: Mapping[Place, int] | None = None,
    ) -> None:
        self.key = key
        self.entry = entry
        self.value = value
        #: The source has nothing but text: a number is written with digits there.
        self.text = text
        self.place: Place = (*key.split("."), *(() if entry is None else (entry,)))
        self._origin = origin
        self._lines = lines

    def origin(self, inside: Place = ()) -> Origin:
        """Where the value stands, or a part of it."""
        return self._origin if self._lines is None else self._origin.at(self._lines, (*self.place, *inside))


class Merged:
    """What came out of a merge: always a whole section, to be used only when nothing is wrong."""

    __slots__ = ("origins", "section", "wrong")

    def __init__(self, section: Value, origins: dict[str, Origin], wrong: list[tuple[Given, Wrong]]) -> None:
        self.section = section
        self.origins = origins
        #: What is wrong with a given value, its place counted from that value.
        self.wrong = wrong


def keys_of(section: type[Section]) -> dict[str, Key]:
    """Every key of a section by its dotted name, in the order in which the classes have them."""
    found: dict[str, Key] = {}
    for name, what in vars(section).items():
        if isinstance(what, Key):
            found[name] = what
        elif below := _as_section(what):
            found.update((f"{name}.{each}", key) for each, key in keys_of(below).items())
    return found


def find_key(keys: Mapping[str, Key], name: str, separator: str = ".") -> tuple[str, str | None] | None:
    """The key of that name, or the table that has an entry of that name."""
    if name in keys:
        return name, None
    for table, key in keys.items():
        if isinstance(key.kind, TableOf) and name.startswith(table + separator):
            return table, name[len(table) + len(separator) :]
    return None


def walk(
    section: type[Section],
    table: Mapping[str, Value],
    inside: Place = (),
) -> tuple[list[tuple[str, str | None, Value]], list[Wrong]]:
    """Take a table apart into (key, entry, value), and what in it belongs to no key."""
    found: list[tuple[str, str | None, Value]] = []
    wrong: list[Wrong] = []
    for name, value in table.items():
        what = vars(section).get(name)
        place = (*inside, name)
        dotted = spell(place)
        entries = as_table(value)
        if isinstance(what, Key):
            if isinstance(what.kind, TableOf) and entries is not None:
                found += [(dotted, entry, each) for entry, each in entries.items()]
            else:
                found.append((dotted, None, value))
            continue
        below = _as_section(what)
        if below is None:
            wrong.append(Wrong(*unknown(dotted, _names(section, inside)), place))
        elif entries is None:
            names = ", ".join(f"{dotted}.{each}" for each in keys_of(below))
            wrong.append(Wrong(f"is {shown(value)}", f"expected a table, with keys out of {names}", place))
        else:
            found_below, wrong_below = walk(below, entries, place)
            found += found_below
            wrong += wrong_below
    return found, wrong


def unknown(name: str, known: Iterable[str]) -> tuple[str, str]:
    """What is wrong with a name that is none, and the name that was probably meant."""
    near = nearest(name, tuple(known))
    return "is no setting", f"did you mean {near}?" if near else "`guestd check --keys` lists all settings"


def merge(section: type[Section], given: Iterable[Given]) -> Merged:
    """Read every value, the later above the earlier, on top of the defaults."""
    keys = keys_of(section)
    values: dict[str, Value] = {name: key.kind.read(key.default) for name, key in keys.items()}
    origins = dict.fromkeys(keys, DEFAULT)
    wrong: list[tuple[Given, Wrong]] = []
    for each in given:
        kind = keys[each.key].kind
        try:
            if isinstance(kind, TableOf):
                entries = _entries(kind, each)
                values[each.key].update(entries)
                origins.update(
                    (f"{each.key}.{name}", each.origin(() if each.entry is not None else (name,)))
                    for name in entries
                )
            else:
                values[each.key] = value = _read(kind, each)
                origins[each.key] = each.origin()
                # Tables in a list are long: what is wrong with one only in view of the others is told at its own line.
                origins.update(
                    (f"{each.key}[{at}]", each.origin((at,)))
                    for at, item in enumerate(as_list(value) or ())
                    if isinstance(item, Section)
                )
        except Invalid as error:
            wrong += [(each, one) for one in error.wrong]
    return Merged(section(dict(_tree(section, values, ""))), origins, wrong)


def spell(place: Place) -> str:
    """A place as a person writes it: command.tape, listen[0]."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _entries(kind: TableOf, given: Given) -> dict[str, Value]:
    if given.entry is None:
        return _read(kind, given)
    return {kind.entry(given.entry): _read(kind.value, given)}


def _read(kind: Kind, given: Given) -> Value:
    return kind.parse(given.value) if given.text else kind.read(given.value)


def _tree(section: type[Section], values: Mapping[str, Value], inside: str) -> Iterator[tuple[str, object]]:
    for name, what in vars(section).items():
        if isinstance(what, Key):
            value = values[inside + name]
            yield name, value if as_table(value) is None else MappingProxyType(value)
        elif below := _as_section(what):
            yield name, below(dict(_tree(below, values, f"{inside}{name}.")))


def _names(section: type[Section], inside: Place) -> Iterator[str]:
    """What may stand in a section: its keys with their full names, and the sections themselves."""
    before = f"{spell(inside)}." if inside else ""
    for name, what in vars(section).items():
        if _as_section(what):
            yield before + name
    for name in keys_of(section):
        yield before + name


def _as_section(what: object) -> type[Section] | None:
    return what if isinstance(what, type) and issubclass(what, Section) else None
