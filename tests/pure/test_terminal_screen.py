"""What text and control sequences do to the screen of the terminal model."""

from __future__ import annotations

import pytest

from guestd.terminal.model import TerminalModel
from guestd.terminal.pens import (
    BLINK,
    BOLD,
    DIM,
    DIRECT,
    HIDDEN,
    INDEXED,
    INVERSE,
    ITALIC,
    OVERLINED,
    STRUCK,
    Look,
)
from tests.support.terminal import cursor, fed, history, screen


def looks(data: str, y: int = 0) -> list[Look]:
    return fed(data).state()["main"][y][1]


def test_text_goes_on_where_the_cursor_is() -> None:
    model = fed("one\r\ntwo\x1b[1;2HN\x1b[3;5Hx")
    assert screen(model) == ["oNe", "two", "    x", ""]
    assert cursor(model) == (5, 2)


def test_lines_leave_into_the_history() -> None:
    model = fed("".join(f"{n}\r\n" for n in range(30)), history=5)
    assert screen(model) == ["27", "28", "29", ""]
    assert history(model) == ["22", "23", "24", "25", "26"]


def test_a_full_row_wraps_with_the_next_character_only() -> None:
    model = fed("x" * 20)
    assert cursor(model) == (20, 0)
    model.feed(b"y")
    assert cursor(model) == (1, 1)
    assert [row[2] for row in model.state()["main"]] == [False, True, False, False]


def test_a_carriage_return_calls_the_wrap_off() -> None:
    assert screen(fed("x" * 20 + "\ry")) == ["y" + "x" * 19, "", "", ""]


def test_without_wrapping_the_last_cell_is_overwritten() -> None:
    assert screen(fed("\x1b[?7l" + "x" * 30 + "y")) == ["x" * 19 + "y", "", "", ""]


def test_a_wide_character_that_does_not_fit_wraps_whole() -> None:
    model = fed("x" * 19 + "日本")
    assert screen(model) == ["x" * 19, "日本", "", ""]
    assert cursor(model) == (4, 1)


@pytest.mark.parametrize("over", ["\x1b[1Gx", "\x1b[2Gx"])
def test_overwriting_half_of_a_wide_character_takes_it_away(over: str) -> None:
    shown = screen(fed("日b" + over))[0]
    assert "日" not in shown
    assert shown.replace(" ", "") == "xb"


def test_an_emoji_is_two_cells_and_its_modifier_two_more() -> None:
    assert cursor(fed("👍")) == (2, 0)
    assert cursor(fed("👍🏽")) == (4, 0)


@pytest.mark.parametrize("marked", ["e\u0301", "❤\ufe0f", "日\u0301"])
def test_marks_stay_with_their_character(marked: str) -> None:
    model = fed("a" + marked + "b")
    assert screen(model)[0] == "a" + marked + "b"
    model.feed(b"\x1b[2G\x1b[@")
    assert screen(model)[0] == "a " + marked + "b"


def test_an_endless_pile_of_marks_is_cut() -> None:
    assert len(screen(fed("e" + "\u0301" * 10_000))[0]) < 100


def test_characters_from_planes_that_are_not_assigned_are_themselves() -> None:
    assert screen(fed("a\U00040000\U000dffffb"))[0] == "a\U00040000\U000dffffb"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"a\xe6\x97b", "a\ufffdb"),
        (b"\xf0\x9f\x91x", "\ufffdx"),
        (b"\xed\xa0\x80", "\ufffd" * 3),
        (b"\xc0\x80", "\ufffd" * 2),
    ],
)
def test_what_is_no_utf_8_is_shown_as_that(data: bytes, shown: str) -> None:
    assert screen(fed(data))[0] == shown


