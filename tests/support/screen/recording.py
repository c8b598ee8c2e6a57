"""What programs printed, kept: bytes and changes of size, in their order.

A recording is a file of JSON lines under captures/, compressed with xz: first `{"columns", "rows"}`, then an array of
two each: `["o", text]` for output (a byte is the character of its number, as a terminal's bytes need not be UTF-8),
and `["r", [columns, rows]]` for a new size.

Those named `tui_` are of harnesses from npm, up to where they want an account, and were played by hand;
`record.py` plays the others.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

CAPTURES = Path(__file__).resolve().parent / "captures"


@dataclass(frozen=True)
class Size:
    columns: int
    rows: int


Step: TypeAlias = "bytes | Size"


@dataclass
class Recording:
    name: str
    size: Size
    steps: list[Step] = field(default_factory=list["Step"])

    def output(self, data: bytes) -> None:
        if self.steps and isinstance(self.steps[-1], bytes):
            self.steps[-1] += data
        else:
            self.steps.append(data)

    def resize(self, columns: int, rows: int) -> None:
        self.steps.append(Size(columns, rows))

    def save(self) -> Path:
        lines: list[object] = [{"columns": self.size.columns, "rows": self.size.rows}]
        for step in self.steps:
            if isinstance(step, bytes):
                lines.append(["o", step.decode("latin-1")])
            else:
                lines.append(["r", [step.columns, step.rows]])
        path = CAPTURES / f"{self.name}.xz"
        path.write_bytes(lzma.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
        return path


def load(name: str) -> Recording:
    head, *rest = lzma.decompress((CAPTURES / f"{name}.xz").read_bytes()).splitlines()
    recording = Recording(name, Size(**json.loads(head)))
    for line in rest:
        kind, what = json.loads(line)
        recording.steps.append(what.encode("latin-1") if kind == "o" else Size(*what))
    return recording


def names() -> list[str]:
    return sorted(path.name.removesuffix(".xz") for path in CAPTURES.glob("*.xz"))
