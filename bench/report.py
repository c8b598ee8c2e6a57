"""What a row is, what its budget says about it, and how rows are printed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.measure import Taken

#: What a budget limits. A ratio is always value divided by floor, so it is a `least` where more is better.
Sense = Literal["ratio at most", "ratio at least", "value at most"]


@dataclass(frozen=True)
class Budget:
    """A promise with a number. `beat_peers`: the value must also be below that of every peer that ran; `not_above`: it
    may not be above that of these, where they ran.
    """

    sense: Sense
    limit: float
    beat_peers: bool = False
    not_above: tuple[str, ...] = ()

    def missed(self, measured: Measured) -> list[str]:
        """Why this budget is missed; empty when it is kept."""
        reasons: list[str] = []
        if self.sense == "value at most":
            if measured.value > self.limit:
                reasons.append(f"{figure(measured.value)} is over the budget of {figure(self.limit)}")
        elif measured.ratio is None:
            reasons.append("there is no floor to compare with")
        elif self.sense == "ratio at most" and measured.ratio > self.limit:
            reasons.append(f"{measured.ratio:.2f} × the floor is over the budget of {self.limit} ×")
        elif self.sense == "ratio at least" and measured.ratio < self.limit:
            reasons.append(f"{measured.ratio:.2f} × the floor is under the budget of {self.limit} ×")
        if self.beat_peers:
            reasons += [
                f"not below {name} at {figure(theirs)}"
                for name, theirs in measured.peers.items()
                if measured.value >= theirs
            ]
        reasons += [
            f"above {name} at {figure(measured.peers[name])}"
            for name in self.not_above
            if name in measured.peers and measured.value > measured.peers[name]
        ]
        return reasons

    def __str__(self) -> str:
        sign = "≥" if self.sense == "ratio at least" else "≤"
        text = f"{sign} {self.limit:g}" + ("" if self.sense == "value at most" else " ×")
        return ", ".join([text, *(["all peers"] if self.beat_peers else []), *self.not_above])


@dataclass(frozen=True)
class Measured:
    """The figures of one row. `absent` names the peers that gave none, each with its reason."""

    value: float
    floor: float | None = None
    #: The middle half of the samples, of guestd and of the floor, and how many samples each.
    spread: tuple[float, float] | None = None
    floor_spread: tuple[float, float] | None = None
    n: int = 1
    peers: dict[str, float] = field(default_factory=dict[str, float])
    absent: dict[str, str] = field(default_factory=dict[str, str])
    #: What else must be known to read the figure.
    note: str = ""
    #: What a row found wrong that its budget's number does not say.
    faults: list[str] = field(default_factory=list[str])

    @classmethod
    def of(
        cls,
        taken: Taken,
        *,
        peers: Iterable[str] = (),
        absent: Mapping[str, str] | None = None,
        note: str = "",
    ) -> Measured:
        """The medians of `guestd` and `floor`, and of those peers that gave a figure."""
        guestd, floor = taken["guestd"], taken["floor"]
        return cls(
            value=guestd.median,
            floor=floor.median,
            spread=guestd.spread,
            floor_spread=floor.spread,
            n=len(guestd),
            peers={name: taken[name].median for name in peers if name in taken.samples and len(taken[name])},
            absent={**(absent or {}), **taken.failed},
            note=note,
        )

    @property
    def ratio(self) -> float | None:
        return self.value / self.floor if self.floor else None


@dataclass(frozen=True)
class Line:
    """A row of the table: measured, or the reason why not."""

    name: str
    unit: str
    budget: Budget | None
    measured: Measured | None
    unmeasured: str = ""

    @property
    def problems(self) -> list[str]:
        if self.measured is None:
            return [self.unmeasured]
        return (self.budget.missed(self.measured) if self.budget else []) + self.measured.faults

    @property
    def ok(self) -> bool:
        """A row that could not be measured has not kept its budget."""
        return not self.problems

    def to_json(self) -> str:
        measured = self.measured
        fields: dict[str, object] = {
            "name": self.name,
            "value": _rounded(measured.value) if measured else None,
            "unit": self.unit,
            "floor": _rounded(measured.floor) if measured else None,
            "ratio": _rounded(measured.ratio) if measured else None,
            "budget": self.budget.limit if self.budget else None,
            "sense": self.budget.sense if self.budget else None,
            "ok": self.ok,
            "peers": {name: _rounded(theirs) for name, theirs in measured.peers.items()} if measured else {},
            "absent": measured.absent if measured else {},
            "n": measured.n if measured else 0,
            "spread": [_rounded(edge) for edge in measured.spread] if measured and measured.spread else None,
            "note": measured.note if measured else "",
            "problems": self.problems,
        }
        return json.dumps(fields, ensure_ascii=False)


HEADINGS = ("name", "value", "unit", "floor", "ratio", "budget", "ok", "peers")
_NUMERIC = frozenset({1, 3, 4})


def table(lines: Sequence[Line]) -> str:
    """The rows, aligned, and below them what does not fit into columns."""
    cells = [HEADINGS, *(_cells(line) for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    text = [
        "  ".join(
            cell.rjust(width) if column in _NUMERIC else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    notes = [note for line in lines for note in _notes(line)]
    return "\n".join([*text, *([""] if notes else []), *notes])


def figure(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cells(line: Line) -> tuple[str, ...]:
    budget = str(line.budget) if line.budget else "–"
    measured = line.measured
    if measured is None:
        return (line.name, "–", line.unit, "–", "–", budget, "no", "")
    ok = "–" if line.budget is None and line.ok else "yes" if line.ok else "no"
    ratio = f"{measured.ratio:.2f}" if measured.ratio is not None else "–"
    peers = " · ".join(f"{name} {figure(theirs)}" for name, theirs in measured.peers.items())
    return (line.name, figure(measured.value), line.unit, figure(measured.floor), ratio, budget, ok, peers)


def _notes(line: Line) -> list[str]:
    notes = [f"{line.name}: {problem}" for problem in line.problems]
    measured = line.measured
    if measured is None:
        return notes
    if measured.spread:
        middle = f"half of {measured.n} samples within {_range(measured.spread)} {line.unit}"
        if measured.floor_spread:
            middle += f", of the floor's within {_range(measured.floor_spread)}"
        notes.append(f"{line.name}: {middle}")
    if measured.note:
        notes.append(f"{line.name}: {measured.note}")
    notes += [f"{line.name}: without {name}: {reason}" for name, reason in measured.absent.items()]
    return notes


def _range(edges: tuple[float, float]) -> str:
    return f"{figure(edges[0])}–{figure(edges[1])}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
