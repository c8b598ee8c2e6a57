"""What `cp` means: docker cp's rules, and errors that say what would be right."""

from __future__ import annotations

import pytest

from guestd.ctl import progress
from guestd.ctl.cp_plan import GUEST, HERE, PIPE, Path, Step, Wrong, place, read, sort


def test_whose_a_path_is() -> None:
    assert read(":/etc/hosts") == Path(GUEST, "/etc/hosts")
    assert read(":") == Path(GUEST, ".")
    assert read(":a:b") == Path(GUEST, "a:b")
    assert read("./:x") == Path(HERE, "./:x")
    assert read("-") == Path(PIPE, "-")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a"], "a source and a destination"),
        ([":a", ":b"], "guestctl exec -- cp -a"),
        (["a", "b"], "neither end is in the guest"),
        ([":a", "b", "c"], "in two steps"),
        (["-", "a", ":b"], "stands alone"),
        ([":a", ":b", "-"], "takes one source"),
        (["-", "x"], "neither end"),
        (["", ":b"], "empty"),
    ],
)
def test_what_cannot_be_meant(arguments: list[str], why: str) -> None:
    with pytest.raises(Wrong, match=why):
        sort(arguments)


@pytest.mark.parametrize(
    ("source", "kind", "target", "there", "step"),
    [
        ("a", "file", "/d", "dir", Step(tree=False, into="/d/a", name="a")),
        ("x/a", "file", ".", "dir", Step(tree=False, into="a", name="a")),
        ("a", "file", "/d/b", "absent", Step(tree=False, into="/d/b", name="b")),
        ("a", "file", "/d/b", "file", Step(tree=False, into="/d/b", name="b")),
        ("a", "dir", "/d", "dir", Step(tree=True, into="/d", name="a")),
        ("a/", "dir", "/d", "dir", Step(tree=True, into="/d", name="a")),
        ("a/.", "dir", "/d", "dir", Step(tree=True, into="/d", name=".")),
        (".", "dir", "/d", "dir", Step(tree=True, into="/d", name=".")),
        ("..", "dir", "/d", "dir", Step(tree=True, into="/d", name=".")),
        ("/", "dir", "/d", "dir", Step(tree=True, into="/d", name=".")),
        ("a", "dir", "/d/new", "absent", Step(tree=True, into="/d/new", name=".", makes=True)),
        ("a", "dir", "/d/new/", "absent", Step(tree=True, into="/d/new/", name=".", makes=True)),
        ("l", "symlink", "/d", "dir", Step(tree=True, into="/d", name="l")),
        ("l", "symlink", "/d/m", "absent", Step(tree=True, into="/d", name="m")),
        ("l", "fifo", "m", "absent", Step(tree=True, into=".", name="m")),
        ("l", "other", "/m", "file", Step(tree=True, into="/", name="m")),
    ],
)
def test_where_it_goes(source: str, kind: str, target: str, there: str, step: Step) -> None:
    assert place(Path(HERE, source), kind, Path(GUEST, target), there, several=False) == step


@pytest.mark.parametrize(
    ("kind", "target", "there", "several", "why"),
    [
        ("file", "/d/", "absent", False, "no folder '/d/'"),
        ("file", "/d/", "file", False, "is no folder"),
        ("dir", "/d", "file", False, "is there and is none"),
        ("file", "/d", "absent", True, "several sources need one"),
        ("dir", "/d", "file", True, "several sources need one"),
    ],
)
def test_where_it_cannot_go(kind: str, target: str, there: str, several: bool, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        place(Path(HERE, "a"), kind, Path(GUEST, target), there, several=several)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (1_400_000_000, "1.4 GB"), (123_456, "123 KB")],
)
def test_sizes_for_people(number: int, text: str) -> None:
    assert progress.size(number) == text


def test_the_line_fits_any_terminal() -> None:
    for columns in range(200):
        for total in (None, 0, 5000):
            text = progress.line("a\nlong name/" * 5, 2500, total, 1000.0, columns)
            assert len(text) <= columns
            assert text.isprintable()
    assert " 50 %" in progress.line("name", 2500, 5000, 1000.0, 100)
    assert progress.duration(3723) == "1:02:03"
