"""How a table of settings declares its keys: one function for each kind of key, used in the bodies of Sections."""

from __future__ import annotations

from guestd._config_kinds import Choice, Duration, Integer, Kind, Path, Size
from guestd._config_section import Key, Section
from guestd._config_units import parse_duration, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from guestd._config_kinds import Value

    SectionT = TypeVar("SectionT", bound=Section)

# Each of these declares a key. The class's attribute is the Key, an instance's is a value: hence Value.


def key(help_: str, kind: Kind, default: object, empty: str = "") -> Value:
    return Key(kind, default, help_, empty)


def path(help_: str, default: str = "", empty: str = "") -> Value:
    return Key(Path(required=bool(default)), default, help_, empty)


def choice(help_: str, default: str, *choices: str) -> Value:
    return Key(Choice(*choices), default, help_)


def number(help_: str, default: int, least: int, most: int) -> Value:
    return Key(Integer(least, most), default, help_)


def size(help_: str, default: str, least: str, most: str) -> Value:
    return Key(Size(parse_size(least) or 0, parse_size(most) or 0), default, help_)


def seconds(help_: str, default: str, least: str, most: str, empty: str = "") -> Value:
    return Key(Duration(parse_duration(least) or 0.0, parse_duration(most) or 0.0), default, help_, empty)


def section(table: type[SectionT]) -> SectionT:
    """The class stands for its keys here; an instance of the table around it has an instance of it."""
    of_an_instance: Value = table
    return of_an_instance
