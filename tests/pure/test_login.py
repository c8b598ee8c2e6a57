"""A shell is started with the script of its kind where that would be read, and plainly everywhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import guestd
from guestd.process.login import starting

BASH = {"ENV": "bash-start.sh", "POSIXLY_CORRECT": "1"}
MARKS = {"GUESTD_SHELL_MARKS": "1"}
SCRIPTS = str(Path(guestd.__file__).parent / "shells")


@pytest.mark.parametrize(
    ("shell", "login", "integration", "argv", "changes"),
    [
        ("/bin/bash", True, True, ["-bash"], BASH | MARKS),
        ("/bin/bash", True, False, ["-bash"], BASH),
        ("/bin/bash", False, True, ["bash"], BASH | MARKS),
        ("/bin/bash", False, False, ["bash"], {}),
        ("/usr/bin/zsh", True, True, ["-zsh"], {"ZDOTDIR": "zsh"} | MARKS),
        ("/usr/bin/zsh", True, False, ["-zsh"], {"ZDOTDIR": "zsh"}),
        ("/usr/bin/zsh", False, False, ["zsh"], {}),
        ("/bin/sh", True, True, ["sh"], {"ENV": "sh-start.sh"}),
        ("/bin/dash", True, False, ["dash"], {"ENV": "sh-start.sh"}),
        ("/bin/dash", False, True, ["dash"], {}),
        ("/usr/bin/fish", True, True, ["-fish", "-l"], {}),
        ("/usr/bin/fish", False, True, ["fish"], {}),
        ("/usr/bin/tcsh", True, True, ["-tcsh"], {}),
    ],
)  # fmt: skip
def test_how_each_shell_is_started(
    shell: str, login: bool, integration: bool, argv: list[str], changes: dict[str, str]
) -> None:
    expected = {
        name.encode(): os.fsencode(os.path.join(SCRIPTS, value) if name in {"ENV", "ZDOTDIR"} else value)
        for name, value in changes.items()
    }
    assert starting(shell, {}, login=login, integration=integration, uid=0) == (argv, expected)


def test_what_the_container_says_in_the_same_variable_goes_along() -> None:
    _, changes = starting("/bin/bash", {b"ENV": b"x"}, login=True, integration=False, uid=0)
    assert changes[b"GUESTD_SHELL_ENV"] == b"x"
    _, changes = starting("/bin/zsh", {b"ZDOTDIR": b""}, login=True, integration=False, uid=0)
    assert changes[b"GUESTD_SHELL_ZDOTDIR"] == b""
    assert starting("/bin/bash", {b"POSIXLY_CORRECT": b""}, login=True, integration=True, uid=0) == (
        ["-bash"],
        {},
    )


@pytest.mark.parametrize("hidden", ["pa", "pa/ck", "pa/ck/bash-start.sh"])
def test_a_script_that_its_user_may_not_read_is_not_used(tmp_path: Path, hidden: str) -> None:
    """A bash would be in posix mode without having read anything."""
    folder = tmp_path / "pa" / "ck"
    folder.mkdir(parents=True)
    (folder / "bash-start.sh").touch(0o644)
    for above in (folder, *folder.parents):
        if tmp_path.parents[2] in above.parents:
            above.chmod(0o755)

    def is_used(uid: int | None) -> bool:
        return bool(starting("/bin/bash", {}, login=True, integration=True, uid=uid, scripts=str(folder))[1])

    assert is_used(None)
    assert is_used(os.getuid() + 1)
    (tmp_path / hidden).chmod(0o700)
    assert is_used(os.getuid())
    assert not is_used(os.getuid() + 1)
    assert not is_used(None)


def test_scripts_that_are_not_there_or_cannot_be_named_are_not_used(tmp_path: Path) -> None:
    assert starting("/bin/zsh", {}, login=True, integration=True, uid=0, scripts=str(tmp_path))[1] == {}
    folder = tmp_path / "a$b"
    folder.mkdir()
    (folder / "bash-start.sh").touch()
    assert starting("/bin/bash", {}, login=True, integration=True, uid=0, scripts=str(folder))[1] == {}


def test_each_name_in_the_scripts_is_ours() -> None:
    """What is set in somebody's shell must not be a name of theirs."""
    for script in Path(SCRIPTS).rglob("*"):
        if script.is_file():
            names = set(re.findall(r"(?m)^(\w+)(?:\(\)|\+?=)", script.read_text(encoding="utf-8")))
            assert all(name.startswith("__guestd_") for name in names), script
