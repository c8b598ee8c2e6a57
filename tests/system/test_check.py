"""`guestd check` and its neighbours, as programs: what is in force, where it comes from, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import guestd
from guestd.config import DEFAULT_FILE, Settings, keys_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Mount = Callable[[str, str], None]

ROOT = Path(guestd.__file__).resolve().parents[1]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def run(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`guestd ARGUMENTS` in an environment of which no setting comes."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "guestd", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def check(*arguments: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """What `guestd check --json` says, with its exit status, which must agree."""
    done = run("check", "--json", *arguments, environ=environ)
    assert done.stderr == ""
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if said["ok"] else 78)
    assert said["ok"] == (not said["problems"])
    return said


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guestd.toml"


@pytest.fixture(autouse=True)
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A machine of which no setting comes; and what puts text over one of its files, for one test."""
    directory = tmp_path_factory.mktemp("over")
    undo: list[str] = []

    def mount(target: str, text: str) -> None:
        source = directory / str(len(undo))
        source.write_text(text)
        subprocess.run(["mount", "--bind", str(source), target], check=True)
        undo.append(target)

    mount("/proc/cmdline", "")
    if Path(DEFAULT_FILE).exists():
        mount(DEFAULT_FILE, "")
    yield mount
    for target in reversed(undo):
        subprocess.run(["umount", target], check=True)


def test_a_person_reads_key_value_and_source_in_columns(file: Path) -> None:
    file.write_text('[command]\ntape = "2 MiB"\n[env]\nA = "b"\n')
    done = run("check", "--config", str(file), environ={"GUESTD_STOP_GRACE": "1m"})
    assert done.returncode == 0
    assert done.stderr == ""
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert rows["command.tape"].split() == ["command.tape", "2", "MiB", "file", f"{file}:2"]
    assert rows["env.A"].split() == ["env.A", '"b"', "file", f"{file}:4"]
    assert rows["stop.grace"].split() == ["stop.grace", "1", "m", "environment", "GUESTD_STOP_GRACE"]
    assert rows["log.level"].split() == ["log.level", '"info"', "default"]
    where = {rows[key].index(word) for key, word in (("log.level", "default"), ("command.tape", "file"))}
    assert len(where) == 1
    assert done.stdout.splitlines()[-1] == "guestd can start with these settings"
    missing = [key for key in keys_of(Settings) if key not in rows and key != "env"]
    assert missing == []


def test_problems_come_after_the_settings_each_with_its_fix(file: Path) -> None:
    file.write_text("[command]\ntpae = 1\n")
    done = run("check", "--config", str(file), "--listen", "foo")
    assert done.returncode == 78
    assert done.stdout.splitlines()[-5:] == [
        "",
        f"problem: file {file}:2: command.tpae is no setting; did you mean command.tape?",
        (
            "problem: --listen: listen[0] cannot be used: address 'foo': there is no scheme in it;"
            " expected unix:PATH, vsock:CID:PORT (CID may be any) or tcp:HOST:PORT"
        ),
        "",
        "2 problems: guestd cannot start like this",
    ]


def test_a_program_reads_the_same(file: Path) -> None:
    file.write_text("[command.rlimits]\nnofile = [1, 2]\n")
    said = check("--config", str(file), "--listen=unix:/run/x", environ={"GUESTD_COMMAND_TIMEOUT": "1h"})
    assert said["settings"]["command.rlimits.nofile"] == {
        "value": [1, 2],
        "shown": "[1, 2]",
        "source": "file",
        "name": str(file),
        "line": 2,
        "raw": [1, 2],
    }
    assert said["settings"]["listen"]["value"] == ["unix:/run/x"]
    assert said["settings"]["listen"]["source"] == "flag"
    assert said["settings"]["command.timeout"]["value"] == 3600
    assert said["settings"]["command.timeout"]["raw"] == "1h"
    assert said["settings"]["user"]["shown"].startswith("(agent if it exists")


def test_the_kernel_command_line_is_read(mounted: Mount) -> None:
    mounted("/proc/cmdline", 'console=ttyS0 guestd.command.nice=5 guestd.env.A="b c" -- guestd.zzz\n')
    said = check()
    assert said["ok"]
    assert said["settings"]["command.nice"] == {
        "value": 5,
        "shown": "5",
        "source": "kernel command line",
        "name": "",
        "line": None,
        "raw": "guestd.command.nice=5",
    }
    assert said["settings"]["env.A"]["value"] == "b c"


def test_the_usual_file_need_not_exist() -> None:
    assert check()["problems"] == []


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_file_that_is_named_must_exist(command: str, tmp_path: Path) -> None:
    done = run(command, "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 78
    expected = (
        f"file {tmp_path}/none.toml: the file cannot be read: No such file or directory; expected a TOML file"
    )
    assert expected in done.stdout + done.stderr


def test_serve_refuses_what_check_refuses(file: Path) -> None:
    file.write_text("[command]\ntpae = 1\nnice = 99\n")
    done = run("serve", "--config", str(file))
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"guestd: file {file}:2: command.tpae is no setting; did you mean command.tape?",
        f"guestd: file {file}:3: command.nice is 99; expected a whole number from -20 to 19",
        "guestd: not started; `guestd check` explains all settings",
    ]


