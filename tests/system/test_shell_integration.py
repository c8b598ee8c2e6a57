"""A shell that a person is given is the shell that they would have at a machine of their own, and tells what is typed.

Real shells on real terminals, without guestd: what it starts them with, and what it reads of their output.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from guestd.process.login import starting
from guestd.terminal.marks import HELD_MAX, Marks
from tests.support.terminal import cursor, fed, screen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PATIENCE = 20.0
CONTAINER_PATH = "/opt/agent/bin:/usr/local/bin:/usr/bin:/bin"
PROFILE = """\
PATH=/from/profile:/usr/bin:/bin
export PATH
READ="${READ-}profile "
"""
ZPROFILE = "emulate sh -c '. /etc/profile'\n"


class Session:
    """A shell on a terminal. What it prints is kept, and shown to Marks as it comes."""

    def __init__(
        self,
        shell: str,
        home: Path,
        *,
        login: bool = True,
        integration: bool = True,
        plain: bool = False,
        env: Mapping[str, str] | None = None,
        columns: int = 200,
    ) -> None:
        given = {
            b"HOME": os.fsencode(home), b"PATH": CONTAINER_PATH.encode(), b"TERM": b"xterm-256color",
            b"LANG": b"C.UTF-8", b"USER": b"root", b"SHELL": shell.encode(),
        }  # fmt: skip
        given |= {name.encode(): value.encode() for name, value in (env or {}).items()}
        if plain:
            name = os.path.basename(shell)
            argv, changes = (["-" + name] if login else [name]), dict[bytes, bytes]()
        else:
            argv, changes = starting(shell, given, login=login, integration=integration, uid=os.getuid())
        self.output = b""
        self.marks = Marks()
        self.status: int | None = None
        self.master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ]
        self.pid = os.posix_spawn(
            shell, argv, {**given, **changes}, file_actions=actions, setsid=True, setsigdef=[signal.SIGPIPE]
        )
        os.close(slave)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self.master)
        self.reap()

    def reap(self) -> int:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def read(self, deadline: float, wanted: str) -> bool:
        """More of what it prints; False at its end."""
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.master], [], [], left)[0]:
            pytest.fail(f"{wanted!r} did not come in {PATIENCE} s; there was: {self.output[-3000:]!r}")
        try:
            chunk = os.read(self.master, 65536)
        except OSError:
            return False
        self.marks.feed(len(self.output), chunk, time.time(), time.monotonic())
        self.output += chunk
        return bool(chunk)

    def until(self, pattern: str, since: int = 0) -> re.Match[bytes]:
        """Wait until this has been printed."""
        deadline = time.monotonic() + PATIENCE
        expression = re.compile(pattern.encode(), re.DOTALL)
        while (found := expression.search(self.output, since)) is None:
            if not self.read(deadline, pattern):
                pytest.fail(f"it ended before {pattern!r} came; there was: {self.output[-3000:]!r}")
        return found

    def to_end(self) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while self.read(deadline, "its end"):
            pass
        return self.output

    def type(self, keys: str) -> int:
        """Returns where its output began."""
        data = keys.encode()
        while data:
            data = data[os.write(self.master, data) :]
        return len(self.output)

    def prompt(self, since: int = 0) -> None:
        """Wait for a prompt, to its end."""
        self.until("\x1b]133;A\x07.*?\x1b\\]133;B\x07".replace("\x1b]133;A", "\x1b\\]133;A"), since)

    def run(self, line: str) -> tuple[str, int | None, str]:
        """Type a line and wait for the next prompt. The command as it was told: text, exit, output."""
        before = self.marks.count
        self.prompt(self.type(line + "\r"))
        assert self.marks.count == before + 1, self.output[-2000:]
        return self.last()

    def last(self) -> tuple[str, int | None, str]:
        command = self.marks.commands[-1]
        return command.text, command.exit, self.printed(-1)

    def printed(self, number: int) -> str:
        command = self.marks.commands[number]
        return self.output[command.start : command.end].decode().replace("\r\n", "\n")

    def nothing_run(self, keys: str) -> None:
        """Type what runs no command, and wait for the next prompt."""
        before = self.marks.count
        self.prompt(self.type(keys))
        assert self.marks.count == before

    def wait_for_program(self, name: str) -> None:
        """Wait until keys are for this program: before it runs, the shell that is to become it loses them."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError), open(f"/proc/{os.tcgetpgrp(self.master)}/comm", encoding="utf-8") as file:
                if file.read().strip() == name:
                    return
        pytest.fail(f"{name} did not start")

    def wait_until_idle(self) -> None:
        """Wait until the shell itself sleeps: a bash that is about to may miss a Ctrl+C until the next key."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8") as file:
                if file.read().rpartition(")")[2].split()[0] == "S":
                    return
        pytest.fail("the shell does not come to rest")

    def value(self, expression: str) -> str:
        """What the shell makes of it."""
        _, _, printed = self.run(f'printf "%s" "{expression}"')
        # zsh shows where a last line has no end.
        return re.sub(r"\x1b\[\d*m|\x1b\[\d*[JK]|%? +\r \r?$", "", printed)


@pytest.fixture(scope="module", autouse=True)
def system_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An /etc/profile that drops the container's PATH, read by zsh too, as on many systems."""
    folder = tmp_path_factory.mktemp("etc")
    mounted: list[str] = []
    for target, text in (
        ("/etc/profile", PROFILE),
        ("/etc/zsh/zprofile", ZPROFILE),
        ("/etc/zprofile", ZPROFILE),
    ):
        if os.path.exists(target):
            source = folder / os.path.basename(os.path.dirname(target) + "-" + os.path.basename(target))
            source.write_text(text)
            subprocess.run(["mount", "--bind", source, target], check=True)
            mounted.append(target)
    yield
    for target in mounted:
        subprocess.run(["umount", target], check=True)


