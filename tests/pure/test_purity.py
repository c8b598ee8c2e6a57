"""The pure rooms import neither Trio nor anything that does I/O, so that they can be tested byte by byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import guestd

ROOT = Path(guestd.__file__).parent
FORBIDDEN = {
    "trio",
    "asyncio",
    "socket",
    "_socket",
    "select",
    "selectors",
    "ssl",
    "subprocess",
    "multiprocessing",
    "threading",
}
ROOMS = sorted(
    ".".join(("guestd", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for pattern in ("errors.py", "config.py", "_config*.py", "tape.py", "wire/*.py", "terminal/*.py")
    for file in ROOT.glob(pattern)
)
# msgpack is imported first: what somebody else's package brings along is not ours to judge.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import msgpack
before = set(sys.modules)
__import__(sys.argv[2])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported_by(module: str) -> set[str]:
    """What the import of a module brings into a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT.parent), module], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_rooms_are_where_this_looks_for_them() -> None:
    assert {"guestd.errors", "guestd.config", "guestd.tape", "guestd.wire.frames"} <= set(ROOMS)


@pytest.mark.parametrize("module", ROOMS)
def test_a_pure_room_imports_nothing_that_does_io(module: str) -> None:
    found = imported_by(module)
    assert module in found
    assert not found & FORBIDDEN


def test_settings_cost_start_up_nothing_they_do_not_need() -> None:
    """`guestd init` waits for these before it listens; each of them costs more than all of the settings."""
    assert not imported_by("guestd.config") & {
        "typing",
        "re",
        "dataclasses",
        "tomllib",
        "difflib",
        "argparse",
        "enum",
    }
