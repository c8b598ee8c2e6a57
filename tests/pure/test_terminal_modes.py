"""Modes, titles, colours, links and keys: what the terminal model knows beyond its cells."""

from __future__ import annotations

from typing import Any

import pytest

from guestd.terminal.model import TerminalModel
from guestd.terminal.widths import PLAIN, WIDTHS
from tests.support.terminal import differences, fed


def state(data: str) -> dict[str, Any]:
    """After `data`, which a restore must be able to tell, too."""
    model = fed(data)
    other = TerminalModel(20, 4, history=20)
    other.feed(model.restore())
    found = model.state()
    assert differences(found, other.state()) == {}
    return found


@pytest.mark.parametrize("mode", [1, 5, 45, 66, 1004, 2004, 2026])
def test_modes_that_begin_off(mode: int) -> None:
    assert mode not in state("")["private"]
    assert mode in state(f"\x1b[?{mode}h")["private"]
    assert mode not in state(f"\x1b[?{mode}h\x1b[?{mode}l")["private"]


@pytest.mark.parametrize("mode", [7, 25])
def test_modes_that_begin_on(mode: int) -> None:
    assert mode in state("")["private"]
    assert mode not in state(f"\x1b[?{mode}l")["private"]


def test_the_keypad_has_two_ways_to_be_switched() -> None:
    assert 66 in state("\x1b=")["private"]
    assert 66 not in state("\x1b[?66h\x1b>")["private"]


@pytest.mark.parametrize(
    ("data", "mouse"),
    [
        ("\x1b[?9h", (9, 0)),
        ("\x1b[?1000;1006h", (1000, 1006)),
        ("\x1b[?1000h\x1b[?1002h\x1b[?1003h\x1b[?1015h\x1b[?1006h", (1003, 1006)),
        ("\x1b[?1003h\x1b[?1003l", (0, 0)),
        ("\x1b[?1006h\x1b[?1005l", (0, 1006)),
        ("\x1b[?1016h", (0, 1016)),
        ("\x1b[?1005h", (0, 1005)),
        ("\x1b[?1006h\x1b[?1006l", (0, 0)),
    ],
)
def test_the_mouse_has_one_protocol_and_one_encoding(data: str, mouse: tuple[int, int]) -> None:
    assert state(data)["mouse"] == mouse


def test_a_mode_that_is_the_persons_own_is_told_once_a_program_has_touched_it() -> None:
    assert b"?1007" not in fed("").restore()
    assert state("\x1b[?1007l")["loose"] == {1007: False}


def test_synchronised_output_is_left_on_only_when_the_program_has_it_on() -> None:
    assert fed("\x1b[?2026h").restore().rfind(b"\x1b[?2026h") > fed("").restore().find(b"\x1b[?2026h")
    assert fed("").restore().rfind(b"\x1b[?2026l") > fed("").restore().rfind(b"\x1b[?2026h")


@pytest.mark.parametrize("style", range(7))
def test_the_shape_of_the_cursor(style: int) -> None:
    assert state(f"\x1b[{style} q")["style"] == style


def test_insert_and_newline_mode() -> None:
    assert state("\x1b[4h")["insert"]
    assert not state("\x1b[4h\x1b[4l")["insert"]
    assert state("\x1b[20h")["newline"]


def test_a_soft_reset_keeps_the_screen() -> None:
    found = state("text\x1b[?25l\x1b[?6h\x1b[4h\x1b[2;3r\x1b[1m\x1b(0\x1b[?2004h\x1b[!p")
    assert found["private"] == [7, 25]
    assert found["charsets"] == ("BBBB", 0)
    assert "".join(found["main"][0][0]) == "text"


def test_keys_options() -> None:
    assert state("\x1b[>4;2m")["keys"] == {4: 2}
    assert state("\x1b[>4;2m\x1b[>4m")["keys"] == {}
    assert state("\x1b[>4;2m\x1b[>4;0m")["keys"] == {}


@pytest.mark.parametrize(
    ("data", "stack"),
    [
        ("\x1b[>1u", (0, 1)),
        ("\x1b[>1u\x1b[>5u\x1b[<u", (0, 1)),
        ("\x1b[>1u\x1b[<9u", (0,)),
        ("\x1b[=5u", (5,)),
        ("\x1b[=5;1u\x1b[=2;2u", (7,)),
        ("\x1b[=5;1u\x1b[=1;3u", (4,)),
        ("\x1b[?u", (0,)),
    ],
)
def test_kittys_keyboard_flags(data: str, stack: tuple[int, ...]) -> None:
    assert state(data)["screens"][0][-1] == stack


