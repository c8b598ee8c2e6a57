"""The chain of the audit log: nothing in it can be changed, taken out or put in unseen."""

from __future__ import annotations

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from guestd.wire.chain import NOTHING, Head, head_line, read_head, seal, verify


def _lines(count: int, first: Head | None = None) -> list[bytes]:
    head = first or Head(0, NOTHING)
    lines: list[bytes] = []
    for number in range(count):
        line, head = seal(
            {"at": number, "event": "exec", "who": "me", "text": 'quotes " and ,"hash":"'}, head
        )
        lines.append(line + b"\n")
    return lines


def _head(lines: list[bytes]) -> Head:
    record = json.loads(lines[-1])
    return Head(record["n"], record["hash"])


def test_a_chain_that_holds() -> None:
    lines = _lines(5)
    report = verify(lines, _head(lines))
    assert report.whole
    assert (report.records, report.first, report.head) == (5, 1, _head(lines))


def test_anybody_can_check_a_line_with_sha256sum() -> None:
    (line,) = _lines(1)
    body, _, rest = line.rpartition(b',"hash":"')
    assert hashlib.sha256(body).hexdigest().encode() == rest[:64]


@given(st.integers(2, 8), st.data())
def test_any_change_of_a_byte_is_seen(count: int, data: st.DataObject) -> None:
    lines = _lines(count)
    at = data.draw(st.integers(0, count - 1))
    place = data.draw(st.integers(0, len(lines[at]) - 2))
    byte = data.draw(st.integers(32, 126).filter(lambda each: each != lines[at][place]))
    lines[at] = lines[at][:place] + bytes([byte]) + lines[at][place + 1 :]
    assert not verify(lines).whole


@given(st.integers(3, 8), st.data())
def test_a_line_that_was_taken_out_put_in_or_moved_is_seen(count: int, data: st.DataObject) -> None:
    lines = _lines(count)
    at = data.draw(st.integers(1, count - 2))
    assert not verify(lines[:at] + lines[at + 1 :]).whole
    assert not verify([*lines[:at], lines[0], *lines[at:]]).whole
    assert not verify([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]).whole


@given(st.data())
def test_a_record_that_was_changed_and_sealed_again_breaks_at_the_next_one(data: st.DataObject) -> None:
    lines = _lines(5)
    at = data.draw(st.integers(0, 3))
    record = json.loads(lines[at])
    before = Head(record["n"] - 1, record["prev"])
    lines[at] = seal({**record, "text": "forged"}, before)[0] + b"\n"
    report = verify(lines)
    assert [each["n"] for each in report.breaks] == [at + 2]


@given(st.integers(2, 8), st.data())
def test_an_end_that_is_missing_is_seen_by_who_knows_a_head(count: int, data: st.DataObject) -> None:
    lines = _lines(count)
    left = data.draw(st.integers(0, count - 1))
    assert verify(lines[:left]).whole
    assert not verify(lines[:left], _head(lines)).whole
    assert verify(lines, _head(lines[: left + 1])).whole


def test_a_whole_new_chain_is_seen_by_who_knows_a_head() -> None:
    ours = _lines(3)
    other: list[bytes] = []
    head = Head(0, NOTHING)
    for _ in range(3):
        line, head = seal({"event": "forged"}, head)
        other.append(line + b"\n")
    assert verify(other).whole
    (found,) = verify(other, _head(ours)).breaks
    assert "another hash" in found["why"]


def test_a_line_that_was_not_written_to_its_end() -> None:
    lines = _lines(3)
    report = verify([*lines[:2], lines[2][:-9]])
    assert report.broken == 1
    assert "ends within it" in report.breaks[0]["why"]


def test_older_files_that_went_are_no_break() -> None:
    report = verify(_lines(8)[3:])
    assert report.whole
    assert any("1 to 3" in note for note in report.notes)


def test_a_log_that_says_itself_that_it_begins_anew() -> None:
    line, _ = seal({"event": "log_opened", "broken": "the file is gone"}, Head(0, NOTHING))
    report = verify([*_lines(2), line + b"\n"])
    assert report.broken == 1
    assert "the file is gone" in report.breaks[0]["why"]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_whatever_the_file_holds_it_is_told(lines: list[bytes]) -> None:
    report = verify([line.replace(b"\n", b"") + b"\n" for line in lines])
    assert report.broken == len(lines)


def test_heads_as_they_are_kept_and_typed() -> None:
    head = Head(12, "a" * 64)
    assert read_head(head_line(head)) == head
    assert read_head(f"12:{'a' * 64}".encode()) == head
    assert read_head(b"12:short") is None
    assert read_head(b"") is None