class Home:
    """Somebody's home. Their files are as they were, whatever was done in a shell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions: list[Session] = []
        self._files: dict[str, str] = {}

    def write(self, **files: str) -> None:
        """Their names without the dot."""
        for name, text in files.items():
            self._files["." + name] = text
            (self.path / ("." + name)).write_text(text)

    def shell(self, shell: str, **options: object) -> Session:
        session = Session(f"/bin/{shell}", self.path, **options)  # type: ignore[arg-type]  # as it has them
        self.sessions.append(session)
        return session

    def begun(self, shell: str, **options: object) -> Session:
        """A shell at its first prompt."""
        session = self.shell(shell, **options)
        session.prompt()
        return session

    def check(self) -> None:
        for name, text in self._files.items():
            assert (self.path / name).read_text() == text, name


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    path = tmp_path / "home"
    path.mkdir()
    home = Home(path)
    home.write(zshrc="PS1='P$ '\nunsetopt prompt_sp\n", bashrc="", profile='. ~/.bashrc\nPS1="P\\$ "\n')
    yield home
    for session in home.sessions:
        session.close()
    home.check()


BOTH = pytest.mark.parametrize("shell", ["bash", "zsh"])


def test_zsh_is_here() -> None:
    """Half of this file is about it: the run installs it (tests/run)."""
    assert shutil.which("zsh"), "zsh is missing: apt-get install zsh"


@BOTH
def test_marks_tell_each_line_its_status_and_its_output(home: Home, shell: str) -> None:
    session = home.begun(shell)
    assert session.run("echo hi") == ("echo hi", 0, "hi\n")
    assert session.run("false") == ("false", 1, "")
    assert session.run("(exit 7)") == ("(exit 7)", 7, "")


LINES = [
    'echo a\\\'b"c\\$d"; echo `echo e`',
    "echo 'ü ✜ %41 %'",
    "echo $(printf '\\033]133;B')",
    "true; false; true && echo done",
    "echo a | cat | (exit 3)",
]


@BOTH
@pytest.mark.parametrize("line", LINES)
def test_a_line_is_told_as_it_was_typed(home: Home, shell: str, line: str) -> None:
    assert home.begun(shell).run(line)[0] == line


@BOTH
def test_a_command_of_many_lines_is_one(home: Home, shell: str) -> None:
    session = home.begun(shell)
    text, status, printed = session.run("for i in 1 2; do\recho $i\rdone")
    assert text in {"for i in 1 2; do\necho $i\ndone", "for i in 1 2; do echo $i; done"}
    assert (status, printed) == (0, "1\n2\n")
    text, _, printed = session.run("cat <<END\rtwo words\rEND")
    assert (text.rstrip("\n"), printed) == ("cat <<END\ntwo words\nEND", "two words\n")


@BOTH
def test_lines_that_are_pasted_together_are_each_told(home: Home, shell: str) -> None:
    session = home.begun(shell)
    since = session.type("\x1b[200~(exit 3)\necho two\necho three\x1b[201~\r")
    session.until("three\r\n\x1b\\]133;D;0", since)
    session.prompt(since)
    told = [(each.text, each.exit) for each in session.marks.commands]
    # zsh takes them for one.
    assert told in (
        [("(exit 3)", 3), ("echo two", 0), ("echo three", 0)],
        [("(exit 3)\necho two\necho three", 0)],
    )


@BOTH
def test_a_long_line_is_told_within_bounds(home: Home, shell: str) -> None:
    session = home.begun(shell)
    text, status, _ = session.run(": " + "x" * 5000)
    assert (text, status) == (": " + "x" * 4094, 0)
    text, status, _ = session.run(": " + "ü" * 3000)
    assert re.fullmatch(": ü{1300,1400}", text)
    assert status == 0
    marks = re.findall(rb"\x1b\]133;C[^\x07]*\x07", session.output)
    assert max(map(len, marks)) <= HELD_MAX


@BOTH
def test_no_command_is_none(home: Home, shell: str) -> None:
    session = home.begun(shell)
    for keys in ("\r", "   \r", "# nothing\r" if shell == "bash" else "\r"):
        session.nothing_run(keys)
    for _ in range(2):
        session.until("half a line", session.type("half a line"))
        session.wait_until_idle()
        session.nothing_run("\x03")
    assert session.marks.count == 0
    assert b"133;D" not in session.output
    assert session.run("echo $?")[0] == "echo $?"


@BOTH
def test_a_line_that_cannot_be_understood_harms_nothing(home: Home, shell: str) -> None:
    session = home.begun(shell)
    session.prompt(session.type("echo )\r"))
    assert session.run("echo after") == ("echo after", 0, "after\n")


@BOTH
def test_a_command_that_is_interrupted_or_stopped_says_so(home: Home, shell: str) -> None:
    session = home.begun(shell)
    for key, status in (("\x03", 130), ("\x1a", 148)):
        since = session.type("cat\r")
        session.until("133;C;cmdline_url=cat\x07", since)
        session.wait_for_program("cat")
        session.prompt(session.type(key))
        assert session.last()[:2] == ("cat", status)
    session.run("kill -9 %1")


# ---------------------------------------------------------------------------------------------- a real shell


@pytest.mark.parametrize("integration", [True, False])
@pytest.mark.parametrize("login", [True, False])
def test_bash_is_as_it_would_be_by_itself(home: Home, login: bool, integration: bool) -> None:
    """Every option, every variable and all of the environment, but for the container's PATH and what marks need."""
    home.write(
        profile="READ=$READ.profile\n. ~/.bashrc\n", bashrc="READ=$READ.bashrc\nPS1='P\\$ '\n", inputrc=""
    )
    facts = (
        "{ echo read $READ; set +o; shopt -p; export -p; declare -p HISTFILE HISTSIZE PS2 PS4 IFS OPTIND SHLVL;"
        " trap -p; alias; umask; echo $- $0; compgen -v; cat /proc/$$/environ | tr '\\0' '\\n' | grep -v GUESTD_; } >"
    )
    found: list[str] = []
    for plain in (True, False):
        session = home.shell("bash", login=login, integration=integration, plain=plain)
        session.until("P# ")
        session.type(f" {facts} {home.path}/{plain} && echo wr''itten\r")
        session.until("written")
        text = (home.path / f"{plain}").read_text()
        # `$_`, the PATH that is kept, and the terminal of the run are no difference.
        text = re.sub(r"declare -x (PATH|_)=.*|(?m:^(ENV|POSIXLY_CORRECT|PATH|_)=.*)", "", text)
        text = re.sub(r"(?m)^(__guestd_\w+|PROMPT_COMMAND|PS0|REPLY|HISTIGNORE)\n", "", text)
        found.append(re.sub(r"\n+", "\n", text))
    assert found[0] == found[1]


