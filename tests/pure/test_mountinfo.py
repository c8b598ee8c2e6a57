"""The kernel's table of mounts, as it writes it, and as it could."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.storage.mountinfo import below, parse, parse_line, unescaped, visible

LINES = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:13 master:2 propagate_from:9 - proc proc rw
40 22 7:0 /sub\\040dir /mnt/a\\040b rw,nosuid - xfs /dev/loop0 rw,attr2
41 40 0:50 / /mnt/a\\040b/c ro - overlay over\\134lay ro,lowerdir=/x\\054y:/z,upperdir=/u
42 22 0:51 / /mnt/tab\\011line\\012 rw unbindable - tmpfs  rw
43 22 0:52 / /proc rw - tmpfs above rw,size=1k
44 22 0:53 /gone//deleted /mnt/gone rw - ext4 /dev/vda rw,emergency_ro
"""


def test_every_field_is_read() -> None:
    root, proc, part, over, odd, above, gone = parse(LINES.splitlines(keepends=True))
    assert (root.id, root.parent, root.device, root.root, root.target) == (22, 1, "254:0", "/", "/")
    assert (root.type, root.source, root.option("errors")) == ("ext4", "/dev/vda", "remount-ro")
    assert (root.propagation, proc.propagation) == (
        ("shared:1",),
        ("shared:13", "master:2", "propagate_from:9"),
    )
    assert (part.root, part.target, part.propagation) == ("/sub dir", "/mnt/a b", ())
    assert (over.source, over.option("lowerdir"), over.read_only) == ("over\\lay", "/x,y:/z", True)
    assert (odd.target, odd.source, odd.propagation) == ("/mnt/tab\tline\n", "", ("unbindable",))
    assert (above.option("size"), above.option("nr_inodes")) == ("1k", None)
    assert (gone.root, gone.failed_read_only, root.failed_read_only) == ("/gone", True, False)


def test_what_is_mounted_over_is_not_seen() -> None:
    table = parse(LINES.splitlines())
    found = visible(table, "/proc")
    assert found is not None
    assert found.source == "above"
    assert visible(table, "/mnt") is None
    assert [each.target for each in below(table, "/mnt/a b")] == ["/mnt/a b/c"]
    assert [each.id for each in below(table, "/")][-1] == 22 or below(table, "/")[-1].target != "/"


@pytest.mark.parametrize(
    "line", ["", "x", "1 2 3:4 / /a rw", "a b c:d / /x rw - ext4 y z", "1 2 0:1 / /a rw - ext4"]
)
def test_what_is_no_line_is_none(line: str) -> None:
    assert parse_line(line) is None


@given(st.text(alphabet=string.printable + "äöß€"))
def test_a_name_comes_back_as_it_was(name: str) -> None:
    written = "".join(f"\\{ord(each):03o}" if each in " \t\n\\" else each for each in name)
    assert unescaped(written) == name


@given(st.text())
def test_nothing_is_too_odd_to_be_read(text: str) -> None:
    unescaped(text)
    parse_line(text)
    parse(text.splitlines())
