"""The client knows the wire, the errors and how trees travel, guestctl knows the client: a host installs both without
the rest.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import guestd

ROOT = Path(guestd.__file__).parent
MAY_KNOW = {
    "client": {"client", "wire", "errors", "tree"},
    "ctl": {"ctl", "client", "wire", "errors"},
}


@pytest.mark.parametrize("room", MAY_KNOW)
def test_a_room_knows_its_neighbours_only(room: str) -> None:
    known: dict[str, set[str]] = {}
    for file in sorted((ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file.name} imports by a relative name"
                names = [f"{node.module}.{each.name}" for each in node.names]
            elif isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            for name in names:
                top, _, rest = name.partition(".")
                if top == "guestd":
                    known.setdefault(rest.partition(".")[0], set()).add(file.name)
    known.pop("__version__", None)
    assert set(known) <= MAY_KNOW[room], known