def test_bash_as_a_login_shell_logs_out(home: Home) -> None:
    home.write(bash_logout="echo bye from logout\n")
    session = home.begun("bash")
    assert session.run("shopt login_shell")[2].split() == ["login_shell", "on"]
    session.type("logout\r")
    assert b"bye from logout" in session.to_end()
    assert session.reap() == 0


@pytest.mark.parametrize(
    "there", [["bash_profile", "bash_login", "profile"], ["bash_login", "profile"], ["profile"], []]
)
def test_bash_reads_the_first_of_three(home: Home, there: list[str]) -> None:
    (home.path / ".profile").unlink()
    home._files.clear()
    home.write(**{name: f'READ="${{READ}}{name} "\n' for name in [*there, "bashrc"]})
    session = home.begun("bash")
    assert session.value("$READ").split() == ["profile", *there[:1]]


@pytest.mark.parametrize("integration", [True, False])
def test_bash_that_is_no_login_shell_reads_what_it_would(home: Home, integration: bool) -> None:
    home.write(bashrc="READ=${READ-}bashrc\nPS1='P$ '\n")
    session = home.shell("bash", login=False, integration=integration)
    session.until("P\\$ ")
    since = session.type("echo $READ; shopt login_shell; echo debian:${debian_chroot-unset}; echo $PATH\r")
    session.until(f"bashrc\r\nlogin_shell\\s+off\r\n.*{CONTAINER_PATH}\r\n", since)


