"""What of a tree did not come through: all are counted, the first ones named."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMED_MAX = 20


class Told:
    """Entries that were left out on purpose, and those that failed."""

    def __init__(self) -> None:
        self.skipped = 0
        self.failed = 0
        self.named: list[dict[str, str]] = []

    def skip(self, path: bytes, why: str) -> None:
        self.skipped += 1
        self._name(path, why)

    def fail(self, path: bytes, why: str) -> None:
        self.failed += 1
        self._name(path, why)

    def _name(self, path: bytes, why: str) -> None:
        if len(self.named) < NAMED_MAX:
            self.named.append({"path": path.decode("utf-8", "surrogateescape"), "why": why})

    def to_map(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "failed": self.failed, "named": self.named}
