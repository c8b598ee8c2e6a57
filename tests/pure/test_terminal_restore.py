"""A restore puts any terminal of the same size into the state of the model."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.terminal.model import TerminalModel
from tests.support.terminal import FRAGMENTS, cursor, differences, fed, history, outputs, screen

SIZES = st.tuples(st.integers(1, 30), st.integers(1, 8))


def restored(model: TerminalModel, before: bytes = b"", keep: int = 20) -> TerminalModel:
    other = TerminalModel(model.columns, model.rows, history=keep)
    other.feed(before)
    other.feed(model.restore())
    return other


@given(outputs(), SIZES)
@example(b"\x1b[48;5;1m\x1b[5I\xed\x95\x9c\x0c", (15, 1))
@example("é日本👍\x1b[?7l日".encode(), (3, 2))
@example("\x1b[31m\x1b[?7l\x1b[C日".encode(), (2, 1))
@example("a\x1b[31m\x1b[?7l日".encode(), (2, 1))
def test_a_fresh_terminal_is_put_into_the_state_of_any(data: bytes, size: tuple[int, int]) -> None:
    model = fed(data, *size)
    assert differences(model.state(), restored(model).state()) == {}


@given(outputs(), outputs(), SIZES)
def test_and_so_is_one_in_any_state(data: bytes, dirt: bytes, size: tuple[int, int]) -> None:
    model = fed(data, *size)
    assert differences(model.state(), restored(model, dirt).state(), dirty=True) == {}


@given(outputs(30), outputs(30), SIZES)
def test_from_then_on_the_same_bytes_do_the_same(data: bytes, more: bytes, size: tuple[int, int]) -> None:
    model = fed(data, *size)
    other = restored(model)
    model.feed(more)
    other.feed(more)
    assert differences(model.state(), other.state()) == {}


@given(outputs(), SIZES)
def test_a_restore_of_what_was_restored_is_the_same(data: bytes, size: tuple[int, int]) -> None:
    model = fed(data, *size)
    first = restored(model)
    second = restored(first)
    assert differences(first.state(), second.state()) == {}


@given(outputs())
def test_nothing_in_a_restore_makes_a_terminal_answer(data: bytes) -> None:
    # A sequence that the model is in the middle of is the program's, and may become a question.
    asked = re.compile(
        rb"\x1b\[[?>=]?[0-9;]*[cnx]|\x1b\[[0-9;?]*\$p|\x1b\[\?u|\x1bZ|\x05|\x1bP[+$]q|\x1b\][0-9;]*;\?"
    )
    model = fed(data + b"\x18")
    assert not asked.search(model.restore())


def test_what_the_terminal_showed_goes_into_its_scrollback() -> None:
    model = fed("new")
    other = restored(model, b"old one\r\nold two\x1b[H")
    assert [line for line in history(other) if line] == ["old one", "old two"]
    assert screen(other) == ["new", "", "", ""]
    assert b"\x1b[3J" not in model.restore()


def test_what_the_terminal_showed_below_a_full_screen_program_does_so_too() -> None:
    other = restored(fed("new"), b"old one\r\nold two\x1b[?1049h\x1b[2Jfull screen")
    assert [line for line in history(other) if line] == ["old one", "old two"]
    assert screen(other)[0] == "new"


def test_lines_wrap_in_the_terminal_as_they_did() -> None:
    model = fed("x" * 50 + "\r\n" + "日" * 15 + "\r\n", 21, 10)
    other = restored(model)
    other.resize(80, 10)
    assert [line for line in screen(other) if line] == ["x" * 50, "日" * 15]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (b"\x1b[3", b"1mx", "x"),
        (b"\x1b", b"[31mx", "x"),
        (b"\xe6\x97", b"\xa5", "日"),
        (b"\x1b]2;ti", b"tle\x07x", "x"),
        (b"\x1bPq" + b"#" * 9000, b"###\x1b\\x", "x"),
        (b"\x1b]52;c;" + b"A" * 9000, b"AAA\x07x", "x"),
        (b"\x1b[" + b"1;" * 9000, b"1mx", "x"),
        (b"\x1b(", b"0q", "─"),
    ],
)
def test_a_sequence_that_has_begun_is_completed_by_what_follows(
    before: bytes, after: bytes, shown: str
) -> None:
    model = fed(before)
    other = restored(model)
    for one in (model, other):
        one.feed(after)
    assert screen(model)[0] == screen(other)[0] == shown
    assert differences(model.state(), other.state()) == {}


def test_a_background_does_not_spread_over_a_row_that_a_wrap_scrolled_in() -> None:
    model = fed("1\r\n2\r\n3\r\n" + "x" * 20 + "\x1b[44my\x1b[0m\x1b[K", history=9)
    other = restored(model)
    assert differences(model.state(), other.state()) == {}
    assert len(other.state()["main"][-1][1]) == 1


def test_a_string_too_long_to_keep_is_not_told_in_part() -> None:
    assert b"AAAA" not in fed(b"\x1b]52;c;" + b"A" * 9000).restore()


def test_the_wrap_that_is_about_to_be_made_is_made() -> None:
    other = restored(fed("x" * 20))
    other.feed(b"y")
    assert screen(other)[:2] == ["x" * 20, "y"]


def test_a_character_is_repeated_after_a_restore() -> None:
    other = restored(fed("ab"))
    other.feed(b"\x1b[3b")
    assert screen(other)[0] == "abbbb"


def test_a_title_that_no_program_set_is_left_to_the_person() -> None:
    assert b"\x1b]2;" not in fed("text").restore()
    assert restored(fed("\x1b]2;mine\x07"), b"\x1b]2;theirs\x07").title == "mine"


def test_colours_that_no_program_changed_are_left_to_the_person() -> None:
    assert b"\x1b]104" not in fed("text").restore()
    changed = fed("\x1b]4;1;#ff0000\x07\x1b]104\x07")
    assert restored(changed, b"\x1b]4;1;#00ff00\x07").state()["colours"] == ({}, {})


def test_the_cursor_of_the_main_screen_is_where_it_was_once_the_program_ends() -> None:
    model = fed("$ vim\x1b[?1049h\x1b[2J\x1b[3;3Htext")
    other = restored(model)
    other.feed(b"\x1b[?1049l!")
    assert screen(other)[0] == "$ vim!"
    assert cursor(other) == (6, 0)


def test_every_fragment_alone() -> None:
    for fragment in FRAGMENTS:
        model = fed(b"some text\r\n" + fragment)
        assert differences(model.state(), restored(model, b"dirt\x1b[44m").state(), dirty=True) == {}, (
            fragment
        )
