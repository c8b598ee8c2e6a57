"""What a peer says in a map is read as it was meant, or refused with the field's name and what would be right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.errors import BadRequest, ProtocolViolation
from guestd.wire.frames import Frame, Kind
from guestd.wire.messages import Fields, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable


def opened(payload: bytes) -> dict[str, Any]:
    return unpack(Frame(Kind.OPEN, 1, memoryview(payload)))


# What the system can hand over as text: anything UTF-8 has, and single bytes that are none.
system_text = st.text(
    st.characters(exclude_categories=["Cs"]) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(fields=st.dictionaries(st.text(), values))
def test_unpack_undoes_pack(fields: dict[str, object]) -> None:
    assert opened(pack(fields)) == fields


@given(name=st.binary())
def test_any_bytes_survive_as_text(name: bytes) -> None:
    """A file name need not be UTF-8; as text, with what cannot be decoded kept, it comes back byte for byte."""
    text = name.decode("utf-8", "surrogateescape")
    assert opened(pack({"cwd": text}))["cwd"].encode("utf-8", "surrogateescape") == name


@given(payload=st.binary(max_size=200))
def test_garbage_is_a_protocol_violation(payload: bytes) -> None:
    try:
        opened(payload)
    except ProtocolViolation as error:
        assert "OPEN" in error.message  # noqa: PT017 - some garbage is a map, and no error


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x81",
        b"\x81\xa1a",
        b"\xc1",
        b"\x80\x80",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\x90\xc0",
        b"\x81\xa1a\xd7\xff" + b"\xff" * 8,
        b"\x81\xa1a" + b"\x91" * 5000 + b"\xc0",
    ],
    ids=[
        "nothing", "no key", "no value", "a byte that is none", "two maps", "a map of 4 billion", "4 GB of bytes",
        "a list of 4 billion", "a list as a key", "a time that is none", "nested 5000 deep",
    ],
)  # fmt: skip
def test_what_is_not_messagepack(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="the payload of OPEN is not MessagePack"):
        opened(payload)


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", [], [{}], True, 1.5])
def test_what_is_not_a_map(value: object) -> None:
    payload = msgpack.packb(value)
    with pytest.raises(ProtocolViolation, match=r"the payload of OPEN is a .*, not a map"):
        opened(payload)


#: One reader for each method, as an operation calls it; then what it takes, and what that becomes.
GOOD: list[tuple[str, Callable[[Fields], object], object, object]] = [
    ("text", lambda f: f.text("x"), "word", "word"),
    ("text, empty", lambda f: f.text("x"), "", ""),
    ("text, bytes", lambda f: f.text("x"), b"caf\xc3\xa9 \xff", "café \udcff"),
    ("text, at its limit", lambda f: f.text("x", most=3), "abc", "abc"),
    ("text, default", lambda f: f.text("x", "else"), None, "else"),
    ("text, none", lambda f: f.text("x", None), None, None),
    ("choice", lambda f: f.choice("x", ("none", "stream")), "stream", "stream"),
    ("choice, default", lambda f: f.choice("x", ("none", "stream"), "none"), None, "none"),
    ("flag", lambda f: f.flag("x"), True, True),
    ("flag, false over a true default", lambda f: f.flag("x", default=True), False, False),
    ("flag, default", lambda f: f.flag("x", default=True), None, True),
    ("integer", lambda f: f.integer("x"), 0, 0),
    ("integer, largest", lambda f: f.integer("x"), 2**63 - 1, 2**63 - 1),
    ("integer, negative", lambda f: f.integer("x", least=-1000, most=1000), -1000, -1000),
    ("integer, default", lambda f: f.integer("x", 7), None, 7),
    ("seconds, whole", lambda f: f.seconds("x"), 3, 3.0),
    ("seconds, part", lambda f: f.seconds("x"), 0.25, 0.25),
    ("seconds, none at all", lambda f: f.seconds("x"), 0, 0.0),
    ("seconds, default", lambda f: f.seconds("x", None), None, None),
    ("texts", lambda f: f.texts("x"), ["a", b"\xff", ""], ["a", "\udcff", ""]),
    ("texts, long", lambda f: f.texts("x"), ["a" * 100_000], ["a" * 100_000]),
    ("texts, default", lambda f: f.texts("x", []), None, []),
    ("mapping", lambda f: f.mapping("x"), {"a": [1]}, {"a": [1]}),
    ("mapping, absent", lambda f: f.mapping("x"), None, {}),
    ("text_map", lambda f: f.text_map("x"), {"A": "1", "B": b"\xff"}, {"A": "1", "B": "\udcff"}),
    ("text_map, absent", lambda f: f.text_map("x"), None, {}),
    ("name_or_number, name", lambda f: f.name_or_number("x"), "agent", "agent"),
    ("name_or_number, number", lambda f: f.name_or_number("x"), 0, 0),
    ("name_or_number, largest", lambda f: f.name_or_number("x"), 2**32 - 2, 2**32 - 2),
    ("name_or_number, absent", lambda f: f.name_or_number("x"), None, None),
    ("raw", lambda f: f.raw("x"), [1, {}], [1, {}]),
    ("has", lambda f: f.has("x"), False, True),
    ("has, null", lambda f: f.has("x"), None, False),
]

#: The same for what each refuses: the value, the field it names, and what it says would be right.
BAD: list[tuple[str, Callable[[Fields], object], object, str, str]] = [
    ("text, number", lambda f: f.text("x"), 5, "x", "text"),
    ("text, list", lambda f: f.text("x"), ["a"], "x", "text"),
    ("text, NUL", lambda f: f.text("x"), "a\0b", "x", "text without NUL bytes"),
    ("text, NUL in bytes", lambda f: f.text("x"), b"a\0b", "x", "text without NUL bytes"),
    ("text, too long", lambda f: f.text("x", most=3), "abcd", "x", "text of at most 3 characters"),
    ("text, null", lambda f: f.text("x"), None, "x", "a value; it has no default"),
    ("choice, other", lambda f: f.choice("x", ("none", "stream")), "both", "x", "one of none, stream"),
    ("choice, list", lambda f: f.choice("x", ("none", "stream")), ["none"], "x", "one of none, stream"),
    ("choice, null", lambda f: f.choice("x", ("none",)), None, "x", "a value; it has no default"),
    ("flag, number", lambda f: f.flag("x"), 1, "x", "true or false"),
    ("flag, text", lambda f: f.flag("x"), "true", "x", "true or false"),
    ("integer, true", lambda f: f.integer("x"), True, "x", "a whole number from 0 to 9223372036854775807"),
    ("integer, negative", lambda f: f.integer("x", most=5), -1, "x", "a whole number from 0 to 5"),
    ("integer, over", lambda f: f.integer("x", most=5), 6, "x", "a whole number from 0 to 5"),
    ("integer, float", lambda f: f.integer("x", most=5), 1.0, "x", "a whole number from 0 to 5"),
    ("integer, text", lambda f: f.integer("x", most=5), "1", "x", "a whole number from 0 to 5"),
    ("seconds, negative", lambda f: f.seconds("x", most=5.0), -0.1, "x", "seconds, from 0 to 5"),
    ("seconds, over", lambda f: f.seconds("x", most=5.0), 5.1, "x", "seconds, from 0 to 5"),
    ("seconds, not a number", lambda f: f.seconds("x", most=5.0), math.nan, "x", "seconds, from 0 to 5"),
    ("seconds, infinite", lambda f: f.seconds("x"), math.inf, "x", "seconds, from 0 to 315360000"),
    ("seconds, true", lambda f: f.seconds("x", most=5.0), True, "x", "seconds, from 0 to 5"),
    ("texts, text", lambda f: f.texts("x"), "word", "x", "a list of texts"),
    ("texts, map", lambda f: f.texts("x"), {"a": 1}, "x", "a list of texts"),
    ("texts, an item", lambda f: f.texts("x"), ["a", 5], "x[1]", "text"),
    ("texts, a NUL", lambda f: f.texts("x"), ["a\0"], "x[0]", "text without NUL bytes"),
    ("texts, a null", lambda f: f.texts("x"), [None], "x[0]", "a value; it has no default"),
    ("mapping, list", lambda f: f.mapping("x"), [], "x", "a map whose keys are texts"),
    ("mapping, a key", lambda f: f.mapping("x"), {1: 2}, "x", "a map whose keys are texts"),
    ("text_map, an item", lambda f: f.text_map("x"), {"A": 5}, "x.A", "text"),
    ("text_map, a NUL", lambda f: f.text_map("x"), {"A": "\0"}, "x.A", "text without NUL bytes"),
    ("name_or_number, -1", lambda f: f.name_or_number("x"), -1, "x", "a name or a number"),
    ("name_or_number, the one that means none", lambda f: f.name_or_number("x"), 2**32 - 1, "x", "a name or a number"),
    ("name_or_number, empty", lambda f: f.name_or_number("x"), "", "x", "a name or a number"),
    ("name_or_number, NUL", lambda f: f.name_or_number("x"), "a\0", "x", "a name or a number"),
    ("name_or_number, true", lambda f: f.name_or_number("x"), True, "x", "a name or a number"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "value", "expected"), [pytest.param(*row, id=name) for name, *row in GOOD])
def test_taken(read: Callable[[Fields], object], value: object, expected: object) -> None:
    found = read(Fields({"x": value, "unknown": "is ignored"}))
    assert found == expected
    assert type(found) is type(expected)
    # Null is absent: what a language without optional fields sends.
    if value is None:
        assert read(Fields({})) == expected


@pytest.mark.parametrize(
    ("read", "value", "field", "expected"), [pytest.param(*row, id=name) for name, *row in BAD]
)
def test_refused(read: Callable[[Fields], object], value: object, field: str, expected: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read(Fields({"x": value}))
    error = raised.value.to_map()
    assert (error["code"], error["field"], error["expected"]) == ("bad_request", field, expected)
    assert f"field {field!r} is " in raised.value.message
    assert raised.value.message.endswith(f"; expected: {expected}")


@pytest.mark.parametrize("method", ["text", "integer", "seconds", "texts"])
def test_a_missing_field_is_called_missing(method: str) -> None:
    with pytest.raises(BadRequest, match="field 'x' is missing; expected: a value"):
        getattr(Fields({"y": 1}), method)("x")


def nested(depth: int) -> object:
    value: object = None
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [[0] * 100_000, {str(n): n for n in range(10_000)}, nested(900), nested(1020), 2**64 - 1, [b"x" * 10**6]],
    ids=[
        "a long list",
        "a large map",
        "nested 900 deep",
        "nested 1020 deep",
        "a large number",
        "bytes in a list",
    ],
)
def test_an_error_repeats_only_a_little_and_never_fails_itself(value: object) -> None:
    """`repr` of what a peer sent was as long and as deep as the peer liked; 1000 levels ended in RecursionError."""
    with pytest.raises(BadRequest) as raised:
        Fields(opened(pack({"x": value}))).text("x")
    assert len(raised.value.message) < 250


def test_a_long_key_is_not_repeated_either() -> None:
    """The name of an item carries the peer's key: in the field, and in the message again."""
    with pytest.raises(BadRequest) as raised:
        Fields({"env": {"K" * 1_000_000: 5}}).text_map("env")
    assert len(pack(raised.value.to_map())) < 1000
