"""What the kernel, or a program, is told for each type of file system."""

from __future__ import annotations

from typing import Any

import pytest

from guestd.storage.fuse import command, read_env_file
from guestd.storage.options import NOATIME, NODEV, NOEXEC, NOSUID, RDONLY, Told, tell
from guestd.storage.plan import Wanted

USUAL = NOSUID | NODEV


def told(**fields: Any) -> list[Told]:  # noqa: ANN401  as they are
    return tell(Wanted(fields), fs_type="ext4", device="/dev/vdb")


def test_a_disk() -> None:
    assert told(type="block", name="d", source="serial=d") == [
        Told("ext4", "/dev/vdb", USUAL, ("errors=remount-ro",))
    ]
    (one,) = told(
        type="block", name="d", source="serial=d", options=["errors=panic", "noatime", "suid", "nofail"]
    )
    assert (one.attributes, one.parameters) == (NODEV | NOATIME, ("errors=panic",))


def test_shares_of_the_host() -> None:
    found = told(type="virtiofs", name="s", source="tag", read_only=True)
    assert found == [Told("virtiofs", "tag", USUAL | RDONLY, ())]
    (nine,) = told(type="9p", name="s", source="tag", options=["msize=8192", "noexec"])
    assert (nine.type, nine.source, nine.attributes) == ("9p", "tag", USUAL | NOEXEC)
    assert set(nine.parameters) == {"trans=virtio", "version=9p2000.L", "access=client", "msize=8192"}


def test_a_server_is_asked_for_the_newest_version_first() -> None:
    found = told(type="nfs", name="n", source="fs.local:/x")
    assert [each.parameters[0] for each in found] == ["vers=4.2", "vers=4.1"]
    assert {(each.source, each.host) for each in found} == {("fs.local:/x", "fs.local")}
    assert {"hard", "timeo=600", "retrans=2", "rsize=1048576", "wsize=1048576", "noresvport"} <= set(
        found[0].parameters
    )


def test_efs_is_asked_for_the_one_that_it_knows() -> None:
    (one,) = told(type="nfs", name="n", source="fs-1.efs.eu-west-1.amazonaws.com:/")
    assert one.parameters[0] == "vers=4.1"


def test_what_was_asked_for_is_stronger_than_what_is_usual() -> None:
    (one,) = told(
        type="nfs", name="n", source="[fd00::1]:/x", options=["nfsvers=4.2", "soft", "timeo=50", "resvport"]
    )
    assert (one.source, one.host) == ("[fd00::1]:/x", "fd00::1")
    assert {"vers=4.2", "soft", "timeo=50"} <= set(one.parameters)
    assert not {"hard", "timeo=600", "noresvport", "nfsvers=4.2"} & set(one.parameters)


def test_an_overlay_may_hold_programs_of_the_image() -> None:
    (one,) = told(type="overlay", name="o", source="/image:/base", upper="/mnt/d/up")
    assert one.attributes == 0
    assert one.parameters == ("lowerdir=/image:/base", "upperdir=/mnt/d/up", "workdir=/mnt/d/.up.work")
    assert told(type="overlay", name="o", source="/image")[0].parameters == ("lowerdir=/image",)


def test_memory_is_for_everybody_to_look_at_unless_said() -> None:
    assert told(type="tmpfs", name="t", options=["size=1G"])[0].parameters == ("mode=0755", "size=1G")
    assert told(type="tmpfs", name="t", mode="1777")[0].parameters == ("mode=1777",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"program": "s3fs", "options": ["url=http://x"]}, "s3fs b /mnt/f -f -o allow_other,uid=7,gid=8,url=http://x"),
        ({"program": "rclone", "options": ["vfs-cache-mode=full"]},
         "rclone mount b /mnt/f --allow-other --uid=7 --gid=8 --vfs-cache-mode=full"),
        ({"read_only": True}, "mount-s3 --foreground --allow-other --uid=7 --gid=8 --read-only b /mnt/f"),
        ({"program": ["x", "{source}", "{path}"]}, "x b /mnt/f"),
    ],
)  # fmt: skip
def test_a_program_stays_in_the_foreground(fields: dict[str, Any], words: str) -> None:
    one = Wanted({"type": "fuse", "name": "f", "source": "b", "env": {"SECRET": "hush"}, **fields})
    assert " ".join(command(one, 7, 8)) == words


def test_a_file_of_variables_is_read_as_a_shell_would() -> None:
    text = "# a comment\nA=1\nexport B='two words'\n\nC = \"x=y\"\nnonsense\n"
    assert read_env_file(text) == {"A": "1", "B": "two words", "C": "x=y"}
