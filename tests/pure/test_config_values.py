"""How values are written: sizes, times, lists, and the words of the kernel command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd._config_kinds import (
    Boolean,
    Duration,
    Integer,
    Invalid,
    Kind,
    ListOf,
    Octal,
    Size,
    Text,
    nearest,
    shown,
)
from guestd._config_sources import kernel_words
from guestd._config_system import CAPABILITIES, Rlimit
from guestd._config_units import parse_duration, parse_size, show_duration, show_size
from guestd.config import Settings, keys_of


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096 B", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("4 KiB", 4096),
        ("4KB", 4000),
        ("1 MiB", 1 << 20),
        ("1M", 1 << 20),
        ("1mb", 1_000_000),
        (" 1.5 GiB ", 3 << 29),
        ("0.5k", 512),
        ("2T", 2 << 40),
        ("1.10 kb", 1100),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "M",
        "1 Q",
        "1 MiBs",
        "-1",
        "+1",
        "1_000",
        "1.5",
        "1.k",
        ".5k",
        "1.1 KiB",
        "1e3",
        "٣",
        "0x10",
        "1" * 5000,
        "1 M 2",
        "1  2",
        "1.2.3k",
    ],
)
def test_what_is_no_size(text: str) -> None:
    assert parse_size(text) is None


@given(st.integers(0, 2**60))
def test_a_size_shown_is_read_back(size: int) -> None:
    assert parse_size(show_size(size)) == size
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("10", 10),
        ("0.25", 0.25),
        ("250ms", 0.25),
        ("5 s", 5),
        ("10m", 600),
        ("10min", 600),
        ("8h", 28800),
        ("30d", 2592000),
        ("1h30m", 5400),
        (" 1h 30m 5s ", 5405),
        ("1.5h", 5400),
        ("1s250ms", 1.25),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "-1s",
        "1x",
        "1h30",
        "30 1h",
        "1e3",
        "inf",
        "nan",
        "1..5s",
        ".5s",
        "1.s",
        "٣s",
        "1sm",
        "1" * 5000,
    ],
)
def test_what_is_no_time(text: str) -> None:
    assert parse_duration(text) is None


@given(st.integers(0, 3650 * 86400 * 1000))
def test_a_time_shown_is_read_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(show_duration(seconds)) == seconds


@given(st.text())
def test_no_text_breaks_sizes_or_times(text: str) -> None:
    size, seconds = parse_size(text), parse_duration(text)
    assert size is None or size >= 0
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Boolean(), "Yes", True),
        (Boolean(), "on", True),
        (Boolean(), "0", False),
        (Boolean(), "off", False),
        (Integer(-5, 5), "-5", -5),
        (Integer(0, 10), "007", 7),
        (Octal(0, 0o777), "022", 0o022),
        (Octal(0, 0o777), "0o22", 0o022),
        (Octal(0, 0o777), "777", 0o777),
        (Size(0, 1 << 30), "4k", 4096),
        (Duration(0, 10), "5 s", 5.0),
        (ListOf(Integer(0, 9)), "", ()),
        (ListOf(Integer(0, 9)), "1, 2", (1, 2)),
        (ListOf(Integer(0, 9)), "[1, 2]", (1, 2)),
        (ListOf(Text()), "a,b c", ("a", "b c")),
        (ListOf(Text()), '["a,b"]', ("a,b",)),
        (Rlimit(), "5", (5, 5)),
        (Rlimit(), "5:6", (5, 6)),
        (Rlimit(), "5:unlimited", (5, -1)),
        (Rlimit(), "[5, 6]", (5, 6)),
        (Rlimit(), "64 MiB", (64 << 20, 64 << 20)),
        (Rlimit(), "unlimited", (-1, -1)),
    ],
)
def test_text_of_each_kind(kind: Kind, text: str, value: object) -> None:
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Boolean(), "maybe"),
        (Boolean(), ""),
        (Integer(0, 9), "10"),
        (Integer(0, 9), ""),
        (Integer(0, 9), "--1"),
        (Integer(0, 9), "1" * 10000),
        (Octal(0, 0o777), "0o"),
        (Octal(0, 0o777), "8"),
        (Octal(0, 0o777), "1000"),
        (Octal(0, 0o777), "-1"),
        (Size(5, 9), "4"),
        (Duration(1, 2), "3"),
        (ListOf(Integer(0, 9)), "1,,2"),
        (ListOf(Integer(0, 9)), "[1, 2"),
        (ListOf(Integer(0, 9)), "[1]\nx = 2"),
        (Rlimit(), "-1"),
        (Rlimit(), "6:5"),
        (Rlimit(), "1:2:3"),
        (Rlimit(), "18446744073709551616"),
        (Text(), "a\0b"),
    ],
)
def test_text_that_a_kind_refuses(kind: Kind, text: str) -> None:
    with pytest.raises(Invalid, match="expected"):
        kind.parse(text)


def test_several_mistakes_in_a_list_are_all_told() -> None:
    with pytest.raises(Invalid) as caught:
        ListOf(Integer(0, 9)).parse("1,x,2,y")
    assert [each.place for each in caught.value.wrong] == [(1,), (3,)]


@pytest.mark.parametrize("key", keys_of(Settings))
def test_every_default_can_be_written_as_it_is_shown(key: str) -> None:
    """What `guestd check` prints can be put into the file again."""
    kind = keys_of(Settings)[key].kind
    default = kind.read(keys_of(Settings)[key].default)
    text = kind.show(default)
    if text.startswith('"'):
        text = text.strip('"')
    assert kind.parse(text) == default


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ('a"b', '"a\\"b"'),
        ({"a": 1}, "a table"),
        ("x" * 200, '"' + "x" * 76 + "..."),
        ("a\x1b[2J", "'a\\x1b[2J'"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_values_are_shown_short_and_printable(value: object, text: str) -> None:
    assert shown(value) == text


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) <= 80


def test_nearest() -> None:
    names = ("command.tape", "command.timeout", "limits.tapes")
    assert nearest("command.tpae", names) == "command.tape"
    assert nearest("tape", names) == "command.tape"
    assert nearest("tapes", names) == "limits.tapes"
    assert nearest("zzz", names) is None


def test_capabilities_are_in_the_kernel_s_order() -> None:
    assert len(CAPABILITIES) == 41
    assert CAPABILITIES[8] == "CAP_SETPCAP"
    assert CAPABILITIES[21] == "CAP_SYS_ADMIN"
    assert CAPABILITIES[40] == "CAP_CHECKPOINT_RESTORE"


# ------------------------------------------------------------------------------------- the kernel command line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  \n", []),
        ("a b=c\n", [("a", None), ("b", "c")]),
        ("a=", [("a", "")]),
        ("a=b=c", [("a", "b=c")]),
        ('a="b c" d', [("a", "b c"), ("d", None)]),
        ('"a=b c" d', [("a", "b c"), ("d", None)]),
        ('"a b"', [("a b", None)]),
        ('a=b" "c', [("a", 'b" "c')]),
        ('a="b"c', [("a", 'b"c')]),
        ('a=""', [("a", "")]),
        ('a="b c', [("a", "b c")]),
        ('"a="b""', [("a", 'b"')]),
        ("a=\\ b", [("a", "\\"), ("b", None)]),
        ("-- x", [("--", None), ("x", None)]),
    ],
)
def test_words_are_taken_apart_as_the_kernel_does(text: str, words: list[tuple[str, str | None]]) -> None:
    assert list(kernel_words(text)) == words


@given(st.lists(st.text(st.characters(exclude_characters='"', codec="utf-8"))))
def test_quotes_carry_any_value(values: list[str]) -> None:
    line = " ".join(f'k="{value}"' for value in values)
    assert list(kernel_words(line)) == [("k", value) for value in values]


@given(st.text(alphabet='ab=" \t-'))
def test_every_word_is_found_once(text: str) -> None:
    """Outside quotes the words are those between white space."""
    if '"' not in text:
        found = [name if value is None else f"{name}={value}" for name, value in kernel_words(text)]
        assert found == text.split()
    else:
        assert len(list(kernel_words(text))) <= len(text.split())
