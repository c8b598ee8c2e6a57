"""guestctl mount, unmount, mounts: what a person types and reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.disks import mount_of
from tests.support.life import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    before = set(os.listdir("/mnt"))
    with serving() as server:
        yield server
    for name in set(os.listdir("/mnt")) - before:
        shutil.rmtree(f"/mnt/{name}")


def ctl(server: Server, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guestd.ctl", "--to", server.address, *words],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_words_of_mount_8_are_enough(server: Server) -> None:
    done = ctl(server, "mount", "-t", "tmpfs", "/mnt/scratch", "-o", "size=8M,noexec", "--mode", "0700")
    assert (done.returncode, done.stdout) == (0, "/mnt/scratch: mounted, tmpfs of -\n"), done.stderr
    assert mount_of("/mnt/scratch") == "tmpfs"
    done = ctl(server, "mount", "-t", "bind", "/etc", "etc", "--read-only")
    assert done.stdout == "/mnt/etc: mounted, bind of /etc\n"
    done = ctl(server, "mounts")
    assert done.stdout.splitlines()[0].split() == ["PATH", "TYPE", "SOURCE", "STATE", "SIZE", "FREE"]
    (line,) = (each for each in done.stdout.splitlines() if each.startswith("/mnt/scratch"))
    assert line.split() == ["/mnt/scratch", "tmpfs", "-", "mounted", "8.0M", "8.0M"]
    assert "NOT persistent" in done.stdout.splitlines()[-1]
    assert "NOT persistent" in ctl(server, "status").stdout
    found = json.loads(ctl(server, "--json", "mounts").stdout)
    assert {each["path"] for each in found["mounts"]} == {"/mnt/scratch", "/mnt/etc"}
    done = ctl(server, "--json", "unmount", "/mnt/scratch")
    assert json.loads(done.stdout) == {"path": "/mnt/scratch", "name": "scratch", "ways": ["plain"]}
    assert ctl(server, "unmount", "etc").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mount", "what", "/mnt/x"), "what is 'what'? say its type"),
        (("mount", "a", "b", "c"), "too many"),
        (("mount", "/mnt/unknown"), "no mount of guestd's is '/mnt/unknown'"),
        (("mount", "-t", "tmpfs", "/mnt/x", "-o", "sise=1"), "Invalid argument (sise)"),
        (("unmount", "/mnt/unknown"), "there are: none"),
        (("mount", "/dev/no-such", "/mnt/x", "--timeout", "1"), "/dev/no-such: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_and_what_would_be_right(
    server: Server, words: tuple[str, ...], said: str
) -> None:
    done = ctl(server, *words)
    assert done.returncode == 125
    assert said in done.stderr
    assert "ps`" not in done.stderr


def test_a_secret_comes_from_the_environment_and_not_from_the_line(server: Server) -> None:
    words = ("mount", "-t", "fuse", "b", "/mnt/b", "--program", "sh -c 'echo got $KEY >&2; exit 4' {path}")
    done = ctl(server, *words, "--env", "KEY", "--timeout", "1", KEY="hush")
    assert done.returncode == 125
    assert "sh ended with 4: got hush" in done.stderr