@pytest.mark.parametrize("integration", [True, False])
@pytest.mark.parametrize("shell", ["bash", "zsh", "dash", "sh"])
def test_the_containers_path_is_kept_and_the_users_word_is_the_last(
    home: Home, shell: str, integration: bool
) -> None:
    home.write(
        profile='PATH="/from/home:$PATH"\nREAD="${READ}home "\nPS1="P$ "\n',
        zprofile='PATH="/from/home:$PATH"\nREAD="${READ}home "\n',
        zshenv='PATH="/from/zshenv:$PATH"\n',
    )
    session = home.shell(shell, integration=integration)
    session.until("P\\$ ")
    path = f"{CONTAINER_PATH}:/from/profile"
    path = f"/from/home:/from/zshenv:{path}" if shell == "zsh" else f"/from/home:{path}"
    since = session.type('echo "=$READ=$PATH="; env | grep ^PATH=\r')
    session.until(f"=profile home ={path}=\r\nPATH={path}\r\n", since)
    assert not [line for line in session.output.split(b"\r\n") if b"not found" in line]


def test_a_profile_that_drops_nothing_has_its_way(home: Home) -> None:
    session = home.shell("sh", env={"PATH": "/usr/bin:/bin"})
    session.until("P\\$ ") if session.output else None
    session.until("\\$ |# ")
    session.until("/from/profile:/usr/bin:/bin\r\n", session.type("echo $PATH\r"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "dash"])
@pytest.mark.parametrize("integration", [True, False])
def test_nothing_of_ours_is_in_the_environment(home: Home, shell: str, integration: bool) -> None:
    session = home.shell(shell, integration=integration)
    session.until("[$#] ")
    since = session.type("env | sort; echo e''nd\r")
    session.until("end\r\n", since)
    text = session.output[since:].decode()
    assert not re.search("(?im)^(guestd|__guestd|ENV=|ZDOTDIR=|POSIXLY)", text), text


