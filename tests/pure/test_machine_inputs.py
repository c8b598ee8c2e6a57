"""What is cached of machines is known by all that it was made of: with anything else, it is another one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from image.vm import cache, inputs

if TYPE_CHECKING:
    from pathlib import Path

#: A checkout in small: each file that goes into /opt/guestd or into a machine, or is one of many such.
OF_GUESTD = (
    "LICENSE", "guestd/cli.py", "guestd/wire/frames.py", "image/bundle/python.py", "image/opt",
    "image/requirements.txt",
)  # fmt: skip
OF_MACHINE = (
    "image/vm/build.py",
    "image/vm/init.sh",
    "systemd/guestd.service",
    "systemd/guestd.service.d/x.conf",
)
#: And some that go into neither.
OTHERS = (
    "README.md", "pyproject.toml", "docs/machines.md", "image/run", "image/vm/qemu.py", "guestd/__pycache__/cli.pyc",
    "tests/run",
)  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    for name in (*OF_GUESTD, *OF_MACHINE, *OTHERS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    # What initramfs are made with; this machine may have none.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "busybox").write_text("#!/bin/sh\n")
    (programs / "busybox").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return root


def _both(root: Path) -> tuple[inputs.Sums, inputs.Sums]:
    return inputs.of_guestd(root), inputs.of_machine(root)


@pytest.mark.parametrize("name", [*OF_GUESTD, *OF_MACHINE, *OTHERS])
def test_a_file_is_of_one_of_them_or_of_neither(checkout: Path, name: str) -> None:
    before = _both(checkout)
    (checkout / name).write_text("something else")
    after = _both(checkout)
    changed = tuple(one != other for one, other in zip(before, after, strict=True))
    assert changed == (name in OF_GUESTD, name in OF_MACHINE)


def test_a_name_counts_and_where_the_checkout_is_does_not(checkout: Path) -> None:
    before = _both(checkout)
    moved = checkout.rename(checkout.with_name("moved"))
    assert _both(moved) == before
    (moved / "guestd/cli.py").rename(moved / "guestd/other.py")
    assert _both(moved)[0] != before[0]


def test_the_machine_at_hand_counts(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _both(checkout)
    python = tmp_path / "python3.99"
    python.touch()
    monkeypatch.setattr(inputs, "INTERPRETER", str(python))
    other_python = _both(checkout)
    assert (other_python[0] != before[0], other_python[1] == before[1]) == (True, True)
    (tmp_path / "bin/busybox").write_text("#!/bin/dash\n")
    assert _both(checkout)[1] != before[1]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    assert all(one != other for one, other in zip(_both(checkout), other_python, strict=True))


def test_these_are_the_files_of_this_checkout() -> None:
    """One that is moved takes its line with it."""
    there = {str(each.relative_to(inputs.ROOT)) for each in inputs.files_of_guestd()}
    assert set(OF_GUESTD) <= there
    assert "image/vm/build.py" in {str(each.relative_to(inputs.ROOT)) for each in inputs.files_of_machine()}


class _Made:
    """Something that takes long to make, and was made of one file of the machine's."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "libc.so.6"
        self.source.write_text("one")
        self.times = 0

    def make(self, place: Path) -> None:
        self.times += 1
        (place / "thing").write_text(f"made {self.times}")
        digest = hashlib.sha256(self.source.read_bytes()).hexdigest()
        (place / "made-of").write_text(f"{digest}  {self.source}\n")

    def have(self) -> str:
        def current(place: Path) -> bool:
            return inputs.unchanged(place / "made-of")

        return (cache.keep("kind", "name", self.make, current) / "thing").read_text()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Made:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return _Made(tmp_path)


def test_what_was_made_of_a_library_that_is_another_now_is_made_anew(
    made: _Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [made.have(), made.have()] == ["made 1", "made 1"]
    assert capsys.readouterr().err == ""
    made.source.write_text("two")
    assert [made.have(), made.have()] == ["made 2", "made 2"]
    assert "was made of something that has changed since; making it anew" in capsys.readouterr().err
    made.source.unlink()
    with pytest.raises(FileNotFoundError):
        made.have()


def test_what_is_not_as_it_was_made_is_made_anew(made: _Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.have() == "made 1"
    (found,) = cache.kept("kind")
    before = cache.sum_of(found)
    (found / "thing").write_text("damaged")
    assert made.have() == "made 2"
    assert "is not as it was made; making it anew" in capsys.readouterr().err
    assert cache.sum_of(found) != before