def test_each_screen_has_its_own_keyboard_flags() -> None:
    both = state("\x1b[>1u\x1b[?1049h\x1b[>5u")
    assert [own[-1] for own in both["screens"]] == [(0, 1), (0, 5)]
    left = state("\x1b[>1u\x1b[?1049h\x1b[>5u\x1b[?1049l")
    assert [own[-1] for own in left["screens"]] == [(0, 1), (0, 5)]


@pytest.mark.parametrize(
    ("data", "title", "icon"),
    [
        ("\x1b]0;both\x07", "both", "both"),
        ("\x1b]2;window\x1b\\", "window", None),
        ("\x1b]1;icon\x07", None, "icon"),
        ("\x1b]2;\x07", "", None),
        ("\x1b]2;a;b\x07", "a;b", None),
        ("\x1b]2;日本\x07", "日本", None),
        ("\x1b]2;broken\x18", None, None),
        ("\x1b]2;one\x1b[31m", "one", None),
    ],
)
def test_titles(data: str, title: str | None, icon: str | None) -> None:
    found = state(data)
    assert (found["title"], found["icon"]) == (title, icon)
    assert fed(data).title == (title or "")


def test_titles_that_were_pushed_come_back() -> None:
    model = fed("\x1b]0;one\x07\x1b[22;0t\x1b]0;two\x07\x1b[22;2t\x1b]2;three\x07")
    assert [entry[0] for entry in model.state()["titles"]] == [0, 2]
    for title in ("two", "one", "one"):
        model.feed(b"\x1b[23;2t")
        assert model.title == title
    assert model.state()["icon"] == "two"
    model.feed(b"\x1b[23;1t")
    assert model.state()["icon"] == "one"


def test_the_persons_own_title_is_pushed_as_such() -> None:
    model = fed("\x1b[22;0t\x1b]0;vim\x07")
    told = model.restore()
    assert told.index(b"\x1b[22;0t") < told.index(b"\x1b]2;vim")


def test_colours() -> None:
    found = state(
        "\x1b]4;1;#ff0000;2;rgb:00/11/22;3;?\x07\x1b]10;#111111;#222222;#333333\x07\x1b]111\x07\x1b]104;2\x07"
    )
    assert found["colours"] == ({1: "#ff0000"}, {10: "#111111", 12: "#333333"})


def test_a_question_for_a_colour_sets_none() -> None:
    assert state("\x1b]11;?\x07\x1b]4;1;?\x07")["colours"] is None


def test_links_are_part_of_a_cell() -> None:
    found = state("\x1b]8;id=a;http://x/;y\x07li\x1b[0mnk\x1b]8;;\x07.")
    assert [look.link for look in found["main"][0][1]] == ["id=a;http://x/;y"] * 4 + [""]


@pytest.mark.parametrize(
    "data",
    ["\x1b]7;file:///tmp\x07", "\x1b]133;A\x07", "\x1b]52;c;?\x07", "\x1bP+q544e\x1b\\", "\x1b_Gi=1\x1b\\"],
)
def test_what_is_said_to_others_shows_nothing(data: str) -> None:
    assert fed(data + "x").state() == fed("x").state()


def test_tab_stops() -> None:
    assert state("")["stops"] == [0, 8, 16]
    assert state("\x1b[4G\x1bH\x1b[9G\x1b[g")["stops"] == [0, 3, 16]
    assert state("\x1b[3g")["stops"] == []


def test_margins_are_each_screens_own() -> None:
    found = state("\x1b[2;3r\x1b[?1049h\x1b[1;2r")
    assert [own[:2] for own in found["screens"]] == [(1, 2), (0, 1)]


@pytest.mark.parametrize(
    ("char", "width"),
    [("a", 1), ("é", 1), ("日", 2), ("\u0301", 0), ("\u200d", 0), ("👍", 2), ("\xad", 1), ("한", 2)],
)
def test_widths(char: str, width: int) -> None:
    assert WIDTHS[char] == width


def test_runs_that_are_put_down_as_they_are_hold_only_what_is_one_cell_wide() -> None:
    import re

    plain = re.compile(f"[{PLAIN}]")
    assert [hex(code) for code in range(0x10000) if plain.match(chr(code)) and WIDTHS[chr(code)] != 1] == []
