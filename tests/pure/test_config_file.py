"""The lines of a TOML file: each key and item is found where it stands, however it is written."""

from __future__ import annotations

import tomllib
import unittest.mock
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd._config_file import NotToml, _Walk, read_file
from guestd._config_kinds import as_list, as_table

FILE = '''\
# 1
top = 1
dotted . "quoted \\u0041.x" = """2 # [no]
 3 = "" ""\\""""
'lit.eral' = \'\'\'
 [not a table]
\'\'\'

[ one . two ]   # 9
list = [
  "a, ]", # 11 ]
  [ 1,
    2 ],
  { x = 1, y = [ 5,
      6 ] },
]
when = 1979-05-27 07:32:00 # 17
float = -1.5e3

[[ several ]]
a = 1
[several.below]
b = 2
[[several]]
a = '#'
  [[several.deep]]
  c = 3
  [[several.deep]]
  c = ""
'''
LINES = {
    ("top",): 2,
    ("dotted",): 3,
    ("dotted", "quoted A.x"): 3,
    ("lit.eral",): 5,
    ("one",): 9,
    ("one", "two"): 9,
    ("one", "two", "list"): 10,
    ("one", "two", "list", 0): 11,
    ("one", "two", "list", 1): 12,
    ("one", "two", "list", 1, 0): 12,
    ("one", "two", "list", 1, 1): 13,
    ("one", "two", "list", 2): 14,
    ("one", "two", "list", 2, "x"): 14,
    ("one", "two", "list", 2, "y"): 14,
    ("one", "two", "list", 2, "y", 0): 14,
    ("one", "two", "list", 2, "y", 1): 15,
    ("one", "two", "when"): 17,
    ("one", "two", "float"): 18,
    ("several",): 20,
    ("several", 0): 20,
    ("several", 0, "a"): 21,
    ("several", 0, "below"): 22,
    ("several", 0, "below", "b"): 23,
    ("several", 1): 24,
    ("several", 1, "a"): 25,
    ("several", 1, "deep"): 26,
    ("several", 1, "deep", 0): 26,
    ("several", 1, "deep", 0, "c"): 27,
    ("several", 1, "deep", 1): 28,
    ("several", 1, "deep", 1, "c"): 29,
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_way_to_write_a_key_has_its_line(end: str) -> None:
    found, lines = read_file(FILE.replace("\n", end).encode())
    assert found == tomllib.loads(FILE)
    assert lines == LINES


def places(value: object, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """All places there are in a value."""
    found: set[tuple[str | int, ...]] = set()
    for name, each in [*(as_table(value) or {}).items(), *enumerate(as_list(value) or [])]:
        found |= {(*at, name)} | places(each, (*at, name))
    return found


def test_every_place_of_the_sample_has_a_line_and_no_other() -> None:
    assert places(tomllib.loads(FILE)) == set(LINES)


NAMES = st.one_of(
    st.text("abc-_1", min_size=1, max_size=3),
    st.text("a .=#[]'", max_size=4).map(lambda text: f'"{text}"'),
    st.text('a .=#[]"\\', max_size=4).map(lambda text: f"'{text}'"),
)
SPACE = st.sampled_from(["", " ", "\t "])
BREAK = st.sampled_from(["", " ", "\n", "  # ]}\"'\n", "\n\n"])
SCALARS = st.sampled_from(
    [
        "1",
        "true",
        "-0.5",
        "1979-05-27 07:32:00",
        '"#]}\\"\\\\"',
        "'\\'",
        '"""\n"" # \\""" """',
        "'''\n[x]\n'''",
        "''''a'''''",
        '""',
        "''",
    ]
)


@st.composite
def items(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    parts = [f"{draw(BREAK)}{draw(values)}{draw(BREAK)}" for _ in range(draw(st.integers(0, 3)))]
    return "[" + ",".join(parts) + (draw(BREAK) or " ") + "]"


@st.composite
def inline(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    pairs = [
        f"k{n}{draw(SPACE)}={draw(SPACE)}{draw(values)}{draw(SPACE)}" for n in range(draw(st.integers(0, 3)))
    ]
    return "{" + draw(SPACE) + ",".join(pairs) + "}"


VALUES = st.recursive(SCALARS, lambda values: items(values) | inline(values), max_leaves=8)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Lines of TOML; some repeat a key and are no TOML after all."""
    text = ""
    for _ in range(draw(st.integers(0, 8))):
        name = f"{draw(SPACE)}.{draw(SPACE)}".join(draw(st.lists(NAMES, min_size=1, max_size=2)))
        left, right = draw(st.sampled_from([("", ""), ("", ""), ("[", "]"), ("[[", "]]")]))
        text += draw(st.sampled_from(["", "\n", "# '''\n"])) + draw(SPACE)
        text += (
            f"{left}{draw(SPACE)}{name}{draw(SPACE)}{right}"
            if left
            else f"{name} ={draw(SPACE)}{draw(VALUES)}"
        )
        text += draw(st.sampled_from(["\n", '  # "\n']))
    return text


@given(documents())
def test_any_file_has_a_line_for_each_place_at_which_the_key_stands(text: str) -> None:
    try:
        found, lines = read_file(text.encode())
    except NotToml:
        return
    assert found == tomllib.loads(text)
    # An empty list of tables has no items, so each place of the value, and no other, has a line.
    assert set(lines) == places(found)
    rows = text.split("\n")
    for place, line in lines.items():
        assert 1 <= line <= len(rows)
        # Whatever stands before a key's line is TOML without that key, when it is TOML at all.
        if len(place) == 1:
            try:
                before = tomllib.loads("\n".join(rows[: line - 1]))
            except tomllib.TOMLDecodeError:
                continue
            assert place[0] not in before


@given(st.text())
def test_any_text_is_read_or_has_a_line(text: str) -> None:
    line = 1
    try:
        read_file(text.encode())
    except NotToml as error:
        line = error.line
    assert 1 <= line <= text.count("\n") + 1


@given(st.text(alphabet="a1=[]{},.'\"\\#\n "))
def test_the_walk_ends_whatever_it_is_given(text: str) -> None:
    """Start-up reads the file: a walk that does not end would be a guest that does not boot."""
    with suppress(IndexError, ValueError):
        _Walk(text).places()


def test_lines_are_not_worth_a_start() -> None:
    """TOML that a newer tomllib reads and the walk does not is in force, without lines."""
    with unittest.mock.patch("tomllib.loads", return_value={"a": 1}):
        assert read_file(b"a = \n") == ({"a": 1}, {})


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"a = 1\nb = \xff\n", 2, "byte 0xff is not UTF-8"),
        (b"a = 1\n\nb = \n", 3, "Invalid value"),
        (b"a = 1\na = 2\n", 2, "Cannot overwrite a value"),
        (b"\n\na = [1,\n", 3, ""),
        (b"a = " + b"[" * 100_000, 1, "values are nested too deeply"),
    ],
)
def test_what_is_not_toml_says_where(data: bytes, line: int, message: str) -> None:
    with pytest.raises(NotToml) as caught:
        read_file(data)
    assert caught.value.line == line
    assert caught.value.message.startswith(message)