def test_what_the_container_says_for_shells_is_kept(home: Home) -> None:
    home.write(shrc="SHRC=read\n")
    (home.path / "z").mkdir()
    (home.path / "z/.zshrc").write_text("PS1='Z$ '\nunsetopt prompt_sp\n")
    session = home.shell("dash", env={"ENV": "$HOME/.shrc"})
    session.until("[$#] ")
    session.until("=read=\\$HOME/.shrc=", session.type("echo =$SHRC=$ENV=\r"))
    session = home.begun("bash", env={"ENV": "$HOME/.shrc", "HISTFILE": "/tmp/h"})
    assert session.value("=$SHRC=$ENV=$HISTFILE") == "==$HOME/.shrc=/tmp/h"
    session = home.begun("zsh", env={"ZDOTDIR": f"{home.path}/z"})
    assert b"Z$ " in session.output
    assert session.value("$ZDOTDIR") == f"{home.path}/z"
    assert session.run("env | grep ZDOTDIR")[1] == 0
    session = home.shell("bash", env={"POSIXLY_CORRECT": "y"})
    session.until("\\$ |# ")
    session.until("posix\\s+on", session.type("set -o | grep posix\r"))


def test_a_dash_profile_may_name_a_file_to_read(home: Home) -> None:
    home.write(profile="ENV=$HOME/.shrc\n", shrc="PS1='from shrc$ '\n")
    home.shell("dash").until("from shrc\\$ ")


def test_zsh_reads_all_its_files_in_order(home: Home) -> None:
    for name in ("zshenv", "zprofile", "zlogin", "zlogout"):
        home.write(**{name: f'READ="${{READ-}}{name}:${{ZDOTDIR-none}} "\n'})
    home.write(zshrc="PS1='P$ '\nunsetopt prompt_sp\nREAD+='zshrc '\n", zlogout="echo bye from logout\n")
    session = home.begun("zsh")
    assert session.value("$READ").split() == [
        "zshenv:none",
        "profile",
        "zprofile:none",
        "zshrc",
        "zlogin:none",
    ]
    assert session.run("[[ -o login ]]")[1] == 0
    session.type("exit\r")
    assert b"bye from logout" in session.to_end()


def test_zshenv_may_say_where_the_other_files_are(home: Home) -> None:
    home.write(zshenv="export ZDOTDIR=~/z\n")
    (home.path / "z").mkdir()
    (home.path / "z/.zprofile").write_text("READ+=z\n")
    (home.path / "z/.zshrc").write_text("PS1='Z$ '\nunsetopt prompt_sp\n")
    session = home.begun("zsh")
    assert b"Z$ " in session.output
    assert session.value("$READ:$ZDOTDIR") == f"profile z:{home.path}/z"


# --------------------------------------------------------------------------------------- what people do to it


def test_bash_tells_a_line_that_the_history_does_not_keep(home: Home) -> None:
    home.write(bashrc="HISTCONTROL=ignoreboth\nHISTIGNORE='pwd:echo secret*'\n")
    session = home.begun("bash")
    for line in (" echo one", "echo two", "echo two", "pwd", "echo secret 3", " (exit 4)", "(echo secret 5)"):
        assert session.run(line)[0] == line
    assert session.run("history")[2].split("\n") == [
        "    1  echo two",
        "    2  (echo secret 5)",
        "    3  history",
        "",
    ]
    assert session.value("$HISTCONTROL $HISTIGNORE") == "ignoreboth pwd:echo secret*"
    session.run(" HISTCONTROL=ignorespace HISTIGNORE=")
    for line in ("echo two", "echo two", " echo six"):
        assert session.run(line)[0] == line
    assert session.value("$HISTCONTROL,$HISTIGNORE") == "ignorespace,"
    session.run("unset HISTCONTROL HISTIGNORE")
    assert session.run(" echo seven")[0] == " echo seven"
    assert session.value("${HISTCONTROL-none},${HISTIGNORE-none}") == "none,none"
    session.run(" HISTCONTROL=ignoreboth")
    session.type(" exit\r")
    session.to_end()
    kept = (home.path / ".bash_history").read_text().splitlines()
    assert [line for line in kept if "printf" not in line] == [
        "echo two", "(echo secret 5)", "history", "echo two", "echo two", "unset HISTCONTROL HISTIGNORE", " echo seven",
        " HISTCONTROL=ignoreboth",
    ]  # fmt: skip


