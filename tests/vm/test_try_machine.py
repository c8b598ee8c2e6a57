"""`image/try --vm` runs a command in a machine of its own, ends as that does, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_command_in_a_machine_and_nothing_left_of_it(tmp_path: Path) -> None:
    guestctl = tmp_path / "guestctl"
    guestctl.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m guestd.ctl "$@"\n')
    guestctl.chmod(0o755)
    command = ["sh", "-c", "cat /proc/1/comm; echo kept >/mnt/workspace/kept; exit 7"]
    # A short path, and nobody else's: it is empty again at the end.
    with tempfile.TemporaryDirectory(prefix="vm-") as place:
        done = subprocess.run(
            [
                sys.executable, "-B", "-S", ROOT / "image/vm", "sit", "--memory", "512M", "--keep", "a-test", "--",
                *command,
            ],
            env={
                **os.environ, "GUESTD_TEST_GUESTCTL": str(guestctl), "XDG_STATE_HOME": str(tmp_path), "TMPDIR": place,
            },
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (7, "guestd\n"), done.stderr
        assert os.listdir(place) == []
    disk = tmp_path / "guestd/machines/a-test/workspace.img"
    kept = subprocess.run(
        ["/sbin/debugfs", "-R", "cat kept", str(disk)], capture_output=True, check=True
    ).stdout
    assert kept == b"kept\n"
