"""`image/opt`: the same inputs give the same bytes, and what cannot work is told before it is in an image."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from image.vm import inputs
from tests.image.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: 1980, where SOURCE_DATE_EPOCH says nothing else.
_EPOCH = 315532800.0
#: Not the usual one, which the images have: a second version beside the first.
PREFIX = "/opt/guestd-2"


def _make(
    target: Path, *options: str | Path, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "image" / "opt", target, "--without-grpc", "--prefix", PREFIX, *options],
        env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One, and the digest that was printed."""
    place = tmp_path_factory.mktemp("opt")
    done = _make(place, "--made-of", place.with_name("made-of"))
    assert done.returncode == 0, done.stderr
    return place, done.stdout.splitlines()[-1].split()[0]


def test_the_same_inputs_give_the_same_bytes(made: tuple[Path, str], tmp_path: Path) -> None:
    """The second time it has of the checkout what a cached one is known by, and nothing else: so that is all of it."""
    root = tmp_path / "checkout"
    for each in inputs.files_of_guestd():
        copy = root / each.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(each, copy)
    again = _make(tmp_path / "deeper" / "opt", root=root, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1].split()[0] == made[1]
    assert {path.stat().st_mtime for path in made[0].rglob("*")} == {_EPOCH}


def test_it_says_what_of_this_machine_went_into_it(made: tuple[Path, str]) -> None:
    """Each library and each module of Python's; with another one it would be another tree."""
    tree, made_of = made[0], made[0].with_name("made-of")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", made_of], check=True)
    assert inputs.unchanged(made_of)
    named = [line.split("  ", 1)[1] for line in made_of.read_text().splitlines()]
    assert os.path.realpath(inputs.INTERPRETER) in named
    stems = {os.path.basename(each).split(".")[0] for each in named}
    (library,) = tree.glob("lib/python*")
    of_python = (each for each in library.rglob("*") if "site-packages" not in each.parts)
    bundled = {each.name.split(".")[0] for each in (*tree.glob("lib/*"), *of_python) if each.is_file()}
    assert len(bundled) > 250
    assert bundled <= stems


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
