"""What machines are made of is made once, by one maker at a time, and never taken for what it is not."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from image.vm import base, cache
from image.vm.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
#: Says that it waits, or makes it and says so; a line for each thing that it does.
MAKER = """
import sys
from pathlib import Path
from image.vm import cache

def make(place: Path) -> None:
    print("making", flush=True)
    sys.stdin.readline()
    (place / "file").write_text("made")

print(cache.keep("kind", "name", make) / "file", flush=True)
"""
#: Holds what is kept until its input ends.
HOLDER = """
import sys
from pathlib import Path
from image.vm import cache
print(cache.hold(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    cache.release()


def _process(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _made(place: Path) -> None:
    (place / "file").write_text("made")


def _always(answer: str) -> Callable[[str], str]:
    def asked(_suite: str) -> str:
        return answer

    return asked


def test_two_at_once_make_one() -> None:
    with _process(MAKER) as first, _process(MAKER) as second:
        assert first.stdout is not None
        assert second.stdout is not None
        ready, _, _ = select.select([first.stdout.fileno(), second.stdout.fileno()], [], [], 60)
        quick, slow = (first, second) if first.stdout.fileno() in ready else (second, first)
        assert _said(quick) == "making"
        quick.communicate("\n", timeout=60)
        out, _ = slow.communicate("\n", timeout=60)
    assert "making" not in out
    assert Path(out.strip()).read_text() == "made"


def test_what_a_maker_that_was_killed_has_left_is_cleared_away() -> None:
    with _process(MAKER) as killed:
        assert _said(killed) == "making"
        killed.kill()
    place = cache.folder() / "kind"
    assert [each.name.startswith(".name.") for each in place.iterdir()] == [True]
    cache.keep("kind", "name", _made)
    assert [each.name for each in place.iterdir()] == ["name"]


def test_a_file_that_was_changed_is_made_anew() -> None:
    path = cache.keep("kind", "name", _made) / "file"
    path.write_text("else")
    assert (cache.keep("kind", "name", _made) / "file").read_text() == "made"


def test_what_somebody_uses_is_not_dropped() -> None:
    place = cache.keep("kind", "name", _made)
    with _process(HOLDER, place) as user:
        assert _said(user) == "True"
        cache.drop(place)
        assert (place / "file").exists()
        user.communicate(timeout=60)
    cache.drop(place)
    assert not place.exists()
    assert cache.hold(place) is False


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been made, by its first word; the mirror has one release."""
    made: list[str] = []

    def run(place: Path, *words: str | Path) -> None:
        made.append(str(words[0]))
        (place / "root.tar").write_text("made")

    monkeypatch.setattr(base, "_run", run)
    monkeypatch.setattr(base, "mirror", _always("http://mirror"))
    monkeypatch.setattr(base, "_release", _always("one"))
    return made


def test_machines_and_images_share_the_small_debian(asked: list[str]) -> None:
    base.bootstrap(packages=("jq",))
    base.minbase()
    base.bootstrap(packages=("git",))
    assert asked == ["minbase", "on", "on"]


def test_another_point_release_and_another_recipe_are_another_debian(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = base.minbase()
    assert base.minbase() == first
    monkeypatch.setattr(base, "_release", _always("two"))
    assert base.minbase() != first
    recipe = tmp_path / "recipe"
    recipe.write_text("another")
    monkeypatch.setattr(base, "_RECIPE", recipe)
    base.minbase()
    assert asked == ["minbase"] * 3


def test_without_a_mirror_the_last_one_serves(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_suite: str) -> str:
        raise OSError("no route")

    with monkeypatch.context() as offline:
        offline.setattr(base, "_release", refuse)
        with pytest.raises(Failure, match="cannot be asked for bookworm: no route"):
            base.minbase()
    first = base.minbase()
    monkeypatch.setattr(base, "_release", refuse)
    assert base.minbase() == first
    assert asked == ["minbase"]
