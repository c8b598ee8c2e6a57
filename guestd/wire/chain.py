"""The chain of the audit log: lines that each hold the hash of the one before. Pure.

A record is one line, a JSON object. Its last two fields are `prev`, the hash of the record before it, and `hash`, its
own: SHA-256 over the line's bytes up to the comma before `"hash"`. So whoever has sha256sum can check a line, and an
edit, a deletion or an insertion anywhere breaks the chain behind it. What a chain cannot tell by itself is that its
end is missing: for that somebody else knows the last hash (its *head*).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: What stands before the first record.
NOTHING = "0" * 64
#: Fields of the chain itself, which no record brings along.
_OWN = {"n", "prev", "hash"}
_END = b',"hash":"'
_TAIL = len(_END) + 64 + len(b'"}')
#: Breaks that are told one by one; all are counted.
_NAMED = 20


class Head(NamedTuple):
    """The last record: its number and its hash."""

    n: int
    hash: str


def head_line(head: Head) -> bytes:
    """A head as it is kept in a file."""
    # Of one length always, so that one write is all it takes.
    return f"{head.n:020d} {head.hash}\n".encode()


def read_head(data: bytes) -> Head | None:
    """One that was kept so, or that a person has typed: number, space or colon, hash."""
    number, _, digest = data.strip().replace(b":", b" ").partition(b" ")
    if not number.isdigit() or len(digest) != len(NOTHING):
        return None
    return Head(int(number), digest.decode("ascii", "replace"))


def seal(record: Mapping[str, object], head: Head) -> tuple[bytes, Head]:
    """The line of a record behind `head`, without its newline; and the head it then is."""
    n = head.n + 1
    # Only ASCII, so that no reader has to guess; bytes that are no text stay visible as lone surrogates.
    facts = {name: value for name, value in record.items() if name not in _OWN}
    body = json.dumps({"n": n, **facts, "prev": head.hash}, separators=(",", ":"), default=str)[:-1].encode()
    digest = sha256(body).hexdigest()
    return body + _END + digest.encode() + b'"}', Head(n, digest)


def read(line: bytes) -> tuple[dict[str, Any], Head]:
    """A record whose own hash is right. ValueError says what is wrong with it."""
    body, end = line[:-_TAIL], line[-_TAIL:]
    if not (end.startswith(_END) and end.endswith(b'"}')):
        raise ValueError("it is no record: its last field is not `hash`")
    digest = sha256(body).hexdigest()
    if end[len(_END) : -2] != digest.encode():
        raise ValueError("it was changed: its hash is not that of its text")
    try:
        found: object = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  it is the line that is wrong
    record = cast("dict[str, Any]", found)
    n = record.get("n")
    if not isinstance(n, int) or isinstance(n, bool):
        raise ValueError("it has no number")  # noqa: TRY004  as above
    return record, Head(n, digest)


@dataclass
class Report:
    """What a check has found. `breaks`: where the chain does not hold, and why; `notes`: what a reader should know."""

    records: int = 0
    first: int | None = None
    head: Head | None = None
    opened: int = 0
    closed: bool = False
    dropped: int = 0
    broken: int = 0
    breaks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    notes: list[str] = field(default_factory=list[str])

    @property
    def whole(self) -> bool:
        return not self.broken

    def break_at(self, n: int | None, line: int | None, why: str) -> None:
        self.broken += 1
        if len(self.breaks) < _NAMED:
            self.breaks.append({"n": n, "line": line, "why": why})

    def to_map(self) -> dict[str, Any]:
        return {
            "whole": self.whole,
            "records": self.records,
            "first": self.first,
            "head": None if self.head is None else {"n": self.head.n, "hash": self.head.hash},
            "opened": self.opened,
            "closed": self.closed,
            "dropped": self.dropped,
            "broken": self.broken,
            "breaks": self.breaks,
            "notes": self.notes,
        }


def verify(lines: Iterable[bytes], known: Head | None = None, *, own: bool = False) -> Report:
    """Check lines, oldest first. `known`: a head that somebody has kept; the chain must lead through it. `own`: it is
    the log of a guestd that runs, and is open.
    """
    report = Report()
    met = known is None
    before: Head | None = None
    at = 0
    torn = False
    for at, line in enumerate(lines, 1):
        torn = not line.endswith(b"\n")
        try:
            record, head = read(line.rstrip(b"\n"))
        except ValueError as error:
            why = "it is not whole: the file ends within it" if torn else str(error)
            report.break_at(None if before is None else before.n + 1, at, why)
            before = None
            continue
        _check_place(report, record, head, before, at, is_after_break=before is None and at > 1)
        report.records += 1
        report.first = head.n if report.first is None else report.first
        report.closed = record.get("event") == "log_closed"
        if record.get("event") == "log_opened":
            report.opened += 1
            if record.get("broken"):
                report.break_at(head.n, at, f"guestd found so when it started: {record['broken']}")
            elif record.get("after") == "died":
                report.notes.append(
                    f"record {head.n}: the guestd before this one died; what it did last may be missing"
                )
        if record.get("event") == "dropped" and isinstance(record.get("count"), int):
            report.dropped += int(record["count"])
        met = met or head == known
        before = report.head = head
    if known is not None and not met:
        last = None if report.head is None else report.head.n
        if last is None or last < known.n:
            why = (
                f"its end is missing: record {known.n} was written, and the last one here is {last or 'none'}"
            )
        else:
            why = f"record {known.n} is not the one that was written: another hash is known of it"
        report.break_at(known.n, None, why)
    if report.first is not None and report.first > 1:
        report.notes.append(f"records 1 to {report.first - 1} are not here: older files go (audit.files)")
    if not report.closed and not own and not torn and report.records:
        report.notes.append(
            "the log was not closed: guestd still runs, or died, or records at the end were removed; a head that was"
            " kept elsewhere tells"
        )
    return report


def _check_place(
    report: Report, record: Mapping[str, Any], head: Head, before: Head | None, line: int, *, is_after_break: bool
) -> None:  # fmt: skip
    """Does it follow the one before it?"""
    if record.get("broken") and record.get("prev") == NOTHING:
        return  # it begins anew and says why
    if before is not None:
        if head.n != before.n + 1:
            report.break_at(head.n, line, f"record {before.n + 1} should be here, and {head.n} is")
        elif record.get("prev") != before.hash:
            report.break_at(head.n, line, f"it does not follow record {before.n} as that is now")
    elif not is_after_break and head.n == 1 and record.get("prev") != NOTHING:
        report.break_at(head.n, line, "it is the first, and names one before it")
