"""`image/opt`: the same inputs give the same bytes, and what cannot work is told before it is in an image."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.image.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def _make(
    checkout: Path, target: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "image" / "opt", target, "--without-grpc", *arguments],
        env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    digests: set[str] = set()
    for name, surroundings in (
        ("one", {"TZ": "UTC"}),
        ("another", {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}),
    ):
        place = tmp_path / name / "deeper" / "opt"
        made = _make(ROOT, place, **surroundings)
        assert made.returncode == 0, made.stderr
        digests.add(made.stdout.splitlines()[-1].split()[0])
        dates = {path.stat().st_mtime for path in place.rglob("*")}
        assert dates == {315532800.0}
    assert len(digests) == 1
    # Made again in the same place, it is replaced; what is something else is left alone.
    shutil.rmtree(place)
    place.mkdir()
    (place / "mine").touch()
    refused = _make(ROOT, place)
    assert (refused.returncode, "nothing that image/opt made" in refused.stderr) == (125, True)
    assert (place / "mine").exists()


def test_an_import_of_what_is_left_out_does_not_get_into_an_image(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "image", checkout / "image")
    shutil.copytree(ROOT / "guestd", checkout / "guestd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "LICENSE", checkout / "LICENSE")
    with (checkout / "guestd" / "tape.py").open("a") as source:
        source.write("\n\ndef late() -> None:\n    import sqlite3\n")
    made = _make(checkout, tmp_path / "opt")
    assert made.returncode == 125
    assert "guestd.tape imports sqlite3, which was left out" in made.stderr
    assert not (tmp_path / "opt").exists()