@pytest.mark.parametrize(
    ("sequence", "wanted"),
    [
        ("\x1b[K", ["aaaaa", "bb", "ccccc", "ddddd"]),
        ("\x1b[1K", ["aaaaa", "   bb", "ccccc", "ddddd"]),
        ("\x1b[2K", ["aaaaa", "", "ccccc", "ddddd"]),
        ("\x1b[J", ["aaaaa", "bb", "", ""]),
        ("\x1b[1J", ["", "   bb", "ccccc", "ddddd"]),
        ("\x1b[2J", ["", "", "", ""]),
        ("\x1b[2X", ["aaaaa", "bb  b", "ccccc", "ddddd"]),
        ("\x1b[2P", ["aaaaa", "bbb", "ccccc", "ddddd"]),
        ("\x1b[2@", ["aaaaa", "bb  bbb", "ccccc", "ddddd"]),
        ("\x1b[L", ["aaaaa", "", "bbbbb", "ccccc"]),
        ("\x1b[M", ["aaaaa", "ccccc", "ddddd", ""]),
        ("\x1b[S", ["bbbbb", "ccccc", "ddddd", ""]),
        ("\x1b[T", ["", "aaaaa", "bbbbb", "ccccc"]),
        ("\x1b[2;3r\x1b[S", ["aaaaa", "ccccc", "", "ddddd"]),
        ("\x1b[2;3r\x1b[2H\x1bM", ["aaaaa", "", "bbbbb", "ddddd"]),
        ("\x1b[2;3r\x1b[3H\x1bD", ["aaaaa", "ccccc", "", "ddddd"]),
        ("\x1b[2;3r\x1b[3H\n", ["aaaaa", "ccccc", "", "ddddd"]),
        ("\x1b[1 @", ["aaaa", "bbbb", "cccc", "dddd"]),
        ("\x1b[1 A", [" aaaaa", " bbbbb", " ccccc", " ddddd"]),
        ("\x1b['}", ["aa aaa", "bb bbb", "cc ccc", "dd ddd"]),
        ("\x1b['~", ["aaaa", "bbbb", "cccc", "dddd"]),
        ("\x1b[4hxy", ["aaaaa", "bbxybbb", "ccccc", "ddddd"]),
        ("x\x1b[3b", ["aaaaa", "bbxxxx", "ccccc", "ddddd"]),
        ("x\x1b[m\x1b[3b", ["aaaaa", "bbxbb", "ccccc", "ddddd"]),
        ('\x1b[1"qxx\x1b[0"q\r\x1b[?K', ["aaaaa", "  xx", "ccccc", "ddddd"]),
        ("\x1b#8", ["E" * 20] * 4),
    ],
)
def test_what_each_sequence_does_to_four_rows(sequence: str, wanted: list[str]) -> None:
    assert screen(fed("aaaaa\r\nbbbbb\r\nccccc\r\nddddd\x1b[2;3H" + sequence)) == wanted


@pytest.mark.parametrize(
    ("sequence", "wanted"),
    [
        ("\x1b[A", (9, 1)),
        ("\x1b[99A", (9, 0)),
        ("\x1b[B", (9, 3)),
        ("\x1b[3C", (12, 2)),
        ("\x1b[99C", (19, 2)),
        ("\x1b[3D", (6, 2)),
        ("\x1b[E", (0, 3)),
        ("\x1b[F", (0, 1)),
        ("\x1b[5G", (4, 2)),
        ("\x1b[5`", (4, 2)),
        ("\x1b[H", (0, 0)),
        ("\x1b[2;3f", (2, 1)),
        ("\x1b[d", (9, 0)),
        ("\x1b[e", (9, 3)),
        ("\x1b[2a", (11, 2)),
        ("\t", (16, 2)),
        ("\x1b[2Z", (0, 2)),
        ("\b", (8, 2)),
        ("\x1bH\r\t\t", (9, 2)),
        ("\x1b[3g\r\t", (19, 2)),
        ("\x1b[2;4r\x1b[?6h\x1b[2;2H", (1, 2)),
        ("\x1b[2;3r\x1b[?6h\x1b[9;1H", (0, 2)),
        ("\x1b7\x1b[H\x1b8", (9, 2)),
        ("\x1b[s\x1b[H\x1b[u", (9, 2)),
        ("\x1b[20h\n", (0, 3)),
        ("\x1b[99999999999999999999C", (19, 2)),
        ("\x1b[1\x08C", (9, 2)),
        ("\x1b[1\x1b[A", (9, 1)),
        ("\x1b[3\x18A", (10, 2)),
        ("\x1b[3é", (9, 2)),
        ("\u0085", (0, 3)),
    ],
)
def test_where_each_sequence_puts_the_cursor(sequence: str, wanted: tuple[int, int]) -> None:
    assert cursor(fed("\x1b[3;10H" + sequence)) == wanted


