"""Another size: lines of the main screen are wrapped anew, rows come from the history and go into it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.terminal import cursor, differences, fed, history, outputs, screen

SIZES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), max_size=4)


def test_a_narrower_screen_wraps_lines_and_a_wider_one_joins_them() -> None:
    model = fed("0123456789" * 3 + "\r\nend\r\n", 40, 6)
    model.resize(10, 6)
    assert screen(model) == ["0123456789", "0123456789", "0123456789", "end", "", ""]
    assert cursor(model) == (0, 4)
    model.resize(40, 6)
    assert screen(model)[:2] == ["0123456789" * 3, "end"]
    assert cursor(model) == (0, 2)


def test_the_line_of_the_cursor_is_left_to_its_program() -> None:
    model = fed("0123456789", 20, 3)
    model.resize(5, 3)
    assert screen(model)[0] == "01234"


def test_a_lower_screen_gives_rows_to_the_history_and_a_higher_one_takes_them_back() -> None:
    model = fed("1\r\n2\r\n3\r\n4", 10, 4)
    model.resize(10, 2)
    assert (history(model), screen(model)) == (["1", "2"], ["3", "4"])
    model.resize(10, 4)
    assert (history(model), screen(model)) == ([], ["1", "2", "3", "4"])
    assert cursor(model) == (1, 3)


def test_rows_below_the_cursor_go_first() -> None:
    model = fed("1\r\n2", 10, 4)
    model.resize(10, 2)
    assert (history(model), screen(model)) == ([], ["1", "2"])


def test_the_alternate_screen_is_cut_and_padded() -> None:
    model = fed("main line of text\r\n\x1b[?1049h\x1b[H0123456789", 20, 3)
    model.resize(5, 2)
    assert screen(model) == ["01234", ""]
    model.resize(10, 3)
    assert screen(model)[0] == "01234"
    model.feed(b"\x1b[?1049l")
    model.resize(20, 3)
    assert screen(model)[0] == "main line of text"


def test_a_wide_character_is_not_cut_when_lines_are_wrapped() -> None:
    model = fed("a" + "日" * 6 + "\r\n", 20, 4)
    model.resize(6, 4)
    assert screen(model)[:3] == ["a日日", "日日日", "日"]


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (10_000, 10_000), (1, 50), (500, 1)])
def test_any_size_is_taken(size: tuple[int, int]) -> None:
    model = fed("text 日本 \x1b[31mred\r\n" * 20, 20, 4)
    model.resize(*size)
    assert (model.columns, model.rows) == (max(size[0], 1), max(size[1], 1))
    model.feed("日本".encode() + b"x" * 100)
    model.resize(20, 4)
    assert len(screen(model)) == 4


def test_tab_stops_reach_into_new_columns() -> None:
    model = fed("\x1b[4G\x1bH", 10, 2)
    model.resize(30, 2)
    assert model.state()["stops"] == [0, 3, 8, 16, 24]


def test_the_scroll_region_is_the_whole_screen_again() -> None:
    model = fed("\x1b[2;3r", 10, 4)
    model.resize(10, 5)
    assert model.state()["screens"][0][:2] == (0, 4)


@example("é日本\x1b[E".encode(), [(1, 1)], b"")
@given(outputs(40), SIZES, outputs(20))
def test_a_storm_of_sizes_leaves_a_screen_that_can_be_restored(
    data: bytes, sizes: list[tuple[int, int]], more: bytes
) -> None:
    model = fed(data)
    for size in sizes:
        model.resize(*size)
        model.feed(more)
    other = fed(model.restore(), model.columns, model.rows)
    assert differences(model.state(), other.state()) == {}
    shown = model.state()
    assert len(shown["main"]) == model.rows
    assert len(shown["history"]) <= 20
    assert all(len(row[0]) <= model.columns for row in shown["main"])
