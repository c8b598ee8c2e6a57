"""The terminal model takes any bytes at any split, in bounded memory; the short cut for bulk output is exact."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.terminal import bulk
from guestd.terminal.model import TerminalModel
from guestd.terminal.pens import Look
from tests.support.terminal import fed, history, outputs, screen

PLAIN_LINES = st.lists(
    st.sampled_from(
        [
            b"a line of text\r\n", b"\x1b[32mok\x1b[0m 12 tests\r\n", b"\x1b[1;31mred", b"x" * 50,
            "日本語\r\n".encode(), b"\t\ttab\r\n",
            b"50%\r\x1b[K60%\r\n", b"\x1b[44m\r\n", b"no return\n", b"\b\bback", "e\u0301\r\n".encode(),
            b"\xff\r\n", b"\r\n" * 7,
            b"\x1b[0m",
        ]
    ),
    min_size=5,
    max_size=60,
)  # fmt: skip


@given(outputs(), st.lists(st.integers(0, 2000)))
def test_any_split_is_the_same_as_the_whole(data: bytes, cuts: list[int]) -> None:
    whole = fed(data)
    split = TerminalModel(20, 4, history=20)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        split.feed(memoryview(data)[start:end])
    assert split.state() == whole.state()
    assert split.restore() == whole.restore()


@given(outputs(20), st.sampled_from([1, 500, 1500, 5000]), st.integers(1, 6000))
def test_any_split_of_long_output_is_the_same_as_the_whole(data: bytes, times: int, size: int) -> None:
    data = (
        (data + b"a line of text\r\n") * (1 + 20 * times // 1500)
        + b"\x1b]0;"
        + b"t" * times
        + b"\x07"
        + data * 3
    )
    whole, split = fed(data), TerminalModel(20, 4, history=20)
    for at in range(0, len(data), size):
        split.feed(data[at : at + size])
    assert split.state() == whole.state()


@given(outputs(30))
def test_byte_by_byte_is_the_same_as_the_whole(data: bytes) -> None:
    split = TerminalModel(20, 4, history=20)
    for byte in data:
        split.feed(bytearray([byte]))
    assert split.state() == fed(data).state()


@given(st.binary(max_size=3000), st.integers(1, 12), st.integers(1, 5))
def test_garbage_is_taken(data: bytes, columns: int, rows: int) -> None:
    model = fed(data, columns, rows)
    model.feed(b"\x1b[" + data)
    model.skim(data)
    model.lost()
    model.resize(rows, columns)
    again = TerminalModel(rows, columns)
    again.feed(model.restore())


# ------------------------------------------------------------------------------------------------------------- bulk


@given(PLAIN_LINES, outputs(20), st.integers(1, 4), st.integers(1, 40), st.booleans())
def test_bulk_output_leads_to_what_a_slow_terminal_shows(
    lines: list[bytes], before: bytes, rows: int, times: int, alternate: bool
) -> None:
    before += b"\x18\x1b[?1049h" if alternate else b"\x18"
    data = b"".join(lines) * times * 8
    slow, quick = (TerminalModel(12, rows, history=6) for _ in range(2))
    for model in (slow, quick):
        model.feed(before)
    for at in range(0, len(data), 500):  # below what is worth keeping back
        slow.feed(data[at : at + 500])
        slow.catch_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "MOST", 4000)
        patch.setattr(bulk, "TOO_MUCH", 3000)
        for at in range(0, len(data), 5000):
            quick.feed(data[at : at + 5000])
    assert quick.state() == slow.state()


def test_bulk_output_is_not_kept() -> None:
    model = TerminalModel(80, 24)
    data = b"a line of text that is long enough to be one\r\n" * 20_000
    tracemalloc.start()
    for _ in range(10):
        model.feed(data)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2_000_000
    assert screen(model)[0] == "a line of text that is long enough to be one"


def test_something_odd_in_the_middle_of_bulk_output_is_seen() -> None:
    lines = b"text\r\n" * 3000
    model = fed(lines + b"\x1b]0;title\x07\x1b[?2004h" + lines + b"end")
    assert model.title == "title"
    assert 2004 in model.state()["private"]
    assert screen(model)[-1] == "end"


def test_colours_in_what_was_dropped_count() -> None:
    model = fed(b"\x1b[1m\x1b[31mred\r\n" + b"text\r\n" * 200_000)
    assert model.state()["pen"] == Look(1, foreground=2)


def test_a_line_of_five_megabytes_is_one_line() -> None:
    model = fed(b"0123456789" * 500_000, 17, 4, history=20)
    slow = fed(b"0123456789" * 100 * 17, 17, 4, history=20)
    assert model.state()["cursor"][0] == 5_000_000 % 17
    assert len(history(model)) == 20
    slow.feed(b"0123456789" * 10)
    shown = "".join(history(model) + screen(model))
    assert shown in "0123456789" * 100
    assert shown.endswith("9")


def test_bulk_output_in_a_scroll_region_stays_in_it() -> None:
    model = fed(b"top\x1b[2;3r\x1b[2H" + b"text\r\n" * 200_000 + b"end")
    assert screen(model) == ["top", "text", "end", ""]


# ----------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "start",
    [b"\x1b]0;", b"\x1b]52;c;", b"\x1bPq", b"\x1b_G", b"\x1b^", b"\x1bX", b"\x1b[1;", b"\x1b(", b"\x1b]8;;"],
)
def test_a_sequence_without_end_is_not_collected(start: bytes) -> None:
    model = fed(start)
    piece = b" " * 65536 if start == b"\x1b(" else b"1" * 65536
    tracemalloc.start()
    for _ in range(20):
        model.feed(piece)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    model.feed(b"\x07\x1b\\\x18text")
    assert screen(model)[0] == "text"


def test_looks_and_clusters_that_are_gone_are_forgotten() -> None:
    model = TerminalModel(20, 4, history=10)
    for number in range(0, 1 << 24, 1 << 10):
        mark = (
            chr(0x300 + (number >> 10) % 64) + chr(0x300 + (number >> 16) % 64) + chr(0x300 + (number >> 22))
        )
        model.feed(
            f"\x1b[38;2;{number >> 16};{number >> 8 & 255};{number & 255}me{mark}\x1b]8;;http://{number}\x07".encode()
        )
    assert len(model._terminal.pens._looks) < 3000
    assert len(model._terminal.clusters._texts) < 5000
    assert screen(model)[-1].startswith("e")
    again = TerminalModel(20, 4, history=10)
    again.feed(model.restore())
    assert again.state()["main"] == model.state()["main"]


def test_stacks_are_bounded() -> None:
    model = fed("\x1b[22t\x1b[>1u\x1b[>4;2m" * 10_000 + "".join(f"\x1b[>{n};1m" for n in range(100)))
    state = model.state()
    assert len(state["titles"]) <= 20
    assert len(state["screens"][0][-1]) <= 16
    assert len(state["keys"]) <= 8


def test_titles_and_links_are_bounded_and_hold_no_controls() -> None:
    model = fed(b"\x1b]0;" + b"t" * 3000 + b"\x07")
    assert len(model.title) == 1024
    model.feed(b"\x1b]0;a\x01\x02b\xc2\x80\x07")
    assert "\x01" not in model.title


def test_an_empty_terminal_costs_little_and_a_huge_one_no_cells() -> None:
    TerminalModel(80, 24)
    tracemalloc.start()
    model = TerminalModel(80, 24)
    small, _ = tracemalloc.get_traced_memory()
    huge = TerminalModel(10_000, 10_000)
    both, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert small < 16_384
    assert both < 2_000_000
    assert (model.columns, huge.columns) == (80, 10_000)


# ------------------------------------------------------------------------------------------------- what was not seen


def test_skimmed_output_leaves_what_outlasts_the_screen() -> None:
    model = fed("shown")
    assert model.exact
    model.skim(
        b"not shown\r\n\x1b[31m\x1b[2J\x1b[?2004h\x1b]0;title\x07\x1b(0\x1b[?1049h\x1b[>1u\x1b[2;3r\x1b[?25"
    )
    assert not model.exact
    assert model.title == "title"
    assert model.alternate
    state = model.state()
    assert state["pen"] == Look(foreground=2)
    assert {2004, 25} <= set(state["private"])
    assert state["charsets"] == ("0BBB", 0)
    assert state["screens"][1][:2] == (1, 2)
    model.feed(b"l\x1b[?1049lq")
    assert 25 not in model.state()["private"]
    assert screen(model)[0] == "shown─"


@given(outputs(30), outputs(30))
def test_skimming_leaves_the_same_modes_as_seeing(before: bytes, data: bytes) -> None:
    seen, skimmed = fed(before), fed(before)
    seen.feed(data)
    skimmed.skim(data)
    for name in (
        "private",
        "insert",
        "newline",
        "mouse",
        "loose",
        "keys",
        "style",
        "title",
        "icon",
        "titles",
        "colours",
    ):
        assert skimmed.state()[name] == seen.state()[name], name
    assert skimmed.alternate == seen.alternate


def test_after_a_loss_a_sequence_is_not_completed() -> None:
    model = fed(b"\x1b[31")
    model.lost()
    model.feed(b"mx")
    assert not model.exact
    assert screen(model)[0] == "mx"


def test_a_full_reset_makes_it_exact_again() -> None:
    model = fed("text")
    model.lost()
    model.feed(b"\x1bc")
    assert model.exact
