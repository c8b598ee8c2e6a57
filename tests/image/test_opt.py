"""`image/opt`: the same inputs give the same bytes, and what cannot work is told before it is in an image."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.image.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: 1980, where SOURCE_DATE_EPOCH says nothing else.
_EPOCH = 315532800.0
#: Not the usual one, which the images have: a second version beside the first.
PREFIX = "/opt/guestd-2"


def _make(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "image" / "opt", target, "--without-grpc", "--prefix", PREFIX],
        env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One, and the digest that was printed."""
    place = tmp_path_factory.mktemp("opt")
    done = _make(place)
    assert done.returncode == 0, done.stderr
    return place, done.stdout.splitlines()[-1].split()[0]


def test_the_same_inputs_give_the_same_bytes(made: tuple[Path, str], tmp_path: Path) -> None:
    again = _make(tmp_path / "deeper" / "opt", TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1].split()[0] == made[1]
    assert {path.stat().st_mtime for path in made[0].rglob("*")} == {_EPOCH}


def test_what_somebody_else_has_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    refused = _make(tmp_path)
    assert (refused.returncode, "nothing that image/opt made" in refused.stderr) == (125, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_import_of_what_is_left_out_is_found(made: tuple[Path, str], tmp_path: Path) -> None:
    """And one of a late kind, which no test of the product needs to reach."""
    tree = tmp_path / "tree"
    shutil.copytree(made[0], tree)
    assert _prove(tree) == (0, "\n")
    (source,) = tree.glob("lib/python*/site-packages/guestd/tape.py")
    with source.open("a") as file:
        file.write("\n\ndef late() -> None:\n    import sqlite3\n")
    status, said = _prove(tree)
    assert status == 1
    assert "guestd.tape imports sqlite3, which was left out" in said


def test_it_starts_where_nothing_is_mounted(made: tuple[Path, str], tmp_path: Path) -> None:
    """PID 1 of a machine has no /proc yet; where the interpreter is was read from it, so it found no library."""
    shutil.copytree(made[0], tmp_path / PREFIX.lstrip("/"))
    done = subprocess.run(
        ["/usr/sbin/chroot", tmp_path, f"{PREFIX}/bin/guestd", "version"],
        env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()[0]) == (0, "guestd"), done.stderr


def _prove(tree: Path) -> tuple[int, str]:
    (linker,) = tree.glob("lib/ld-linux-*")
    proof = ROOT / "image" / "bundle" / "proof.py"
    done = subprocess.run(
        [linker, tree / "bin" / "python", "-I", "-B", proof, tree],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout
