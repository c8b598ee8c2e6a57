"""`image/try --vm`: a command or a shell in a machine of its own, which leaves nothing, or what it is told to keep."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import vm
from tests.support.tty import Tty

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
#: Two of them run at once.
SMALL = ("--memory", "384M", "--cpus", "1")


class Trier:
    """Somebody who calls it. `place` is where it may leave things, `state` where it is told to keep some."""

    def __init__(self, tmp_path: Path, place: str) -> None:
        guestctl = tmp_path / "guestctl"
        guestctl.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m guestd.ctl "$@"\n')
        guestctl.chmod(0o755)
        self.state = tmp_path / "state"
        self.place = place
        self.env = {
            **os.environ, "GUESTD_TEST_GUESTCTL": str(guestctl), "XDG_STATE_HOME": str(self.state), "TMPDIR": place,
            "TERM": "xterm",
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words), env=self.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def call(self, *words: str) -> tuple[int, str, str]:
        """Its status, and what it has said on both."""
        return ended(self.start(*words))

    @staticmethod
    def argv(*words: str) -> Sequence[str]:
        return [sys.executable, "-B", "-S", str(ROOT / "image/vm"), "sit", *words]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with process:
        out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def trier(tmp_path: Path) -> Iterator[Trier]:
    # A short path, and nobody else's: it is empty again at the end.
    with tempfile.TemporaryDirectory(prefix="vm-") as place:
        found = Trier(tmp_path, place)
        yield found
        assert os.listdir(place) == []


def test_one_that_is_kept_and_one_that_is_not(trier: Trier) -> None:
    """A shell in one that is kept, beside a command in one that is not; then the first is there again."""
    gone = ["sh", "-c", "cat /proc/1/comm; ls /mnt/workspace; echo gone >/mnt/workspace/gone; exit 7"]
    keep = ("--keep", "a-test")
    with contextlib.ExitStack() as undo:
        other = trier.start(*SMALL, "--", *gone)
        undo.callback(other.communicate)
        undo.callback(other.kill)
        with Tty(trier.argv(*SMALL, *keep), trier.env, patience=vm.PATIENCE) as tty:
            tty.wait_for("this is a shell in it")
            tty.wait_for("kept as a-test")
            # Its prompt.
            tty.wait_for(rb"[#$] ")
            tty.type("stty size; guestctl status | grep ^started; echo kept >/mnt/workspace/kept; exit 3\r")
            tty.wait_for("24 80")
            tty.wait_for(r"started +init \+.*after the kernel began")
            # Its workspace is one machine's at a time; no other is waited for.
            for words in (keep, ("--forget", "a-test")):
                status, _, told = trier.call(*words)
                assert (status, "a-test is running" in told) == (125, True), told
            assert tty.end() == 3, tty.rest_of_it
        status, said, told = ended(other)
        assert (status, said) == (7, "guestd\nlost+found\n"), told
        undo.pop_all()
    assert os.listdir(trier.place) == []
    assert [str(each.relative_to(trier.state)) for each in trier.state.rglob("*") if each.is_file()] == [
        "guestd/machines/a-test/workspace.img"
    ]
    status, said, told = trier.call(*SMALL, *keep, "--", "sh", "-c", "cat /mnt/workspace/kept; kill -9 $$")
    assert (status, said) == (128 + 9, "kept\n"), told
    assert trier.call("--forget", "a-test") == (0, "", "")
    assert os.listdir(trier.state / "guestd/machines") == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--keep", "a/b"], "'a/b' is no name for a workspace that is kept: at most 64 letters"),
        (["--keep", "a", "--workspace", "b"], "two workspaces, and a machine has one"),
        (["--forget", "nobody"], "nothing is kept as nobody; what is kept: nothing"),
        (["--image", "/nowhere"], "/nowhere: No such file or directory; image/build makes one"),
    ],
)
def test_what_cannot_be_is_said_at_once(trier: Trier, words: list[str], told: str) -> None:
    status, said, why = trier.call(*words)
    assert (status, said, told in why) == (125, "", True), why
    assert not list(trier.state.rglob("machines/*"))
