"""What is typed at guestctl, and what it shows: each form read exactly, each mistake answered with what is right."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.ctl import values
from guestd.ctl.failures import explain, printable
from guestd.ctl.keys import Key
from guestd.ctl.parser import parse
from guestd.ctl.show import show_age, show_jobs, show_size, show_status
from guestd.ctl.show_shells import show_commands, show_job
from guestd.wire.result import EndedBy, Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Callable


# --------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.seconds, "2", 2.0),
        (values.seconds, "0.5", 0.5),
        (values.seconds, "250ms", 0.25),
        (values.seconds, "30s", 30.0),
        (values.seconds, "5m", 300.0),
        (values.seconds, "1h", 3600.0),
        (values.seconds, "2d", 172800.0),
        (values.size, "0", 0),
        (values.size, "65536", 65536),
        (values.size, "64K", 65536),
        (values.size, "1M", 1048576),
        (values.size, "2GiB", 2 * 1024**3),
        (values.variable, "A=", ("A", "")),
        (values.variable, "A=b=c", ("A", "b=c")),
        (values.name_or_number, "1000", 1000),
        (values.name_or_number, "agent", "agent"),
        (values.octal, "022", 0o22),
        (values.octal, "777", 0o777),
        (values.rlimit, "nofile=1024", ("nofile", 1024)),
        (values.rlimit, "CORE=unlimited", ("core", "unlimited")),
        (values.rlimit, "as=1G:unlimited", ("as", [1024**3, "unlimited"])),
        (values.offsets, "4096", 4096),
        (values.offsets, "stdout=1,stderr=2", {"stdout": 1, "stderr": 2}),
        (values.offsets, "stderr=2", {"stderr": 2}),
        (values.offsets, "end", "end"),
    ],
)
def test_a_value_is_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "texts", "right"),
    [
        (
            values.seconds,
            ["", "s", "-1", "3x", "nan", "inf", "1e999", "1 m", "m5", "1_0", ".", "9" * 99, "٣"],
            "500ms, 30s",
        ),
        (values.size, ["", "K", "-1", "1.5M", "1T", "1KK", "9" * 5000], "64K, 1M"),
        (values.variable, ["A", "=b", ""], "NAME=VALUE"),
        (values.name_or_number, [""], "a name or a number"),
        (values.octal, ["", "8", "1000", "-1", "rw", "0o22"], "octal"),
        (
            values.rlimit,
            ["", "nofile", "=3", "nofile=", "nofile=-1", "nofile=1:", "nofile=1:2:3"],
            "NAME=SOFT",
        ),
        (
            values.offsets,
            ["", "-1", "x", "stdin=1", "stdout=", "stdout=1,stdout=2", "1,2"],
            "stdout=N,stderr=N",
        ),
    ],
)
def test_a_wrong_value_says_what_would_be_right(
    read: Callable[[str], object], texts: list[str], right: str
) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=right):
            read(text)


@given(st.text())
def test_no_text_makes_a_reader_fail_in_another_way(text: str) -> None:
    for read in (
        values.seconds, values.size, values.variable, values.name_or_number, values.octal, values.rlimit,
        values.offsets,
    ):  # fmt: skip
        with contextlib.suppress(ValueError):
            read(text)


@given(st.dictionaries(st.sampled_from(["stdout", "stderr"]), st.integers(0, 2**63)))
def test_offsets_that_are_shown_can_be_typed_again(positions: dict[str, int]) -> None:
    assert values.offsets(values.show_offsets(positions)) == (positions or "start")


# --------------------------------------------------------------------------------------------------- command line


def test_options_stand_before_the_command_or_behind_it() -> None:
    for words in (["--to", "unix:/a", "--json", "ps"], ["ps", "--to", "unix:/a", "--json"]):
        options = parse(words)
        assert (options.to, options.json) == ("unix:/a", True)


def test_the_address_comes_from_the_environment_or_is_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUESTD_TO", raising=False)
    assert parse(["ps"]).to == "unix:/run/guestd/guestd.sock"
    monkeypatch.setenv("GUESTD_TO", "vsock:3:1024")
    assert parse(["ps"]).to == "vsock:3:1024"
    assert parse(["--to", "unix:/b", "ps"]).to == "unix:/b"


@pytest.mark.parametrize(
    ("words", "argv", "shell"),
    [
        (["exec", "--", "ls", "-l"], ["ls", "-l"], None),
        (["exec", "--", "sh", "--", "--id"], ["sh", "--", "--id"], None),
        (["exec", "--id", "a", "--", "x"], ["x"], None),
        (["exec", "make | tail"], None, "make | tail"),
        (["exec", "ls"], None, "ls"),
        (["exec", ""], None, ""),
        (["exec", "-i", "cat", "--id", "b"], None, "cat"),
    ],
)
def test_what_stands_behind_two_dashes_is_the_command_alone(
    words: list[str], argv: list[str] | None, shell: str | None
) -> None:
    options = parse(words)
    assert (options.argv, options.shell) == (argv, shell)


@pytest.mark.parametrize(
    "words",
    [[], ["exec"], ["exec", "a", "b"], ["exec", "--"], ["exec", "a", "--", "b"], ["ps", "--", "x"], ["kil"],
     ["exec", "--tim", "3", "--", "x"], ["kill"], ["exec", "-i", "--detach", "--", "x"], ["shell", "a", "b"],
     ["shell", "--"], ["shell", ""], ["shell", "--join"], ["shell", "--read-only"],
     ["shell", "a", "--join", "--read-only"], ["shell", "a", "--join", "--", "x"],
     ["shell", "a", "--read-only", "--cwd", "/"], ["shell", "--detach-key", "q"], ["exec", "--it"],
     ["exec", "-t", "--timeout", "1", "--", "x"], ["exec", "-it", "--detach", "--", "x"], ["ps", "--commands"],
     ["attach", "a", "--command", "0"], ["record", "a"]],
)  # fmt: skip
def test_a_wrong_line_is_125_because_2_may_be_the_commands(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 125
    shown = capsys.readouterr()
    assert "--help" in shown.out + shown.err


def test_who_mistypes_is_asked_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for words, meant in (
        (["shel"], "shell"),
        (["attahc", "x"], "attach"),
        (["shell", "--readonly"], "--read-only"),
    ):
        with pytest.raises(SystemExit):
            parse(words)
        assert f"did you mean {meant}?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["xyzzy"])
    assert "did you mean" not in capsys.readouterr().err


def test_a_shell_is_asked_for_in_as_many_words_as_it_takes() -> None:
    options = parse(["shell"])
    assert (options.id, options.argv, options.detach_key) == (None, None, Key("]"))
    options = parse(["shell", "work", "--detach-key", "none", "--", "htop", "-d", "5"])
    assert (options.id, options.argv, options.detach_key) == ("work", ["htop", "-d", "5"], None)
    for words in (["exec", "-it", "--", "x"], ["exec", "--it", "--", "x"], ["exec", "-i", "-t", "x"]):
        assert (parse(words).stdin, parse(words).tty) == (True, True)


@pytest.mark.parametrize(
    "command",
    [[], ["exec"], ["attach"], ["ps"], ["kill"], ["wait"], ["status"], ["version"], ["shell"], ["record"]],
)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*command, "--help"])
    assert caught.value.code == 0
    assert "--to ADDR" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Result("a", Outcome.EXITED, code=1), None),
        (Result("a", Outcome.SIGNALED, signal=9), None),
        (Result("a", Outcome.SIGNALED, signal=15, ended_by=EndedBy.KILL), "ended by kill"),
        (Result("a", Outcome.TIMED_OUT, killed={"count": 3}), "timed out; 3 processes were ended"),
        (
            Result("a", Outcome.NOT_STARTED, stage="exec", errno=2, message="no such file or directory: 'x'"),
            "could not start: no such file or directory: 'x' (exec, ENOENT)",
        ),
        (
            Result(
                "a", Outcome.NOT_STARTED, stage="exec", errno=2, message="could not start: 'x' (exec, ENOENT)"
            ),
            "could not start: 'x' (exec, ENOENT)",
        ),
        (
            Result("a", Outcome.UNKNOWN, message="lost at a restart"),
            "how it ended is not known: lost at a restart",
        ),
        (
            Result(
                "a", Outcome.EXITED, code=0, unreached={"count": 1, "processes": [{"name": "d", "pid": 7}]}
            ),
            "1 processes could not be ended: d (7)",
        ),
    ],
)
def test_an_end_that_the_status_does_not_explain_is_explained(result: Result, text: str | None) -> None:
    assert explain(result) == text


@given(st.text())
def test_nothing_of_the_guests_drives_the_terminal(text: str) -> None:
    assert printable(text).isprintable()


def test_a_table_shows_jobs_of_every_state() -> None:
    jobs: list[dict[str, Any]] = [
        {"id": "a", "kind": "command", "state": "running", "pid": 7, "user": "agent", "age": 61.9,
         "streams": {"stdout": {"start": 0, "end": 1536}, "stderr": {"start": 0, "end": 0}}, "command": ["a b", "c"]},
        {"id": "b\x1b[m", "kind": "command", "state": "ended", "pid": None, "command": "x | y",
         "result": Result("b", Outcome.EXITED, code=3, cpu_user=1.0, cpu_system=0.5).to_map()},
        {},
    ]  # fmt: skip
    header, first, second, third = show_jobs(jobs).splitlines()
    assert header.split()[:3] == ["ID", "KIND", "STATE"]
    assert first.split() == [
        "a",
        "command",
        "running",
        "7",
        "agent",
        "1m01s",
        "-",
        "1.5K",
        "0",
        "'a",
        "b'",
        "c",
    ]
    assert second.split() == [
        r"b\x1b[m",
        "command",
        "exited",
        "3",
        "-",
        "-",
        "-",
        "1.50s",
        "0",
        "0",
        "x",
        "|",
        "y",
    ]
    assert third
    assert show_jobs([]) == "no jobs"


SHELL: dict[str, Any] = {
    "id": "work", "kind": "shell", "state": "running", "pid": 7, "user": "agent", "age": 3700.0, "attached": 3,
    "owner": "unix:1000", "size": {"columns": 80, "rows": 24}, "streams": {"terminal": {"start": 100, "end": 4096}},
    "command": "/bin/bash", "foreground": {"pid": 9, "name": "vim", "command": "vim a\x1b[m"}, "last_input": 940.0,
    "last_output": 970.0, "title": "t", "commands": 4, "typed": {"waiting": 5, "blocked": True},
    "viewers": [{"peer": "unix:1000", "role": "owner", "since": 900.0, "client": "c"}], "started_at": 100.0,
}  # fmt: skip


def test_shells_have_a_table_of_their_own() -> None:
    ended = {
        "id": "old",
        "kind": "shell",
        "result": Result("old", Outcome.EXITED, code=3).to_map(),
        "command": ["sh"],
    }
    commands, shells = show_jobs([SHELL, {"id": "c", "kind": "command"}, ended], 1000.0).split("\n\n")
    assert commands.splitlines()[1].startswith("c ")
    header, first, second = shells.splitlines()
    assert header.split() == [
        "ID", "KIND", "STATE", "PID", "USER", "AGE", "IDLE", "SIZE", "ATTACHED", "OUTPUT", "RUNNING",
    ]  # fmt: skip
    assert first.split() == [
        "work", "shell", "running", "7", "agent", "1h01m", "30s", "80x24", "owner", "+2", "4.0K", "vim", r"a\x1b[m",
    ]  # fmt: skip
    assert second.split() == ["old", "shell", "exited", "3", "-", "-", "-", "-", "-", "-", "0", "sh"]


def test_all_that_is_known_of_one_job_is_a_line_each() -> None:
    lines = show_job(SHELL, 1000.0).splitlines()
    assert "size        80x24" in lines
    assert "terminal    4096 bytes, kept from 100 on" in lines
    assert "typed       5 bytes that the program has not read" in lines
    assert any(line.startswith("attached    owner: unix:1000, since ") for line in lines)
    assert show_job({}, 0.0)


def test_commands_that_were_typed_are_a_table() -> None:
    commands: list[dict[str, Any]] = [
        {"n": 1, "text": "make\nall", "started_at": 10.0, "ended_at": 12.5, "duration": 2.5, "exit": 2, "from": 0,
         "to": 2048},
        {"n": 2, "text": "", "started_at": 940.0, "ended_at": None, "duration": None, "from": 9, "to": None},
        {"n": 3, "text": "x", "started_at": 1.0, "ended_at": 2.0, "duration": 61.0, "exit": None, "from": 1, "to": 1},
    ]  # fmt: skip
    header, *rows = show_commands(commands, 1000.0).splitlines()
    assert header.split() == ["N", "WHEN", "LONG", "EXIT", "OUTPUT", "COMMAND"]
    assert [row.split()[0:1] + row.split()[3:] for row in rows] == [
        ["1", "2.5s", "2", "2.0K", "make", "⏎", "all"],
        ["2", "1m00s", "runs", "-", "-"],
        ["3", "1m01s", "?", "0", "x"],
    ]
    assert "no commands" in show_commands([], 0.0)


def test_a_status_of_another_guestd_is_shown_as_far_as_it_goes() -> None:
    assert "guestd" in show_status({})
    assert "up 1h01m" in show_status({"uptime": 3660.0, "jobs": 3, "listening": ["unix:/a"]})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (90000, "1d01h"),
        (-5, "0s"),
    ],
)
def test_an_age_is_short(seconds: float, text: str) -> None:
    assert show_age(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1.5 * 1024**2, "1.5M"), (2**80, "1073741824.0P")],
)
def test_a_size_is_short(size: float, text: str) -> None:
    assert show_size(size) == text
