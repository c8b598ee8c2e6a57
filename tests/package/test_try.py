"""`./image/try`, the first line of the README: in a minute somebody is in, and afterwards nothing is there."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.package.conftest import ROOT, SECONDS, clean_environment
from tests.support import namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

TRY = str(ROOT / "image" / "try")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One with an empty cache, so that the first start, which makes the virtual environment, is tested too."""
    environment = clean_environment(
        XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")),
        # Short: in the open, the socket is in it, and a socket's path has at most 107 bytes.
        TMPDIR=str(tmp_path_factory.mktemp("tmp")),
        SHELL="/bin/bash",
    )
    first = _try(environment, "--", "true")
    assert first.returncode == 0, first.stderr
    assert b"making an environment" in first.stderr
    return environment


def _try(
    environment: dict[str, str], *arguments: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [TRY, *arguments],
        env=environment,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=SECONDS,
        cwd="/",
    )


@pytest.fixture
def _nothing_left_on_the_machine(environment: dict[str, str]) -> Iterator[None]:
    """Files, where it could leave some. Processes and mounts are watched around every test of the suite."""
    before = os.listdir("/mnt"), os.path.exists("/run/guestd")
    yield
    assert os.listdir(environment["TMPDIR"]) == []
    assert (os.listdir("/mnt"), os.path.exists("/run/guestd")) == before


pytestmark = pytest.mark.usefixtures("_nothing_left_on_the_machine")

private = pytest.mark.skipif(
    namespace.unavailable() is not None, reason=f"no private namespace here: {namespace.unavailable()}"
)


def test_the_commands_status_comes_back(environment: dict[str, str]) -> None:
    assert _try(environment, "--", "sh", "-c", "exit 7").returncode == 7
    assert _try(environment, "--", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL
    assert _try(environment, "--", "no-such-program").returncode == 127


def test_a_machine_of_ones_own_is_asked_for_by_the_same_line(environment: dict[str, str]) -> None:
    """As far as one can see without one: the tier vm has them."""
    done = _try(environment, "--vm", "--keep", "no/name", "--", "true")
    assert (done.returncode, b"'no/name' is no name" in done.stderr) == (125, True), done.stderr
    assert b"--keep NAME" in _try(environment, "--vm", "--help").stdout


def test_output_and_input_are_the_commands_own(environment: dict[str, str]) -> None:
    every_byte = bytes(range(256)) * 100
    done = _try(environment, "--", "sh", "-c", "cat; echo err >&2", stdin=every_byte)
    assert (done.returncode, done.stdout, done.stderr) == (0, every_byte, b"err\n")


@private
def test_the_workspace_is_there_empty_and_where_a_command_starts(environment: dict[str, str]) -> None:
    done = _try(environment, "--", "sh", "-c", "pwd; ls -A; echo left >file; cat file")
    assert (done.returncode, done.stdout) == (0, b"/mnt/workspace\nleft\n")


@private
def test_the_environment_has_its_own_processes(environment: dict[str, str]) -> None:
    done = _try(environment, "--", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '")
    assert b"environment.py" in done.stdout


@private
def test_what_a_command_leaves_running_goes_too(environment: dict[str, str]) -> None:
    done = _try(environment, "--", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 3")
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, id="asked"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed", marks=private),
    ],
)
def test_ending_it_from_outside_ends_everything(
    environment: dict[str, str], number: int, status: int
) -> None:
    with subprocess.Popen(
        [TRY, "--", "sh", "-c", "echo running; exec sleep 1000"],
        env=environment,
        stdout=subprocess.PIPE,
        cwd="/",
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"running\n"
        running.send_signal(number)
        # The end of this pipe is the event: everything that had it is gone.
        assert running.stdout.read() == b""
        assert running.wait(60) == status


def test_a_guestd_that_does_not_start_is_shown_with_its_log(environment: dict[str, str]) -> None:
    done = _try({**environment, "GUESTD_NO_SUCH_SETTING": "1"}, "--", "true")
    assert done.returncode == 125
    assert b"before it was ready" in done.stderr
    assert b"NO_SUCH_SETTING" in done.stderr


def test_a_command_without_the_dashes_is_told_how(environment: dict[str, str]) -> None:
    done = _try(environment, "ls")
    assert done.returncode == 125
    assert b"./image/try -- COMMAND" in done.stderr


@private
def test_without_namespaces_it_says_so_and_runs_in_the_open(environment: dict[str, str]) -> None:
    inside = subprocess.run(
        [*namespace.forbidding(), TRY, "--", "sh", "-c", "exit 7"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert inside.returncode == 7, inside.stderr
    assert "allows no namespace of its own" in inside.stderr


def test_without_a_command_there_is_a_shell_on_the_terminal(environment: dict[str, str]) -> None:
    """Typed as a person would: the prompt, a command of guestctl's that finds its guestd, and `exit`."""
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.execve(TRY, [TRY], {**environment, "TERM": "dumb", "HOME": "/nonexistent"})
        finally:
            os._exit(99)
    try:
        seen = _read_until(terminal, b"(guestd) ")
        assert b"guestctl exec -- uname -a" in seen
        os.write(terminal, b'test -t 0 && guestctl --json ps | grep -o \'"kind": "sh[e]ll"\'\n')
        _read_until(terminal, b'"kind": "shell"')
        # A shell within, which the key that leaves is free for.
        os.write(terminal, b"guestctl shell work\n")
        _read_until(terminal, b"\n")
        _read_until(terminal, b"# ")
        os.write(terminal, b"\x1d")
        _read_until(terminal, b"guestctl shell work resumes]")
        os.write(terminal, b"guestctl exec -- sh -c 'echo $((6 * 7)) from $PWD'\n")
        _read_until(terminal, b"42 from ")
        os.write(terminal, b"exit 5\n")
        _read_until(terminal, None)
    finally:
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 5


def test_without_a_command_and_without_a_terminal_it_does_what_it_reads(environment: dict[str, str]) -> None:
    done = _try(environment, stdin=b"echo $((6 * 7)) $0; exit 3\n")
    assert (done.returncode, done.stdout) == (3, b"42 /bin/sh\n")


def _read_until(terminal: int, wanted: bytes | None) -> bytes:
    """Reads to where `wanted` has come, or to the end of the terminal."""
    seen = b""
    while wanted is None or wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"nothing more after {seen!r}"
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has it open any more
            assert wanted is None, f"it ended after {seen!r}"
            return seen
        seen += data
    return seen


def test_the_scripts_are_executable() -> None:
    for script in ("image/opt", "image/try", "image/venv", "tests/run", ".ci/run"):
        assert os.access(Path(ROOT, script), os.X_OK), script
