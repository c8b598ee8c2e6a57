"""The maps that travel: MessagePack in and out, and a reader of fields that says what is wrong with which.

`Fields` is how every operation reads its request: one call a field, naming its type, default and bounds. Fields
nobody asks for are ignored, so a newer peer may say more than an older one understands.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgpack

from guestd.errors import BadRequest, ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.wire.frames import Frame

D = TypeVar("D")
_MISSING: Any = object()
_TEN_YEARS = 10 * 365 * 86400.0
#: How much of a peer's own text an error repeats, in characters.
_SHOWN = 80
#: Not plain `repr`, which goes as deep as the value is nested: a thousand lists in each other are a RecursionError.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _SHOWN


def pack(fields: Mapping[str, object]) -> bytes:
    """A control payload. Text that came from the system with undecodable bytes keeps them."""
    return msgpack.packb(fields, use_bin_type=True, unicode_errors="surrogateescape")


def unpack(frame: Frame) -> dict[str, Any]:
    """The map a control frame carries."""
    try:
        fields: object = _unpackb(frame.payload)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolViolation(f"the payload of {frame.kind.name} is not MessagePack: {error}") from error
    if not isinstance(fields, dict):
        raise ProtocolViolation(f"the payload of {frame.kind.name} is a {type(fields).__name__}, not a map")
    return cast("dict[str, Any]", fields)


def unpack_payload(payload: bytes | memoryview) -> dict[str, Any]:
    """The same for what a process of guestd's own has packed."""
    return cast("dict[str, Any]", _unpackb(payload))


def _unpackb(payload: bytes | memoryview) -> object:
    return msgpack.unpackb(payload, raw=False, strict_map_key=False, unicode_errors="surrogateescape")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class Fields:
    """A request's fields. Each method reads one, or raises BadRequest that names it."""

    __slots__ = ("_map",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._map = fields

    def has(self, name: str) -> bool:
        return self._map.get(name) is not None

    def text(self, name: str, default: D = _MISSING, *, most: int = 65536) -> str | D:
        """Text without NUL. Bytes are taken as the system's file names are."""
        value = self._get(name, default)
        if value is default:
            return cast("D", value)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        if not isinstance(value, str):
            raise self.bad(name, "text")
        if "\0" in value:
            raise self.bad(name, "text without NUL bytes")
        if len(value) > most:
            raise self.bad(name, f"text of at most {most} characters")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: D = _MISSING) -> str | D:
        value = self._get(name, default)
        if value is default:
            return cast("D", value)
        if isinstance(value, str) and value in choices:
            return value
        raise self.bad(name, "one of " + ", ".join(choices))

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._get(name, default)
        if isinstance(value, bool):
            return value
        raise self.bad(name, "true or false")

    def integer(self, name: str, default: D = _MISSING, *, least: int = 0, most: int = 2**63 - 1) -> int | D:
        value = self._get(name, default)
        if value is default:
            return cast("D", value)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self.bad(name, f"a whole number from {least} to {most}")

    def seconds(self, name: str, default: D = _MISSING, *, most: float = _TEN_YEARS) -> float | D:
        value = self._get(name, default)
        if value is default:
            return cast("D", value)
        # `0 <= value` is also what refuses NaN.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most:
            return float(value)
        raise self.bad(name, f"seconds, from 0 to {most:.0f}")

    def texts(self, name: str, default: D = _MISSING) -> list[str] | D:
        value = self._get(name, default)
        if value is default:
            return cast("D", value)
        if not isinstance(value, list):
            raise self.bad(name, "a list of texts")
        items = cast("list[object]", value)
        # Millions of them fit in a frame: the plain case costs no call each.
        if all(type(item) is str and "\0" not in item for item in items):
            return cast("list[str]", items)
        return [
            Fields({f"{name}[{at}]": item}).text(f"{name}[{at}]", most=2**31) for at, item in enumerate(items)
        ]

    def mapping(self, name: str) -> dict[str, Any]:
        """A map with text keys; empty when absent."""
        value = self._get(name, None)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(
            isinstance(key, str) for key in cast("dict[object, object]", value)
        ):
            raise self.bad(name, "a map whose keys are texts")
        return cast("dict[str, Any]", value)

    def text_map(self, name: str) -> dict[str, str]:
        found = self.mapping(name)
        return {
            key: Fields({f"{name}.{key}": item}).text(f"{name}.{key}", most=2**31)
            for key, item in found.items()
        }

    def name_or_number(self, name: str) -> str | int | None:
        """A user or group: its name, or its number."""
        value = self._get(name, None)
        if value is None or (
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1
        ):
            return value
        if isinstance(value, str) and value and "\0" not in value:
            return value
        raise self.bad(name, "a name or a number")

    def to_map(self) -> dict[str, Any]:
        """All of them, unread."""
        return dict(self._map)

    def raw(self, name: str) -> object:
        return self._map.get(name)

    def bad(self, name: str, expected: str) -> BadRequest:
        """The error for a field that is not what it should be; never repeats more than a little of it."""
        # The name of an item holds the peer's own key, which may be as long as a frame.
        field = _short(name)
        if name not in self._map:
            what = f"field {field!r} is missing; expected: {expected}"
        else:
            what = f"field {field!r} is {_short(_REPR.repr(self._map[name]))}; expected: {expected}"
        return BadRequest(what, field=field, expected=expected)

    def _get(self, name: str, default: object) -> Any:  # noqa: ANN401  each caller looks what it is
        value = self._map.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise self.bad(name, "a value; it has no default")
        return default
