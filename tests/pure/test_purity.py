"""The pure rooms import neither Trio nor anything that does I/O, so that they can be tested byte by byte."""

from __future__ import annotations

import ast
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
    for pattern in (
        "errors.py",
        "ledger.py",
        "config.py",
        "_config*.py",
        "tape.py",
        "wire/*.py",
        "terminal/*.py",
        "lifecycle/idle.py",
        "storage/plan.py",
        "storage/standing.py",
        "storage/options.py",
        "storage/mountinfo.py",
        "storage/superblock.py",
        "storage/fuse.py",
        "storage/health.py",
        "observe.py",
        "session/trace.py",
        "telemetry/redact.py",
        "telemetry/switch.py",
        "relay/answers.py",
        "relay/otlp_wire.py",
        "relay/plan.py",
        "relay/preface.py",
        "storage/file_coalescing.py",
        "storage/file_globs.py",
        "storage/file_packing.py",
        "tree/tarformat.py",
        "tree/tarread.py",
        "service/agentcore/bearer.py",
        "service/agentcore/channels.py",
        "service/agentcore/eventstream.py",
        "service/agentcore/failures.py",
        "service/agentcore/routes.py",
        "service/agentcore/text.py",
    )
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


INIT = sorted((ROOT / "init").glob("*.py"))
#: What of guestd PID 1 may import, and only when it needs it: pure, and standard library only themselves.
INIT_MAY_KNOW = {
    "guestd.init",
    "guestd.config",
    "guestd._config_sources",
    "guestd.errors",
    "guestd.wire.address",
}
#: Each of these costs at least a millisecond before anybody can connect.
SLOW = {
    "argparse", "collections", "contextlib", "ctypes", "dataclasses", "enum", "functools", "logging", "pathlib",
    "re", "selectors", "signal", "socket", "subprocess", "tempfile", "tomllib", "traceback", "typing",
}  # fmt: skip


@pytest.mark.parametrize("file", INIT, ids=lambda file: file.stem)
def test_pid_1_knows_the_standard_library_only(file: Path) -> None:
    """Anywhere in the file, so that what it imports late is judged too; what only a type checker reads is not."""
    tree = ast.parse(file.read_text())
    for_checkers = {
        id(node)
        for guard in tree.body
        if isinstance(guard, ast.If) and isinstance(guard.test, ast.Name) and guard.test.id == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        for name in names:
            top = name.partition(".")[0]
            if top == "guestd":
                assert any(name == each or name.startswith(f"{each}.") for each in INIT_MAY_KNOW), name
            else:
                assert top in sys.stdlib_module_names, name


def test_pid_1_imports_nothing_slow_to_begin_with() -> None:
    assert INIT
    program = PROGRAM.replace("import msgpack\n", "")
    for file in INIT:
        module = f"guestd.init.{file.stem}".removesuffix(".__init__")
        done = subprocess.run(
            [sys.executable, "-c", program, str(ROOT.parent), module], capture_output=True, check=True
        )
        found = set(json.loads(done.stdout))
        assert module in found
        assert not found & SLOW, file
