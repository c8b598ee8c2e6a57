"""Mounts thought through: what is wrong with them, in which order they go, and how they stand against what is there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.storage.mountinfo import parse
from guestd.storage.plan import (
    Wanted,
    in_order,
    in_reverse,
    is_inside,
    mistakes,
    needs,
    split_nfs,
)
from guestd.storage.standing import ADOPT, MOUNT, judge

BLOCK = {"type": "block", "source": "serial=data"}


def wanted(**fields: Any) -> Wanted:  # noqa: ANN401  as they are
    return Wanted({"type": "tmpfs", **fields})


# ------------------------------------------------------------------------------------------------------------ defaults


def test_a_name_is_a_place_below_mnt_and_a_place_has_a_name() -> None:
    assert wanted(name="data").path == "/mnt/data"
    assert wanted(path="/mnt/data").name == "data"
    assert wanted(path="/var/lib/x y/").name == "var-lib-x-y"
    assert wanted(path="/mnt//a/./b/../c/").path == "/mnt/a/c"
    assert wanted(path="/mnt/x", name="other").name == "other"


def test_defaults_are_those_of_the_page() -> None:
    one = wanted(name="a")
    assert (one.timeout, one.required, one.fsck, one.grow, one.cover, one.read_only) == (
        30,
        True,
        "safe",
        True,
        False,
        False,
    )
    assert (
        Wanted({"type": "overlay", "name": "o", "source": "/l", "upper": "/mnt/d/up"}).work
        == "/mnt/d/.up.work"
    )


def test_what_is_told_of_it_hides_its_environment() -> None:
    one = Wanted({"type": "fuse", "name": "b", "source": "b", "program": "s3fs", "env": {"KEY": "hush"}})
    assert "hush" not in repr(one)
    assert "hush" not in str(one.to_map())
    assert Wanted(one.to_map(secrets=True)) == one


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"path": "relative"}, "path", "absolute path"),
        ({"path": "/"}, "path", "the machine itself"),
        ({"path": "/proc/x"}, "path", "the machine itself"),
        ({"path": "/usr"}, "path", "the machine itself"),
        ({"name": "-x"}, "name", "letter or digit"),
        ({"name": "x" * 65}, "name", "letter or digit"),
        ({"name": "a", "source": "x"}, "source", "leave it out"),
        ({"name": "a", "format": "ext4"}, "format", "block"),
        ({"name": "a", "upper": "/x"}, "upper", "overlay"),
        ({"name": "a", "env": {"A": "b"}}, "env", "fuse"),
        ({"name": "a", "options": ["a,b"]}, "options", "one option an item"),
        ({**BLOCK, "name": "a", "source": "disk"}, "source", "serial="),
        ({**BLOCK, "name": "a", "source": "serial="}, "source", "serial="),
        ({**BLOCK, "name": "a", "format": "ext4", "read_only": True}, "format", "read-only"),
        ({"type": "virtiofs", "name": "a"}, "source", "tag"),
        ({"type": "nfs", "name": "a", "source": "host"}, "source", "HOST:/PATH"),
        ({"type": "nfs", "name": "a", "source": "host:path"}, "source", "HOST:/PATH"),
        ({"type": "nfs", "name": "a", "source": "h:/p", "options": ["vers=3"]}, "options", "vers=4.1"),
        ({"type": "overlay", "name": "a"}, "source", "topmost first"),
        ({"type": "overlay", "name": "a", "source": "/l", "upper": "u"}, "upper", "absolute"),
        ({"type": "overlay", "path": "/mnt/u/x", "source": "/l", "upper": "/mnt/u"}, "path", "outside"),
        ({"type": "bind", "name": "a", "source": "x"}, "source", "absolute path"),
        ({"type": "fuse", "name": "a", "source": "b", "program": "curl"}, "program", "s3fs"),
        ({"type": "fuse", "name": "a", "program": "s3fs"}, "source", "bucket"),
        ({"type": "fuse", "name": "a", "program": ["x"]}, "program", "{path}"),
        ({"type": "fuse", "name": "a", "source": "b", "env": {"A": "x" * 20000}}, "env", "env_file"),
    ],
)
def test_what_is_wrong_names_its_field_and_what_would_be_right(
    fields: dict[str, Any], field: str, words: str
) -> None:
    found = mistakes([wanted(**fields)], 16)
    assert [each.field for each in found] == [field]
    assert words in f"{found[0].what} {found[0].fix}"


def test_together_they_have_a_limit_and_places_and_names_of_their_own() -> None:
    assert not mistakes([wanted(name=f"m{number}") for number in range(16)], 16)
    assert "limits.mounts" in mistakes([wanted(name=f"m{number}") for number in range(17)], 16)[0].fix
    (twice,) = mistakes([wanted(path="/mnt/a"), wanted(path="/mnt/a/", name="b")], 16)
    assert (twice.at, twice.field) == (1, "path")
    (named,) = mistakes([wanted(path="/mnt/a", name="x"), wanted(path="/mnt/b", name="x")], 16)
    assert (named.at, named.field) == (1, "name")


def test_those_that_need_each_other_are_a_mistake() -> None:
    one = wanted(type="bind", path="/mnt/a", source="/mnt/b/in")
    two = wanted(type="bind", path="/mnt/b", source="/mnt/a/in")
    (found,) = mistakes([one, two], 16)
    assert "need each other" in found.fix


# --------------------------------------------------------------------------------------------------------------- order


def test_what_lies_in_another_or_shows_it_comes_later() -> None:
    work = wanted(type="overlay", path="/mnt/work", source="/mnt/image", upper="/mnt/disk/up")
    disk, inside, image = (wanted(path=f"/mnt/{each}") for each in ("disk", "disk/in", "image"))
    order = [each.path for each in in_order([work, inside, disk, image])]
    assert order.index("/mnt/disk") < order.index("/mnt/disk/in")
    assert order.index("/mnt/work") > max(order.index("/mnt/disk"), order.index("/mnt/image"))
    assert [each.path for each in in_reverse([work, inside, disk, image])] == order[::-1]
    assert not needs(wanted(path="/mnt/diskette"), disk)


_PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/mnt/" + "/".join(parts))


@given(st.lists(_PATHS, unique=True, max_size=8))
def test_any_tree_has_an_order_in_which_each_finds_its_place(paths: list[str]) -> None:
    order = in_order([wanted(path=path, name=f"m{at}") for at, path in enumerate(paths)])
    assert sorted(each.path for each in order) == sorted(paths)
    for at, one in enumerate(order):
        assert not any(is_inside(one.path, later.path) for later in order[at + 1 :])


# ----------------------------------------------------------------------------------------------- what is there already

TABLE = parse(
    """\