def test_bash_killed_while_a_secret_line_runs_has_not_kept_it(home: Home) -> None:
    session = home.begun("bash")
    session.run("HISTCONTROL=ignorespace")
    session.run("echo known")
    session.type(" echo secret; sleep 1000\r")
    session.wait_for_program("sleep")
    os.kill(session.pid, signal.SIGHUP)
    session.to_end()
    assert (home.path / ".bash_history").read_text() == "HISTCONTROL=ignorespace\necho known\n"


@pytest.mark.parametrize(
    "setting", ["HISTCONTROL=erasedups:ignoreboth", "HISTCONTROL=ignoredups", "set +o history", "HISTSIZE=0"]
)
def test_bash_never_tells_another_line(home: Home, setting: str) -> None:
    session = home.begun("bash")
    session.run("echo before")
    session.run(setting)
    for line in ("echo x", "echo x", " echo y", "echo before", "history -c", " echo z"):
        assert session.run(line)[0] in {line, ""}
    if setting == "HISTCONTROL=ignoredups":
        assert session.run("echo x")[0] == "echo x"
    session.run("set -o history; HISTSIZE=10")
    assert session.run("echo after")[0] == "echo after"


def test_zsh_tells_a_line_that_the_history_does_not_keep(home: Home) -> None:
    session = home.begun("zsh")
    session.run("setopt hist_ignore_space hist_ignore_all_dups")
    for line in (" echo one", "echo two", "echo two"):
        assert session.run(line)[0] == line


PROMPT_COMMANDS = {
    "a string": "PROMPT_COMMAND='seen=$?'",
    "two in a string": "PROMPT_COMMAND='seen=$?; true;'",
    "a list": "PROMPT_COMMAND=('seen=$?' true)",
    "before ours": 'PROMPT_COMMAND="seen=\\$?;$PROMPT_COMMAND"',
    "behind ours": 'PROMPT_COMMAND="${PROMPT_COMMAND:+$PROMPT_COMMAND; }seen=\\$?"',
    "added": "PROMPT_COMMAND+=('seen=$?')",
    "none": "unset PROMPT_COMMAND",
    "a new string": "unset PROMPT_COMMAND; PROMPT_COMMAND='seen=$?'",
}


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("kind", PROMPT_COMMANDS)
def test_a_prompt_command_of_the_users_is_kept_and_sees_the_status(
    home: Home, kind: str, early: bool
) -> None:
    setting = PROMPT_COMMANDS[kind]
    home.write(bashrc=f"seen=none\n{setting if early else ''}\n")
    session = home.begun("bash")
    if not early:
        # The end of a command that takes all prompt commands away is told only with the next.
        since = session.type(setting + "; (exit 9)\r")
        session.until("133;C.*133;B", since)
        assert session.run("true")[1] == 0
        assert session.marks.commands[0].exit == 9
    for status in (3, 0, 5):
        assert session.run(f"(exit {status})")[1] == status
        expected = "none" if kind == "none" else str(status)
        assert session.run('echo "$? $seen"')[2] == f"{status} {expected}\n"
    assert session.output.count(b"syntax error") == 0


