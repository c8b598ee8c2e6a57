"""What guestctl does with a person's terminal: every mode undone, every key found, no old question answered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.ctl import keys, statusline, values
from guestd.ctl.cast import Cast
from guestd.ctl.keys import Key, Keys
from guestd.ctl.modes import Modes
from guestd.ctl.questions import Questions

AT_REST = Modes().undo()


def cuts(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """The same bytes, in any pieces."""

    def cut(places: list[int]) -> list[bytes]:
        ends = [*sorted(places), len(data)]
        return [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    return st.lists(st.integers(0, len(data)), max_size=8).map(cut)


# ---------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    ("output", "undone"),
    [
        (b"plain text\r\n\x1b[1;31mred\x1b[0m", b""),
        (b"\x1b[?1049h", b"\x1b[?1049l"),
        (b"\x1b[?1049h\x1b[?1049l", b""),
        (b"\x1b[?47h", b"\x1b[?47l"),
        (b"\x1b[?1000;1006h", b"\x1b[?1000l\x1b[?1006l"),
        (b"\x1b[?1000h\x1b[?2004h\x1b[?1000l", b"\x1b[?2004l"),
        (b"\x1b[?2026h", b"\x1b[?2026l"),
        (b"\x1b[?12h\x1b[?1034h", b""),
        (b"\x1b[>1u\x1b[>5u", b"\x1b[<2u"),
        (b"\x1b[>1u\x1b[<u", b""),
        (b"\x1b[<3u", b""),
        (b"\x1b[5;10r", b"\x1b7\x1b[r\x1b8"),
        (b"\x1b[5;10r\x1b[r", b""),
        (b"\x1b[>4;2m", b"\x1b[>4m"),
        (b"\x1b[>4;2m\x1b[>4;0m", b""),
        (b"\x1b=", b"\x1b>"),
        (b"\x1b=\x1b>", b""),
        (b"\x1b[4 q", b"\x1b[0 q"),
        (b"\x1b]11;#000000\x07\x1b]4;1;red\x1b\\", b"\x1b]111\x1b\\\x1b]104\x1b\\"),
        (b"\x1b[?1049h\x1b[?1003h\x1bc", b""),
        # In the order in which each can still be undone.
        (
            b"\x1b[?1049h\x1b[>1u\x1b[2;3r\x1b[?1002h",
            b"\x1b[<1u\x1b[?1002l\x1b7\x1b[r\x1b8\x1b[?1049l",
        ),
    ],
)
def test_what_was_switched_on_is_switched_off_and_nothing_else(output: bytes, undone: bytes) -> None:
    modes = Modes()
    assert modes.feed(output) == (undone != b"")
    assert modes.undo() == undone + AT_REST


SWITCHES = (
    b"a\x1b[?1049hb\x1b[?1000;2004hc\x1b[>1ud\x1b[2;9re\x1b[3 qf\x1b]10;red\x07g\x1b=h\x1b[>4;1mi\x1b[?2004lj"
)


@given(cuts(SWITCHES))
def test_however_output_is_cut_the_same_is_undone(pieces: list[bytes]) -> None:
    whole, cut = Modes(), Modes()
    whole.feed(SWITCHES)
    for piece in pieces:
        cut.feed(piece)
    assert cut.undo() == whole.undo()


@given(st.binary(max_size=300))
def test_no_output_upsets_it(output: bytes) -> None:
    modes = Modes()
    modes.feed(output)
    modes.feed(b"\x1b[?1000h")
    # Behind the end of whatever was begun.
    modes.feed(b"\x1b[?1000h")
    assert modes.reporting


# ----------------------------------------------------------------------------------------------------------- keys

LEAVE = Key("]")


@pytest.mark.parametrize(
    ("typed", "sent", "left"),
    [
        (b"", b"", False),
        (b"ls\r", b"ls\r", False),
        (b"\x1d", b"", True),
        (b"ab\x1dcd", b"ab", True),
        (b"\x1b[93;5u", b"", True),
        (b"x\x1b[93;5:1u", b"x", True),
        (b"\x1b[93;5:3u", b"\x1b[93;5:3u", False),  # let go
        (b"\x1b[93;133u", b"", True),  # with Num Lock
        (b"\x1b[93;6u", b"\x1b[93;6u", False),  # with Shift
        (b"\x1b[93u", b"\x1b[93u", False),
        (b"\x1b[193;5u", b"\x1b[193;5u", False),
        (b"\x1b[27;5;93~", b"", True),
        (b"\x1b[27;3;93~", b"\x1b[27;3;93~", False),
        (b"\x1b[200~a\x1db\x1b[201~", b"\x1b[200~a\x1db\x1b[201~", False),
        (b"\x1b[200~a\x1b[201~\x1d", b"\x1b[200~a\x1b[201~", True),
    ],
)
def test_the_key_that_leaves_is_found_and_what_is_pasted_is_none(
    typed: bytes, sent: bytes, left: bool
) -> None:
    assert Keys(LEAVE).feed(typed) == (sent, LEAVE if left else None)


def test_a_paste_may_come_in_pieces_and_its_end_may_be_lost() -> None:
    found = Keys(LEAVE)
    assert found.feed(b"\x1b[200~a") == (b"\x1b[200~a", None)
    assert found.feed(b"b\x1dc") == (b"b\x1dc", None)
    assert found.feed(b"\x1d") == (b"", LEAVE)


def test_without_such_a_key_everything_is_the_guests() -> None:
    assert Keys().feed(b"\x1d\x03") == (b"\x1d\x03", None)
    assert Keys(LEAVE, keys.INTERRUPT).feed(b"a\x03") == (b"a", keys.INTERRUPT)


@pytest.mark.parametrize(
    ("text", "letter"), [("ctrl-]", "]"), ("Ctrl+Q", "q"), ("^A", "a"), ("C-\\", "\\"), ("none", None)]
)
def test_a_key_is_written_as_people_write_it(text: str, letter: str | None) -> None:
    assert values.control_key(text) == letter


@pytest.mark.parametrize("text", ["", "q", "ctrl-", "ctrl-1", "^[", "alt-q", "ctrl-qq", "^é"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ctrl-q or"):
        values.control_key(text)


@pytest.mark.parametrize(
    ("typed", "number"),
    [(b"abc", 3), ("äé".encode(), 2), (b"\x1b[A\x1bOP\x1bx\r", 4), (b"", 0), (b"\x1b", 1)],
)
def test_keys_are_counted_as_they_were_pressed(typed: bytes, number: int) -> None:
    assert keys.count(typed) == number


def test_what_a_terminal_reports_was_not_typed() -> None:
    assert keys.without_reports(b"a\x1b[<35;10;20Mb\x1b[I\x1b[O\x1b[M !!c\x1b[A") == b"abc\x1b[A"


# ------------------------------------------------------------------------------------------------------ questions

ASKED = (
    b"a\x1b[cb\x1b[>cc\x1b[=0cd\x1b[6ne\x1b[?6nf\x1b[5ng\x1b[?2026$ph\x1b[4$pi\x1b[14tj\x1b[18tk\x1b[?ul\x1b[>0qm"
    b"\x1b]11;?\x07n\x1b]4;1;?\x1b\\o\x1b]52;c;?\x07p\x1bP+q544e\x1b\\q\x1bP$qm\x1b\\r\x1b_Gi=1,a=q;AAAA\x1b\\s\x05t\x1bZu"
    b"\x1b[0xv"
)
UNASKED = b"abcdefghijklmnopqrstuv"
#: What draws, and looks like a question.
DRAWN = b"\x1b[1;31mx\x1b[2Jy\x1b[8;24;80tz\x1b[22;0t\x1b[1;5r\x1b[2 q\x1b]0;title; why?\x07\x1b]8;;http://a/?b\x07\x1b[>1u\x1b[u\x1b[s"


@given(cuts(ASKED))
def test_however_it_is_cut_no_question_is_left(pieces: list[bytes]) -> None:
    questions = Questions()
    assert b"".join([*map(questions.without, pieces), questions.rest()]) == UNASKED


@given(cuts(DRAWN))
def test_what_is_no_question_is_shown(pieces: list[bytes]) -> None:
    questions = Questions()
    assert b"".join([*map(questions.without, pieces), questions.rest()]) == DRAWN


@given(st.binary(max_size=200), st.integers(0, 200))
def test_only_what_is_old_is_looked_at(data: bytes, end: int) -> None:
    end = min(end, len(data))
    questions = Questions()
    old, new = data[:end], data[end:]
    assert questions.of(1000, data, 1000 + end).endswith(new)
    assert Questions().of(1000, new, 1000) == new
    assert len(Questions().without(old)) <= len(old)


# ------------------------------------------------------------------------------------------------------- the line


@given(st.text(), st.integers(-1, 300), st.integers(-1, 100))
def test_the_line_never_scrolls_and_drives_nothing(text: str, columns: int, rows: int) -> None:
    line = statusline.draw(text.replace("\x1b", "").replace("\n", ""), columns, rows)
    assert b"\n" not in line
    if columns > 0 and rows > 0:
        assert b"\x1b[%d;1H" % rows in line
        assert line.endswith(b"\x1b8")
    else:
        assert line == b""


def test_the_line_says_what_a_person_can_do() -> None:
    assert statusline.lost(2.4, "Ctrl+]", 0, watching=False) == (
        "connection lost; next try in 2 s; Ctrl+] leaves; what you type is kept"
    )
    assert (
        statusline.lost(0.1, None, 1, watching=False) == "connection lost; connecting again now; 1 key kept"
    )
    assert (
        statusline.lost(30, "Ctrl+]", 0, watching=True) == "connection lost; next try in 30 s; Ctrl+] leaves"
    )


# ----------------------------------------------------------------------------------------------------------- casts

LETTERS = "aé€😀z".encode()


@given(cuts(LETTERS))
def test_letters_are_whole_however_they_come(pieces: list[bytes]) -> None:
    cast = Cast()
    lines = [cast.output(1.0, piece) for piece in pieces]
    assert "".join(json.loads(line)[2] for line in lines if line) == LETTERS.decode()
    assert cast.rest(2.0) == ""


def test_a_letter_that_never_ends_and_bytes_that_are_none_are_shown_as_such() -> None:
    cast = Cast()
    assert json.loads(cast.output(0.0, b"a\xffb\xe2")) == [0.0, "o", "a\ufffdb"]
    first, second = cast.marker(1.0, "5 bytes are lost").splitlines()
    assert (json.loads(first), json.loads(second)) == ([1.0, "o", "\ufffd"], [1.0, "m", "5 bytes are lost"])
    assert json.loads(cast.output(2.0, b"\x82ok")) == [2.0, "o", "\ufffdok"]


@given(st.lists(st.floats(-10, 1e6), max_size=20))
def test_times_never_go_back_and_pauses_are_as_long_as_allowed(times: list[float]) -> None:
    cast = Cast(idle_limit=2.0)
    shown = [json.loads(cast.size(time, 1, 1))[0] for time in times]
    assert shown == sorted(shown)
    assert all(later - earlier <= 2.00001 for earlier, later in zip([0.0, *shown], shown, strict=False))


def test_a_header_is_what_players_expect() -> None:
    header = json.loads(Cast(3.0).header(80, 24, 1700000000.7, {"TERM": "xterm"}))
    assert header == {
        "version": 2, "width": 80, "height": 24, "timestamp": 1700000000, "env": {"TERM": "xterm"},
        "idle_time_limit": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [b"\x1b[?%sh", b"\x1b[<%su", b"\x1b[>4;%sm", b"\x1b[%sr", b"\x1b[%s q"])
def test_numbers_of_any_length_do_no_harm(kind: bytes) -> None:
    modes = Modes()
    modes.feed(kind % (b"9" * 5000))
    modes.feed(kind % (b"9" * 30))
    assert modes.undo() is not None


@pytest.mark.parametrize("question", [b"\x1b]10;?\x07", b"\x1b]11;?\x1b\\", b"\x1b]4;7;?\x07"])
def test_a_question_for_a_colour_is_no_setting_of_it(question: bytes) -> None:
    untouched, asked, split = Modes(), Modes(), Modes()
    asked.feed(question)
    for at in range(len(question)):
        split.feed(question[at : at + 1])
    assert asked.undo() == split.undo() == untouched.undo()


@pytest.mark.parametrize("setting", [b"\x1b]10;red\x07", b"\x1b]4;7;#123456\x1b\\"])
def test_a_colour_that_was_set_is_found_at_any_split(setting: bytes) -> None:
    whole = Modes()
    whole.feed(setting)
    assert whole.undo() != Modes().undo()
    for at in range(1, len(setting)):
        cut = Modes()
        cut.feed(setting[:at])
        cut.feed(setting[at:])
        assert cut.undo() == whole.undo(), at
