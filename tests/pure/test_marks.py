"""What a shell says of its commands is found in its output at every split, and nonsense does no harm."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.terminal.marks import COMMANDS_KEPT, HELD_MAX, TEXT_MAX, TITLE_MAX, TOLD_MAX, Marks

A, B = b"\x1b]133;A\x07", b"\x1b]133;B\x1b\\"


def began(line: str = "make", end: bytes = b"\x07") -> bytes:
    return b"\x1b]133;C;cmdline_url=" + quote(line.encode(), safe="").encode() + end


def ended(status: int | str = 0, end: bytes = b"\x07") -> bytes:
    return b"\x1b]133;D;" + str(status).encode() + end


def fed(stream: bytes, *cuts: int, marks: Marks | None = None, offset: int = 0) -> Marks:
    """Marks that were shown the stream, cut at these places; the clocks count the chunks."""
    marks = marks or Marks()
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(stream)}), len(stream)]
    for number, (begin, end) in enumerate(pairwise(edges)):
        marks.feed(offset + begin, stream[begin:end], 1000.0 + number, float(number))
    return marks


def byte_by_byte(stream: bytes) -> Marks:
    return fed(stream, *range(len(stream)))


def known(marks: Marks) -> dict[str, Any]:
    """All that does not depend on when it came."""
    rows = [command.to_map() for command in marks.commands]
    for row in rows:
        for name in ("started_at", "ended_at", "duration"):
            row[name] = row[name] is not None
    running = None if marks.running is None else marks.running.n
    return {
        "rows": rows,
        "running": running,
        "title": marks.title,
        "directory": marks.directory,
        "count": marks.count,
    }


def rows(marks: Marks) -> list[tuple[str, int | None]]:
    return [(command.text, command.exit) for command in marks.commands]


# --------------------------------------------------------------------------------------------- every split

SAMPLES = {
    "a command": A + b"$ " + B + b"make\r\n" + began("make") + b"built\r\n" + ended(2) + A + b"$ " + B,
    "ended by ST": A + began("ls", b"\x1b\\") + b"x" + ended(0, b"\x1b\\"),
    "two at once": A + began("a") + b"1" + ended(1) + A + began("b") + b"22" + ended(2),
    "still running": A + began("vim") + b"\x1b[?1049h\x1b[2J",
    "no D": A + began("fish") + b"..." + A + b"$ ",
    "title and directory": b"\x1b]0;root@guest: /tmp\x07\x1b]7;file://guest/tmp/a%20b\x1b\\" + A + began("x") + ended(),
    "UTF-8": b"\x1b]2;\xc3\x9cber\x07" + A + began("echo 'ü\n\"$(x)`;'") + "ü✜".encode() + ended(130),
    "not ours": b"\x1b]8;;http://x\x07link\x1b]8;;\x07\x1b]133\x07\x1b]1;x\x07\x1b]13;C\x07\x1b]52;c;QUJD\x07",
    "broken off": b"\x1b]133;C;x\x1b[0m\x1b]133;C\x18\x1b]133;C\x1a" + A + b"\x1b]133;C\x1b" + began("y") + ended(),
    "begun anew": b"\x1b]133;A" + began("z") + b"1\x1b]133;D;7" + ended(8),
    "a lone ESC": b"\x1b" + A + b"\x1b\x1b" + began() + b"\x1b" + ended() + b"\x1b",
    "a directory that is too long": b"\x1b]7;file:///" + b"%41" * 3000 + b"\x07",
    "too long to be held": A + began("x" * (HELD_MAX * 2)) + b"out" + ended(f"7;{'y' * HELD_MAX}") + A,
    "too long, ended by ST": A + began("x" * HELD_MAX, b"\x1b\\") + b"out" + ended("7" + ";" * HELD_MAX, b"\x1b\\"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_every_split_leads_to_the_same(name: str) -> None:
    stream = SAMPLES[name]
    whole = known(fed(stream))
    assert known(byte_by_byte(stream)) == whole
    # In long ones, where something begins or ends.
    edges = {at + near for at, byte in enumerate(stream) if byte in b"\x1b\x07" for near in range(-3, 4)}
    for cut in range(1, len(stream)) if len(stream) < HELD_MAX else edges:
        assert known(fed(stream, cut)) == whole
    assert known(fed(stream + b"text that follows")) == whole


pieces = st.one_of(
    st.sampled_from([A, B, b"\x1b", b"\x1b]", b"\x1b]133;", b"\x07", b"\x1b\\", b"\x18", b"\x1b]7;file://h/", b"\r\n"]),
    st.text(max_size=8).map(began),
    st.integers(0, 300).map(ended),
    st.binary(max_size=6),
    st.just(b"x" * 5000),
)  # fmt: skip


@given(st.lists(pieces, max_size=30), st.lists(st.integers(0, 40_000), max_size=8))
def test_any_stream_at_any_split_leads_to_the_same(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    whole = fed(stream)
    assert known(fed(stream, *cuts)) == known(whole)
    assert known(byte_by_byte(stream[:600])) == known(fed(stream[:600]))
    last = 0
    for number, command in enumerate(whole.commands, 1):
        assert command.n == number
        assert last <= command.start <= len(stream)
        assert (command.end is None) == (command is whole.running)
        if command.end is not None:
            assert command.start <= command.end
            last = command.end


@given(
    st.lists(st.tuples(st.text(max_size=40), st.binary(max_size=60), st.integers(0, 255)), max_size=10),
    st.data(),
)
def test_each_command_has_its_text_its_status_and_its_bytes(
    commands: list[tuple[str, bytes, int]], data: st.DataObject
) -> None:
    commands = [(text, out.replace(b"\x1b", b"."), status) for text, out, status in commands]
    stream = b"".join(A + b"$ " + B + began(text) + out + ended(status) for text, out, status in commands)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    marks = fed(stream, *cuts)
    assert [command.exit for command in marks.commands] == [status for _, _, status in commands]
    assert [stream[each.start : each.end] for each in marks.commands] == [out for _, out, _ in commands]
    for command, (text, _, _) in zip(marks.commands, commands, strict=True):
        assert len(command.text) == len(text)
        assert all(
            ours in (theirs, "\N{REPLACEMENT CHARACTER}")
            for ours, theirs in zip(command.text, text, strict=True)
        )


# -------------------------------------------------------------------------------------------- one command


def test_a_command_knows_when_it_ran_and_where() -> None:
    marks = Marks()
    marks.feed(100, b"\x1b]7;file://guest/mnt/work%20space\x07" + A + b"$ ", 1000.0, 10.0)
    marks.feed(100 + 40 + len(A), began("make -j"), 1001.5, 11.5)
    running = marks.running
    assert running is not None
    assert running.to_map() == {
        "n": 1, "text": "make -j", "cwd": "/mnt/work space", "started_at": 1001.5, "ended_at": None, "duration": None,
        "exit": None, "from": 140 + len(A) + len(began("make -j")), "to": None,
    }  # fmt: skip
    marks.feed(running.start, b"1234" + ended(3), 1003.0, 13.0)
    assert marks.running is None
    assert marks.commands == [running]
    found = running.to_map()
    assert (found["to"], found["exit"], found["ended_at"], found["duration"]) == (
        running.start + 4,
        3,
        1003.0,
        1.5,
    )


def test_it_begins_anywhere_in_the_stream() -> None:
    stream = A + began("make") + b"out" + ended()
    (command,) = fed(stream, offset=10**12).commands
    assert (command.start - 10**12, command.end) == (
        len(A + began("make")),
        10**12 + len(stream) - len(ended()),
    )


@pytest.mark.parametrize(
    ("told", "status"),
    [("0", 0), ("255", 255), ("", None), ("-1", None), ("1x", None), ("12345", None), ("5;aid=7", 5)],
)  # fmt: skip
def test_a_status_is_a_number_or_not_known(told: str, status: int | None) -> None:
    assert rows(fed(A + began("x") + ended(told))) == [("x", status)]


def test_a_command_whose_text_was_not_told_has_an_empty_one() -> None:
    assert rows(fed(A + b"\x1b]133;C\x07" + ended(1))) == [("", 1)]
    assert rows(fed(A + b"\x1b]133;C;aid=1;cmdline_url=a%20b;x=y\x07" + ended(1))) == [("a b", 1)]


# ------------------------------------------------------------------------------------- what makes no sense


def test_an_end_without_a_command_is_none() -> None:
    marks = fed(A + b"$ " + ended(130) + A + ended(130) + A)
    assert (marks.commands, marks.running, marks.count) == ([], None, 0)


def test_a_sequence_that_another_breaks_off_is_none() -> None:
    assert rows(fed(SAMPLES["begun anew"])) == [("z", 8)]
    assert rows(fed(SAMPLES["broken off"])) == [("y", 0)]


def test_a_prompt_ends_a_command_whose_end_never_came() -> None:
    stream = A + began("bash") + b"bye" + A + b"$ " + ended(5) + began("ls") + ended(0)
    marks = fed(stream)
    assert rows(marks) == [("bash", None), ("ls", 0)]
    assert marks.commands[0].end == stream.index(A, 1)
    assert marks.commands[0].ended is not None


def test_a_program_that_prints_a_beginning_is_still_one_command() -> None:
    assert rows(fed(A + began("cat log") + began("rm -rf /") + B + b"x" + ended(4))) == [("cat log", 4)]


def test_what_is_missing_makes_the_next_end_nobodys() -> None:
    """After a gap the end that comes may be that of another command, whose beginning is missing."""
    marks = fed(A + began("sleep") + b"\x1b]133;D;0")
    marks.lost()
    assert marks.running is not None
    marks = fed(b"\x07" + ended(9) + A + began("ls") + ended(1), marks=marks, offset=5000)
    assert rows(marks) == [("sleep", None), ("ls", 1)]
    assert marks.commands[0].end == 5001


def test_an_offset_that_does_not_follow_is_a_gap() -> None:
    marks = fed(A + began("sleep") + b"\x1b]133;D")
    fed(b";0\x07" + ended(9), marks=marks, offset=7000)
    assert rows(marks) == [("sleep", None)]


# --------------------------------------------------------------------------------------------- bounds


def test_the_newest_commands_are_kept_with_their_numbers() -> None:
    marks = fed(b"".join(A + began(str(n)) + ended(n % 7) for n in range(1, COMMANDS_KEPT + 51)))
    assert marks.count == COMMANDS_KEPT + 50
    assert len(marks.commands) == COMMANDS_KEPT
    assert [(each.n, each.text) for each in marks.commands[:2]] == [(51, "51"), (52, "52")]


def test_nothing_grows_with_a_sequence_that_never_ends() -> None:
    marks = Marks()
    marks.feed(0, b"\x1b]133;C;cmdline_url=", 0.0, 0.0)
    for number in range(100):
        marks.feed(20 + number * 4096, b"x" * 4096, 0.0, 0.0)
        assert len(marks._held) <= HELD_MAX
    marks.feed(20 + 409_600, b"\x07out", 0.0, 0.0)
    (command,) = marks.commands
    assert (command.text, command.start) == ("x" * TEXT_MAX, 20 + 409_600 + 1)


def test_a_long_line_is_cut_between_characters() -> None:
    raw = A + b"\x1b]133;C;cmdline_url=x" + "ü".encode() * TEXT_MAX + b"\x07" + ended()
    assert rows(fed(raw)) == [("x" + "ü" * ((TEXT_MAX - 1) // 2), 0)]
    for before in range(6):
        line = "x" * before + "ü" * TEXT_MAX
        assert rows(fed(A + began(line) + ended())) == [(line[: before + (TOLD_MAX - before) // 6], 0)]


def test_titles_are_bounded_and_cannot_act_on_a_terminal() -> None:
    assert fed(b"\x1b]2;" + b"x" * 5000 + b"\x07").title == "x" * TITLE_MAX
    assert fed(b"\x1b]0;a\x0db\x9b\xff\xc2\x9bc\x07").title == "a\ufffdb\ufffd\ufffd\ufffdc"


def test_a_line_keeps_its_line_ends_and_no_other_controls() -> None:
    assert rows(fed(A + began("a\n\tb\x1b[31m\x07\x9bc\0")))[0][0] == "a\n\tb\ufffd[31m\ufffd\ufffdc\ufffd"


@pytest.mark.parametrize(
    ("told", "directory"),
    [
        (b"file://guest/tmp", "/tmp"),
        (b"file:///tmp", "/tmp"),
        (b"file://GUEST/%C3%BC%25%zz%2", "/ü%%zz%2"),
        (b"file://localhost/", "/"),
        (b"file://elsewhere/tmp", None),
        (b"file://guest", None),
        (b"/tmp", None),
        (b"http://guest/tmp", None),
        (b"file://guest/a%00b", None),
        (b"file://guest/" + b"x" * 5000, None),
        (b"file://guest/%ff%0a", "/\ufffd\ufffd"),
    ],
)
def test_a_directory_is_a_path_of_this_machine(told: bytes, directory: str | None) -> None:
    marks = Marks("guest")
    marks.feed(0, b"\x1b]7;" + told + b"\x07", 0.0, 0.0)
    assert marks.directory == directory


def test_bulk_is_not_looked_at_twice() -> None:
    """Nothing is kept of output without marks, and the clocks are not even read into anything."""
    marks = fed(b"line\r\n\x1b[0m" * 1000, 5000)
    assert (marks._held, marks._wall) == (b"", 0.0)