# --------------------------------------------------------------------------------------- held against the machine


def trouble(**environ: str) -> list[tuple[str, str]]:
    found = check(environ={f"GUESTD_{name}": value for name, value in environ.items()})["problems"]
    return [(each["message"], each["fix"]) for each in found]


def test_the_runtime_directory_must_be_writable(file: Path) -> None:
    file.write_text("")
    assert trouble(RUNTIME_DIR=f"{file}/below") == [
        (
            f"runtime_dir is {file}/below: {file} is not a directory",
            f"make it writable for uid {os.geteuid()}, or choose another with GUESTD_RUNTIME_DIR",
        )
    ]
    assert trouble(RUNTIME_DIR=f"{file.parent}/made/later") == []
    assert not (file.parent / "made").exists()


def test_a_socket_s_directory_must_be_one(file: Path) -> None:
    file.write_text("")
    ((message, _),) = trouble(LISTEN=f"unix:{file}/s")
    assert message == f"listen has unix:{file}/s: {file} is not a directory"


def test_the_token_must_be_there_and_a_secret(tmp_path: Path) -> None:
    token = tmp_path / "token"
    ((message, fix),) = trouble(TOKEN_FILE=str(token))
    assert message == f"token_file is {token}: it cannot be read: No such file or directory"
    assert fix.startswith("put a long random text there: ")
    os.mkfifo(token)
    assert trouble(TOKEN_FILE=str(token))[0][0] == f"token_file is {token}: it is not a file"
    token.unlink()
    token.write_text("x" * 32)
    token.chmod(0o640)
    assert trouble(TOKEN_FILE=str(token)) == [
        (f"token_file is {token}: others can get at it, its mode is 0640", f"chmod 600 {token}")
    ]
    token.chmod(0o600)
    assert trouble(TOKEN_FILE=str(token), LISTEN="tcp:0.0.0.0:0") == []
    token.write_text("short\n")
    ((message, _),) = trouble(TOKEN_FILE=str(token))
    assert message == f"token_file is {token}: a token has at least 16 characters; this has 5"


def test_the_advice_about_the_token_is_good(tmp_path: Path) -> None:
    token = tmp_path / "token"
    ((_, fix),) = trouble(TOKEN_FILE=str(token))
    subprocess.run(["sh", "-c", fix.partition(": ")[2]], check=True)
    assert trouble(TOKEN_FILE=str(token)) == []


def test_the_user_must_exist() -> None:
    assert trouble(USER="nobody-of-that-name") == [
        (
            'user is "nobody-of-that-name": there is no such user in /etc/passwd',
            "create it in the image, or name another",
        )
    ]
    assert trouble(USER="root") == []
    assert trouble(USER="12345") == []


def test_the_shell_must_be_executable(file: Path) -> None:
    file.write_text("")
    ((message, _),) = trouble(SHELL=str(file))
    assert message == f"shell is {file}: it cannot be executed"
    assert trouble(SHELL="/bin/sh") == []


def test_a_workspace_that_is_not_there_yet_is_only_noted(tmp_path: Path) -> None:
    said = check(environ={"GUESTD_WORKSPACE": f"{tmp_path}/later"})
    assert said["ok"]
    assert [each["key"] for each in said["notes"]] == ["workspace"]
    assert check(environ={"GUESTD_WORKSPACE": str(tmp_path)})["notes"] == []


# ---------------------------------------------------------------------------------------------- the rest of the program


def test_every_setting_is_documented_as_it_is() -> None:
    """When this fails: put what `guestd check --keys` prints between the two marks."""
    _, _, rest = DOCUMENT.read_text().partition("<!-- keys -->\n\n")
    table, mark, _ = rest.partition("\n<!-- /keys -->")
    assert mark
    done = run("check", "--keys")
    assert done.returncode == 0
    assert table == done.stdout
    for key in keys_of(Settings):
        assert f"| `{key}` |" in table


def test_version() -> None:
    done = run("version")
    assert (done.returncode, done.stdout) == (0, f"guestd {guestd.__version__}\n")
    assert run("--version").stdout == done.stdout
    said = json.loads(run("version", "--json").stdout)
    assert said["guestd"] == guestd.__version__
    assert said["protocol"] == 1
    assert said["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["serve", "--help"], ["check", "-h"]])
def test_help(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stdout.startswith("guestd, the supervisor inside an agent's microVM")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which command?"),
        (["srve"], "there is no command srve"),
        (["serve", "--listn", "x"], "guestd serve does not take --listn"),
        (["serve", "extra"], "guestd serve does not take extra"),
        (["serve", "--json"], "guestd serve does not take --json"),
        (["serve", "--listen"], "--listen needs a value"),
        (["check", "--json=yes"], "--json takes no value"),
        (["version", "--config", "x"], "guestd version does not take --config"),
    ],
)
def test_a_command_line_that_is_not_understood(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"guestd: {said}\nusage: guestd serve ")


def test_start_up_imports_no_parser_of_flags() -> None:
    """Nobody can connect before this is over; the parser alone would cost more than all the rest of it."""
    program = "import sys; from guestd.cli import load; load(None); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"argparse", "tomllib", "difflib", "trio", "json"} & set(done.stdout.split())
