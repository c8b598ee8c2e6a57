"""Resource attributes put into OTLP messages that somebody else made, without decoding what they carry. Pure.

Export requests of all signals have one shape: field 1, repeated, is a ResourceSpans, ResourceMetrics, ResourceLogs or
ResourceProfiles, and field 1 of that is the Resource, whose field 1, repeated, are its attributes. Only these three
levels are looked at, and of what lies between only the lengths: spans stay the bytes they were.

An attribute of the same name that is there already is taken out: a resource has each name once, and whose session it is
the guest's programs do not decide.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Each resource grows by the attributes, however small it was: without a bound a small request becomes a giant.
RESOURCES_MAX = 4096
#: Fields that are looked at. A batch of an SDK has hundreds of scopes at most, each one field here.
FIELDS_MAX = 65536
_ONE = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_MAX = 10
_JSON_RESOURCES = ("resourceSpans", "resourceMetrics", "resourceLogs", "resourceProfiles")
#: JSON nests as deep as whoever writes it likes; Python's reader does not.
_TOO_DEEP = (ValueError, RecursionError)


class Malformed(ValueError):
    """This is no export request."""


def with_attributes(message: bytes, attributes: Mapping[str, str | int]) -> bytes:
    """An export request in protobuf, each of its resources with these attributes."""
    names = {name.encode() for name in attributes}
    ours = b"".join(_field(_ONE, _key_value(name, value)) for name, value in attributes.items())
    out: list[bytes | memoryview] = []
    reader = _Reader()
    count = 0
    for number, wire, whole, inside in reader.fields(memoryview(message)):
        if number != _ONE or wire != _BYTES:
            out.append(whole)
            continue
        count += 1
        if count > RESOURCES_MAX:
            raise Malformed(f"it has more than {RESOURCES_MAX} resources")
        edited = reader.one_resource(inside, names, ours)
        out += [_head(_ONE, sum(map(len, edited))), *edited]
    return b"".join(out)


def with_attributes_json(text: bytes, attributes: Mapping[str, str | int]) -> bytes:
    """The same in JSON."""
    try:
        message: object = json.loads(text)
    except _TOO_DEEP as error:
        raise Malformed(f"it is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise Malformed("it is not a JSON object")
    count = 0
    for name in _JSON_RESOURCES:
        entries = cast("dict[str, object]", message).get(name)
        for entry in _objects(entries, name):
            count += 1
            if count > RESOURCES_MAX:
                raise Malformed(f"it has more than {RESOURCES_MAX} resources")
            resource: object = entry.get("resource") or {}
            if not isinstance(resource, dict):
                raise Malformed("a `resource` is not an object")
            found = cast("dict[str, Any]", resource)
            kept = [
                each
                for each in _objects(found.get("attributes"), "attributes")
                if each.get("key") not in attributes
            ]
            added = [{"key": key, "value": _json_value(value)} for key, value in attributes.items()]
            entry["resource"] = {**found, "attributes": [*kept, *added]}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _objects(found: object, name: str) -> list[dict[str, Any]]:
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in cast("list[object]", found)):
        raise Malformed(f"`{name}` is not a list of objects")
    return cast("list[dict[str, Any]]", found)


class _Reader:
    """Counts what it looks at: a message of nothing but small fields costs more time than it has bytes."""

    def __init__(self) -> None:
        self._left = FIELDS_MAX

    def one_resource(self, message: memoryview, names: set[bytes], ours: bytes) -> list[bytes | memoryview]:
        """A ResourceSpans or its like. Of several `resource` fields protobuf makes one, so they become one here."""
        resource: list[bytes | memoryview] = []
        rest: list[bytes | memoryview] = []
        for number, wire, whole, inside in self.fields(message):
            if number == _ONE and wire == _BYTES:
                resource += self._without(inside, names)
            else:
                rest.append(whole)
        resource.append(ours)
        return [_head(_ONE, sum(map(len, resource))), *resource, *rest]

    def _without(self, resource: memoryview, names: set[bytes]) -> Iterator[memoryview]:
        for number, wire, whole, inside in self.fields(resource):
            if number == _ONE and wire == _BYTES and self._key_of(inside) in names:
                continue
            yield whole

    def _key_of(self, key_value: memoryview) -> bytes:
        # The last one counts, where there are several.
        key = b""
        for number, wire, _, inside in self.fields(key_value):
            if number == _ONE and wire == _BYTES:
                key = bytes(inside)
        return key

    def fields(self, message: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
        """Each field: its number, its wire type, all of it, and what is inside of one that has a length."""
        at, end = 0, len(message)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Malformed(f"it has more than {FIELDS_MAX} fields where its resources are")
            begin = at
            tag, at = _varint(message, at)
            number, wire = tag >> 3, tag & 7
            inside = message[:0]
            if wire == _VARINT:
                _, at = _varint(message, at)
            elif wire == _BYTES:
                size, at = _varint(message, at)
                inside = message[at : at + size]
                at += size
            elif wire in {_FIXED32, _FIXED64}:
                at += 4 if wire == _FIXED32 else 8
            else:
                raise Malformed(f"it has a field of wire type {wire}")
            if at > end or not number:
                raise Malformed("it is cut off, or no protobuf")
            yield number, wire, message[begin:at], inside


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for count in range(_VARINT_MAX):
        if at + count >= len(message):
            break
        byte = message[at + count]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at + count + 1
    raise Malformed("it is cut off, or no protobuf")


def _key_value(key: str, value: str | int) -> bytes:
    # KeyValue {key = 1, value = 2: AnyValue {string_value = 1, int_value = 3}}
    held = (
        _field(1, value.encode()) if isinstance(value, str) else bytes([3 << 3 | _VARINT]) + _as_varint(value)
    )
    return _field(1, key.encode()) + _field(2, held)


def _json_value(value: str | int) -> dict[str, str]:
    # 64 bits do not fit into a number of JSON's.
    return {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}


def _field(number: int, data: bytes) -> bytes:
    return _head(number, len(data)) + data


def _head(number: int, size: int) -> bytes:
    return bytes([number << 3 | _BYTES]) + _as_varint(size)


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