@pytest.mark.parametrize(
    ("sgr", "look"),
    [
        ("1", Look(BOLD)),
        ("1;2;3;5;7;8;9;53", Look(BOLD | DIM | ITALIC | BLINK | INVERSE | HIDDEN | STRUCK | OVERLINED)),
        ("1;2;22", Look()),
        ("4", Look(underline=1)),
        ("4:3", Look(underline=3)),
        ("21", Look(underline=2)),
        ("4:3;24", Look()),
        ("31;44", Look(foreground=2, background=5)),
        ("97;100", Look(foreground=16, background=9)),
        ("38;5;200;1", Look(BOLD, INDEXED + 200)),
        ("38:5:200;1", Look(BOLD, INDEXED + 200)),
        ("38;2;1;2;3;1", Look(BOLD, DIRECT + 0x010203)),
        ("48:2::1:2:3", Look(background=DIRECT + 0x010203)),
        ("48:2:1:2:3", Look(background=DIRECT + 0x010203)),
        ("4;58;5;9", Look(underline=1, underline_colour=INDEXED + 9)),
        ("4;58:2::1:2:3;59", Look(underline=1)),
        ("31;0;1", Look(BOLD)),
        ("31;39;44;49", Look()),
        ("31;;1", Look(BOLD)),
        ("38;5", Look(foreground=INDEXED)),
        ("999", Look()),
    ],
)
def test_what_each_sgr_makes_of_a_plain_pen(sgr: str, look: Look) -> None:
    assert fed(f"\x1b[{sgr}mx").state()["pen"] == look
    if look != Look():
        assert looks(f"\x1b[{sgr}mx") == [look]


def test_what_is_erased_has_the_background_of_the_pen_and_nothing_else() -> None:
    assert looks("\x1b[1;7;31;44m\x1b[3X") == [Look(background=5)] * 3
    assert looks("\x1b[4;44m\x1b[K") == [Look(background=5)] * 20


def test_a_row_that_scrolls_in_has_the_background_of_the_pen() -> None:
    assert fed("\x1b[44m\n\n\n\n").state()["main"][3][1] == [Look(background=5)] * 20


@pytest.mark.parametrize("enter", [47, 1047, 1049])
def test_the_alternate_screen_leaves_the_main_one_as_it_was(enter: int) -> None:
    model = fed(f"main\x1b[?{enter}h\x1b[2J\x1b[Hother" + "\n" * 50)
    assert model.alternate
    assert history(model) == []
    model.feed(f"\x1b[?{enter}l".encode())
    assert not model.alternate
    assert screen(model)[0] == "main"
    assert cursor(model) == ((4, 0) if enter == 1049 else (5, 3))


def test_the_alternate_screen_is_empty_each_time() -> None:
    assert screen(fed("\x1b[?1049hother\x1b[?1049l\x1b[?1049h")) == ["", "", "", ""]


@pytest.mark.parametrize(
    "data", ["\x1b(0lqk", "\x1b)0\x0elqk", "\x1b*0\x1bnlqk", "\x1b+0\x1bolqk", "\x1b(0\x1b7\x1b(B\x1b8lqk"]
)
def test_lines_are_drawn_with_letters(data: str) -> None:
    assert screen(fed(data))[0] == "┌─┐"


def test_a_single_shift_is_for_one_character() -> None:
    assert screen(fed("\x1b*0\x1bNqq"))[0] == "─q"
    assert screen(fed("\x1b+A\x1bO##"))[0] == "£#"


def test_a_full_reset_forgets_all_but_the_title() -> None:
    model = fed("\x1b]0;kept\x07\x1b[31m\x1b[?1049htext\x1b[?2004h\x1b[2;3r\x1b(0\x1bc")
    fresh = fed("\x1b]0;kept\x07")
    assert model.state() == fresh.state()


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("columns", [0, 1, 2])
def test_the_smallest_terminals_take_anything(columns: int, rows: int) -> None:
    model = TerminalModel(columns, rows)
    model.feed("word 日本 👍\r\n\t\x1b[5;5Hx\x1b[2;3r\x1b[3L\x1b[?1049h日\x1b[9@\x1b[2P".encode())
    model.restore()
    assert (model.columns, model.rows) == (max(columns, 1), max(rows, 1))