def test_prompt_commands_do_not_change_what_a_command_sees(home: Home) -> None:
    session = home.begun("bash")
    session.run("(exit 2) | (exit 3) | true")
    assert session.run('echo "${PIPESTATUS[*]}"')[2] == "2 3 0\n"
    session.run("true first last")
    assert session.run('echo "$_"')[2] == "last\n"
    session.run(
        "HISTTIMEFORMAT='%F '; IFS=; shopt -s nocasematch nullglob; set -f; LC_ALL=C; shopt -u extglob"
    )
    assert session.run("echo 'ü'; cd /tmp")[:2] == ("echo 'ü'; cd /tmp", 0)
    assert session.run("false")[:2] == ("false", 1)
    assert session.marks.directory == "/tmp"


@BOTH
def test_the_prompt_may_change_at_any_time(home: Home, shell: str) -> None:
    session = home.begun(shell)
    session.run("PS1='new> '")
    assert b"new> \x1b]133;B\x07" in session.output
    session.run('PS1="more $PS1"')
    session.run('PS1="$PS1+"')
    assert session.run("echo again") == ("echo again", 0, "again\n")
    tail = session.output[session.output.rindex(b"133;A") :]
    assert b"more new> +\x1b]133;B\x07" in tail
    assert tail.count(b"133;B") == 1


def test_a_theme_that_sets_the_prompt_at_each_prompt(home: Home) -> None:
    home.write(bashrc='theme() { PS1="[$?] "; }\nPROMPT_COMMAND=theme\n')
    session = home.begun("bash")
    session.run("(exit 4)")
    assert b"[4] \x1b]133;B\x07" in session.output
    home.write(
        zshrc='unsetopt prompt_sp\nprecmd_functions+=(theme)\ntheme() { PS1="[$?] " }\nprecmd() { seen=$? }\n'
    )
    # Before the first prompt of all zsh has its list of hooks already, with the theme behind ours.
    session = home.shell("zsh")
    session.until("\\[0\\] ")
    session.run("(exit 4)")
    assert b"[4] \x1b]133;B\x07" in session.output
    assert session.run("echo $? $seen")[2] == "4 4\n"


def test_hooks_that_replace_ours_in_zsh_lose_nothing(home: Home) -> None:
    session = home.begun("zsh")
    since = session.type("precmd_functions=()\r")
    session.until("cmdline_url=precmd.*P\\$ ", since)
    session.prompt(session.type("(exit 3)\r"))
    assert [each.exit for each in session.marks.commands] == [0, 3]
    assert session.run("(exit 4)") == ("(exit 4)", 4, "")
    session.run("preexec_functions=()")
    assert session.run("(exit 5)") == ("(exit 5)", 5, "")


def test_bash_preexec_stays_the_last(home: Home) -> None:
    """bash-preexec takes what runs behind its own last prompt command for the user's."""
    home.write(bashrc="PROMPT_COMMAND=('a=1' __bp_interactive_mode)\n__bp_interactive_mode() { on=1; }\n")
    session = home.begun("bash")
    session.run("true")
    assert session.run('echo "${PROMPT_COMMAND[-1]}"')[2] == "__bp_interactive_mode\n"


@BOTH
@pytest.mark.parametrize("options", ["-u", "-x", "-e", "-eux"])
def test_strict_sessions_hear_nothing_of_ours(home: Home, shell: str, options: str) -> None:
    session = home.begun(shell)
    since = session.type(f"set {options}\r")
    session.prompt(since)
    session.run("cd /tmp")
    session.run("echo one")
    session.nothing_run("\r")
    session.run("echo two || echo three")
    shown = session.output[since:]
    assert b"__guestd" not in shown
    assert b"unbound" not in shown
    traced = re.findall(rb"\+(?:\S*>)? (?:cd|echo)[^\r]*", shown)
    assert len(traced) == (3 if "x" in options else 0), traced


@BOTH
def test_traps_of_the_users_are_kept(home: Home, shell: str) -> None:
    session = home.begun(shell)
    session.run("trap 'n=$((n+1))' DEBUG; trap 'echo bye' EXIT; trap 'e=$((e+1))' ERR")
    session.run("n=0 e=0")
    session.run("false")
    assert session.run("echo $e")[2] == "1\n"
    assert int(session.run("echo $n")[2]) > 0
    assert "DEBUG" in session.run("trap")[2]
    session.run("trap 'echo \"debug:$BASH_COMMAND\"' DEBUG") if shell == "bash" else None
    if shell == "bash":
        assert session.run("echo word")[2] == "debug:echo word\nword\n"
        assert b"debug:__guestd" not in session.output
    session.type("exit\r")
    assert b"bye" in session.to_end()


