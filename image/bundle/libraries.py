"""Every shared library that anything in the tree needs, the C library and the dynamic linker among them.

One file is changed, the interpreter: it names the tree's own dynamic linker, and an RPATH. That, unlike a RUNPATH,
holds for every library that comes after it, also for one that an extension module brings, and is looked at before
LD_LIBRARY_PATH. So the libraries stay as their distribution made them, and no environment variable is needed, which a
child would inherit. It names the directory twice: $ORIGIN is for a tree that is tried where it was made, and takes a
/proc, which PID 1 of a machine does not have yet. Only an object that came with a RUNPATH is changed too: for what it
needs, nobody else's counts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from errors import CannotBuild

#: Not linked against, but opened by name: by the C library, when a thread ends.
_OPENED_BY_NAME = ("libgcc_s.so.1",)
_ELF = b"\x7fELF"


def copy(tree: Path, interpreter: Path, prefix: str) -> tuple[Path, list[Path]]:
    """Copies them to lib/, and makes bin/python use them. Returns the tree's dynamic linker, and what was copied."""
    binary = tree / "bin" / "python"
    linker = Path(_output("patchelf", "--print-interpreter", str(binary)).strip())
    found = {linker.name: linker}
    for file in (interpreter, *objects(tree)):
        for name, path in _needed(file):
            if not path.is_relative_to(tree):
                found.setdefault(name, path)
    for name in _OPENED_BY_NAME:
        found.setdefault(name, found["libc.so.6"].parent / name)
    for name, path in sorted(found.items()):
        if not path.exists():
            raise CannotBuild(f"{name} is not at {path}: install its package (libgcc-s1 has libgcc_s)")
        shutil.copyfile(path.resolve(), tree / "lib" / name)
        (tree / "lib" / name).chmod(0o755)
    for path in objects(tree):
        _keep_inside(path)
    subprocess.run(
        ["patchelf", "--set-interpreter", f"{prefix}/lib/{linker.name}", "--force-rpath", "--set-rpath",
         f"$ORIGIN/../lib:{prefix}/lib", str(binary)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return tree / "lib" / linker.name, list(found.values())


def objects(tree: Path) -> list[Path]:
    """Every shared object and program in the tree."""
    return [
        path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink() and _is_elf(path)
    ]


def _keep_inside(path: Path) -> None:
    """What an object's own RUNPATH has within the tree becomes an RPATH; the rest of it goes."""
    own = _output("patchelf", "--print-rpath", str(path)).strip()
    if own:
        inside = ":".join(part for part in own.split(":") if part.startswith("$ORIGIN"))
        change = ["--force-rpath", "--set-rpath", inside] if inside else ["--remove-rpath"]
        _output("patchelf", *change, str(path))


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ELF


def _needed(file: Path) -> list[tuple[str, Path]]:
    """The libraries that `file` is loaded with on this machine: name, and where it is."""
    needed: list[tuple[str, Path]] = []
    for line in _output("ldd", str(file)).splitlines():
        if "not found" in line:
            raise CannotBuild(f"{file} needs {line.split()[0]}, which this machine does not have: install it")
        if named := re.match(r"\s*(\S+) => (/\S+) ", line):
            needed.append((named[1], Path(named[2])))
    return needed


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
