"""The last steps: everything is imported once, compiled, and made the same whoever made it and whenever."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from errors import CannotBuild
from python import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

_HERE = Path(__file__).resolve().parent
#: 1980: what no tool takes for a mistake, and every archive can say.
_EPOCH = 315532800


def prove(tree: Path, linker: Path, *, grpc: bool) -> None:
    """Runs its interpreter, has it import all that it may have to, and looks at what was loaded from where."""
    done = subprocess.run(
        [linker, tree / "bin" / "python", "-I", "-B", _HERE / "proof.py", tree, *(["grpc"] if grpc else [])],
        env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise CannotBuild(f"the tree does not hold together:\n{done.stdout}{done.stderr}")


def compile_all(tree: Path, prefix: str) -> None:
    """Byte code for everything. guestd keeps its source beside it: a traceback shows the line, and people can read what
    runs as root in their machine. The others are byte code alone.

    In a process of its own: what marshal writes depends on what else the process has in memory.
    """
    subprocess.run(
        [sys.executable, "-B", "-s", "-S", _HERE / "compiling.py", tree, prefix, VERSION],
        env={"PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", os.defpath)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip


def settle(tree: Path) -> None:
    """Owner, modes and dates are the same for everybody."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", _EPOCH))
    for path in (*sorted(tree.rglob("*"), reverse=True), tree):
        if path.is_symlink():
            raise CannotBuild(f"{path} is a link, and a copy of the tree would have to follow it")
        executable = path.is_dir() or (os.access(path, os.X_OK) and path.stat().st_mode & 0o100)
        path.chmod(0o755 if executable else 0o644)
        if os.geteuid() == 0:
            os.chown(path, 0, 0)
        os.utime(path, (epoch, epoch))


def digest(tree: Path) -> str:
    """Of every name, mode and content, in order."""
    whole = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        mode = path.stat().st_mode
        whole.update(f"{path.relative_to(tree).as_posix()}\0{mode:o}\0".encode())
        if path.is_file():
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def name_sources(path: Path, files: Iterable[Path]) -> None:
    """Writes which files of this machine something was made of, in the form that sha256sum checks."""
    sums = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    path.write_text("".join(f"{value}  {name}\n" for name, value in sorted(sums.items())), encoding="utf-8")