@BOTH
def test_a_shell_in_the_shell_is_one_command(home: Home, shell: str) -> None:
    home.write(bashrc="PS1='in> '\n", profile="PS1='P$ '\n")
    session = home.begun(shell)
    session.run("export PS1 PS0")
    since = session.type("bash\r")
    session.until("in> ", since)
    session.until("inside\r\n", session.type("echo inside\r"))
    session.prompt(session.type("exit 9\r"))
    text, status, printed = session.last()
    assert (text, status) == ("bash", 9)
    assert re.search("echo inside\n.*inside\n.*exit 9\n", printed, re.DOTALL)
    assert session.run("(echo sub; exit 2)") == ("(echo sub; exit 2)", 2, "sub\n")
    since = session.type("exec zsh -f\r")
    session.until("cmdline_url=exec%20zsh%20-f.*2004h", since)
    session.type("echo in zsh; exit\r")
    session.to_end()
    assert [command.text for command in session.marks.commands] == [
        "export PS1 PS0", "bash", "(echo sub; exit 2)", "exec zsh -f",
    ]  # fmt: skip
    assert session.marks.running is not None


@BOTH
def test_the_directory_is_told(home: Home, shell: str) -> None:
    session = home.begun(shell)
    folder = home.path / "a b%;ü"
    folder.mkdir()
    session.run(f"cd '{folder}'")
    assert session.marks.directory == str(folder)
    session.run("cd /")
    assert session.marks.directory == "/"
    assert [each.directory for each in session.marks.commands] == [os.getcwd(), str(folder)]


@BOTH
def test_marks_are_where_the_prompt_is_wherever_output_goes(home: Home, shell: str) -> None:
    session = home.begun(shell)
    session.run(f"exec 3>&1 >{home.path}/out")
    session.run("echo hi")
    session.run("exec >&3")
    # Debian's own zshrc sets modes of the terminal there.
    assert re.sub("\x1b\\[\\?1[hl]|\x1b[=>]", "", (home.path / "out").read_text()) == "hi\n"


@BOTH
def test_the_width_of_the_prompt_is_right(home: Home, shell: str) -> None:
    """A line of two rows is where it belongs after it was edited at its begin and at its end."""
    session = home.begun(shell, columns=40)
    session.until("x{9}y", session.type("x" * 50 + "y"))
    session.until("z", session.type("\x01z"))
    since = session.type("\x05w")
    line = "P$ z" + "x" * 50 + "yw"
    deadline = time.monotonic() + PATIENCE
    while True:
        model = fed(session.output, columns=40, rows=24)
        if cursor(model) == (16, 1):
            break
        session.read(deadline, f"the cursor behind {line!r}, with {session.output[since:]!r}")
    assert [row.rstrip() for row in screen(model)[:3]] == [line[:40], line[40:], ""]


def test_a_prompt_forks_nothing_in_bash(home: Home) -> None:
    home.write(bashrc="HISTCONTROL=ignoreboth\n")
    session = home.begun("bash")
    with open("/proc/sys/kernel/ns_last_pid", encoding="ascii") as file:
        before = file.read()
    for _ in range(5):
        session.nothing_run("\r")
    with open("/proc/sys/kernel/ns_last_pid", encoding="ascii") as file:
        assert file.read() == before


def test_a_shell_that_may_not_be_hooked_is_a_shell_still(home: Home) -> None:
    home.write(bashrc="readonly PROMPT_COMMAND=true\n")
    session = home.shell("bash")
    session.until("P\\$ ")
    session.until("[^']1\r\n", session.type("echo '1' && readonly PS0\r"))
    assert b"readonly variable" not in session.output
    assert session.marks.count == 0
