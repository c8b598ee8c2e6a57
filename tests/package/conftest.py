"""The wheel, built from the source distribution as an index would get it, in an environment with nothing else in it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: Environments are made here, from an index that may be slow, by the first test that asks for one.
SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(SECONDS))


@dataclass(frozen=True)
class Installed:
    """The environment: `wheel` is the file that was installed, `programs` the directory of its programs."""

    wheel: Path
    programs: Path

    @property
    def python(self) -> str:
        return str(self.programs / "python")

    def run(self, *argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs to the end, away from the checkout, with nothing of the developer's around it."""
        return subprocess.run(
            [str(self.programs / argv[0]), *argv[1:]],
            cwd=cwd,
            env=clean_environment(self.programs, **environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def clean_environment(programs: Path | None = None, **more: str) -> dict[str, str]:
    """A small environment: a variable of the developer's (OTEL_…, GUESTD_…, PYTHONPATH) must not decide a test."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    # How the machine reaches its package index is its own business.
    kept |= {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))
    }
    kept |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    if programs is not None:
        kept["PATH"] = f"{programs}:{kept.get('PATH', os.defpath)}"
    return kept | more


def call(*argv: str | Path, cwd: Path) -> None:
    """A step of the set-up; what it said is shown when it failed."""
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(
            f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout}{done.stderr}",
            pytrace=False,
        )


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("wheel")
    # Without --wheel: the source distribution first, then the wheel from that, so that both are whole.
    call(sys.executable, "-m", "build", "--outdir", place, ROOT, cwd=place)
    (wheel,) = place.glob("*.whl")
    call(sys.executable, "-m", "venv", place / "venv", cwd=place)
    programs = place / "venv" / "bin"
    call(
        programs / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        wheel,
        cwd=place,
    )
    return Installed(wheel, programs)