20 1 254:0 / / rw - ext4 /dev/vda rw
21 20 8:16 / /mnt/data rw - ext4 /dev/sdb rw
22 20 0:40 / /mnt/share ro - virtiofs share rw
23 20 0:41 / /mnt/nfs rw - nfs4 fs:/export/ rw,vers=4.2
24 20 254:0 /home/x /mnt/bound rw - ext4 /dev/vda rw
25 20 0:42 / /mnt/over rw - overlay over rw,lowerdir=/image:/base
26 20 0:43 / /mnt/bucket rw - fuse.s3fs s3fs rw
27 20 0:44 / /mnt/mem rw - tmpfs x rw
28 21 0:45 / /mnt/data/in rw - tmpfs x rw
""".splitlines()
)


@pytest.mark.parametrize(
    ("fields", "device", "verdict", "why"),
    [
        ({"path": "/mnt/new"}, None, MOUNT, ""),
        ({"path": "/mnt/mem"}, None, ADOPT, ""),
        ({"path": "/mnt/data"}, None, "", "ext4"),
        ({**BLOCK, "path": "/mnt/data"}, "8:16", ADOPT, ""),
        ({**BLOCK, "path": "/mnt/data"}, "8:32", "", "8:16 and not 8:32"),
        ({**BLOCK, "path": "/mnt/mem"}, "8:16", "", "tmpfs"),
        ({**BLOCK, "path": "/mnt/data", "read_only": True}, "8:16", "", "can be written"),
        ({"type": "virtiofs", "path": "/mnt/share", "source": "share"}, None, ADOPT, ""),
        ({"type": "virtiofs", "path": "/mnt/share", "source": "share", "read_only": True}, None, ADOPT, ""),
        ({"type": "virtiofs", "path": "/mnt/share", "source": "other"}, None, "", "not of other"),
        ({"type": "nfs", "path": "/mnt/nfs", "source": "fs:/export"}, None, ADOPT, ""),
        ({"type": "nfs", "path": "/mnt/nfs", "source": "fs:/else"}, None, "", "not of fs:/else"),
        ({"type": "bind", "path": "/mnt/bound", "source": "/home/x"}, None, ADOPT, ""),
        ({"type": "bind", "path": "/mnt/bound", "source": "/home/y"}, None, "", "not /home/y"),
        ({"type": "overlay", "path": "/mnt/over", "source": "/image:/base"}, None, ADOPT, ""),
        ({"type": "overlay", "path": "/mnt/over", "source": "/base"}, None, "", "not of /base"),
        ({"type": "fuse", "path": "/mnt/bucket", "source": "b", "program": "s3fs"}, None, ADOPT, ""),
        ({"type": "fuse", "path": "/mnt/mem", "source": "b", "program": "s3fs"}, None, "", "not a FUSE"),
    ],
)
def test_what_is_there_is_adopted_and_what_is_wrong_is_said(
    fields: dict[str, Any], device: str | None, verdict: str, why: str
) -> None:
    found, said = judge(wanted(**fields), TABLE, device)
    assert found == verdict
    assert why in said
    if not verdict:
        assert str(fields["path"]) in said


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("h:/p", ("h", ":", "/p")),
        ("[fd00::1]:/p", ("fd00::1", ":", "/p")),
        ("[fd00::1]/p", ("", "", "")),
        ("h", ("h", "", "")),
    ],
)
def test_where_an_export_is(source: str, parts: tuple[str, str, str]) -> None:
    assert split_nfs(source) == parts
