"""image/requirements.txt, which pins what goes into /opt/guestd, is for the dependencies that pyproject.toml names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED_TEXT = (ROOT / "image" / "requirements.txt").read_text(encoding="utf-8")
PINNED = {
    name.lower(): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", PINNED_TEXT, re.MULTILINE)
}


@pytest.mark.parametrize("dependency", PROJECT["dependencies"])
def test_each_dependency_is_pinned_at_a_version_that_will_do(dependency: str) -> None:
    wanted = Requirement(dependency)
    assert wanted.name in PINNED, "renew image/requirements.txt: its first lines say how"
    assert wanted.specifier.contains(PINNED[wanted.name], prereleases=True)


def test_each_package_is_known_by_digests() -> None:
    entries = re.split(r"^(?=[\w.-]+==)", PINNED_TEXT, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PINNED)
    assert all("--hash=sha256:" in entry for entry in entries)
