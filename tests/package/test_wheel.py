"""The installed wheel works by itself: what is in it, its programs, and one command through all of it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import guestd
from tests.package.conftest import ROOT, Installed, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator


def _contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as z:
        return set(z.namelist())


def test_it_holds_the_package_and_nothing_beside_it(installed: Installed) -> None:
    files = {name for name in _contents(installed.wheel) if ".dist-info/" not in name}
    sources = {
        str(p.relative_to(ROOT)) for p in (ROOT / "guestd").rglob("*") if p.suffix in {".py", ".typed"}
    } | {str(p.relative_to(ROOT)) for p in (ROOT / "guestd" / "shells").rglob("*") if p.is_file()}
    assert files == sources


def test_its_metadata_say_what_it_is(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as z:
        (name,) = (name for name in z.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(z.read(name).decode())
        assert any(name.endswith("/LICENSE") for name in z.namelist())
    assert metadata["Version"] == guestd.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_every_module_compiles_without_a_warning(installed: Installed, tmp_path: Path) -> None:
    where = installed.run(
        "python", "-c", "import guestd; print(guestd.__path__[0])", cwd=tmp_path
    ).stdout.strip()
    assert not where.startswith(str(ROOT)), "the checkout is what was imported, not the wheel"
    done = installed.run("python", "-W", "error", "-m", "compileall", "-q", "-f", where, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("program", ["guestd", "guestctl"])
def test_its_programs_say_their_version(installed: Installed, tmp_path: Path, program: str) -> None:
    done = installed.run(program, "version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert guestd.__version__ in done.stdout


def test_guestctl_says_what_to_do_when_nobody_answers(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("guestctl", "--to", f"unix:{tmp_path}/none", "exec", "--", "true", cwd=tmp_path)
    assert done.returncode == 125
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def address(installed: Installed) -> Iterator[str]:
    """A `guestd serve` out of the wheel, ready, and stopped in order."""
    with tempfile.TemporaryDirectory(prefix="guestd-") as place:
        address = f"unix:{place}/guestd.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, open(f"{place}/log", "wb") as log:
            notified.bind(f"{place}/notify")
            serve = subprocess.Popen(
                [installed.programs / "guestd", "serve", "--listen", address],
                cwd=place,
                env=clean_environment(
                    installed.programs,
                    GUESTD_RUNTIME_DIR=place,
                    NOTIFY_SOCKET=f"{place}/notify",
                    PYTHONWARNINGS="error",
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            ended = os.pidfd_open(serve.pid)
            select.select([notified, ended], [], [], 30)
            os.close(ended)
            try:
                assert b"READY=1" in notified.recv(4096, socket.MSG_DONTWAIT), Path(log.name).read_text()
                yield address
            finally:
                serve.send_signal(signal.SIGTERM)
                status = serve.wait(30)
        written = Path(place, "log").read_text()
        assert status == 0, written
        assert [line for line in written.splitlines() if "READY" in line], "no READY line for a person to see"


def test_exec_ends_with_the_commands_status(installed: Installed, address: str, tmp_path: Path) -> None:
    done = installed.run(
        "guestctl",
        "exec",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
        cwd=tmp_path,
        GUESTD_TO=address,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_exec_tells_a_signal_a_timeout_and_a_missing_program_apart(
    installed: Installed, address: str, tmp_path: Path
) -> None:
    def status(*argv: str) -> int:
        return installed.run("guestctl", "--to", address, "exec", *argv, cwd=tmp_path).returncode

    assert status("kill -9 $$") == 128 + signal.SIGKILL
    assert status("--timeout", "0.05", "--", "sleep", "1000") == 124
    assert status("--", "/etc/passwd") == 126
    assert status("--", "no-such-program") == 127
