"""The world a command finds itself in is defined: environment, place, user, limits. All three ways to start a program
make the same one.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.commands import (
    NOBODY,
    WAYS,
    Done,
    public_folder,
    run,
    serving_commands,
    status_of,
    taking_way,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.peer import Peer
    from tests.support.server import Server

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
# A comment, and what NIS wants, are no entries.
+::::::
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
smith:x:4242:4242:Agent Smith:{home}:/bin/zsh
12:x:4343:4343:a name that looks like a number:/:/bin/sh
"""
GROUP = """\
root:x:0:
tty:x:5:
nogroup:x:65534:
smith:x:4242:
wheelers:x:4250:someone,smith
drivers:x:4251:smith
others:x:4252:smithson
"""


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    """The home of smith. /etc/passwd and /etc/group are this module's own, and the machine's are left alone."""
    with public_folder() as folder:
        (folder / "home").mkdir(mode=0o755)
        for name, text in (("passwd", PASSWD), ("group", GROUP)):
            (folder / name).write_text(text.format(home=folder / "home"))
            subprocess.run(["mount", "--bind", folder / name, f"/etc/{name}"], check=True)
        yield str(folder / "home")
        for name in ("passwd", "group"):
            subprocess.run(["umount", f"/etc/{name}"], check=True)


CONFIG = """
[env]
LAYER = "session"
FROM_SESSION = "yes"
PATH = "/usr/local/bin:/usr/bin:/bin"
"""
STARTED_WITH = {
    "LAYER": "container", "FROM_CONTAINER": "yes", "LISTEN_FDS": "0", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x",
    "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "INVOCATION_ID": "x", "JOURNAL_STREAM": "8:1", "FDSTORE": "0",
    "MAINPID": "1", "CREDENTIALS_DIRECTORY": "/run/credentials", "GUESTD_LIMITS_JOBS": "500",
    "HOME": "/somebody/elses", "USER": "somebody", "LOGNAME": "somebody", "SHELL": "/bin/else",
}  # fmt: skip


@pytest.fixture(scope="module")
def served(home: str) -> Iterator[tuple[Server, Peer]]:
    with serving_commands(config=CONFIG, environment=STARTED_WITH) as served:
        yield served


@pytest.fixture
def peer(served: tuple[Server, Peer]) -> Peer:
    return served[1]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    with taking_way(request.param, tmp_path) as fields:
        yield fields


def environment(done: Done) -> dict[str, str]:
    return dict(line.split("=", 1) for line in done.text.split("\0") if line)


# ---------------------------------------------------------------------------------------------------------- environment


def test_a_request_is_above_the_session_and_the_session_above_the_container(
    peer: Peer, way: dict[str, Any]
) -> None:
    env = environment(run(peer, "env", "-0", env={"FROM_REQUEST": "yes"}, **way))
    assert [env[f"FROM_{layer}"] for layer in ("CONTAINER", "SESSION", "REQUEST")] == ["yes"] * 3
    assert env["LAYER"] == "session"
    assert env["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    env = environment(run(peer, "env", "-0", env={"LAYER": "request", "PATH": "/bin", "HOME": "/tmp"}, **way))
    assert (env["LAYER"], env["PATH"], env["HOME"]) == ("request", "/bin", "/tmp")


def test_nothing_between_guestd_and_whoever_started_it_leaks(peer: Peer, way: dict[str, Any]) -> None:
    env = environment(run(peer, "env", "-0", **way))
    assert {name for name in env if name.startswith("GUESTD")} == {
        "GUESTD_JOB_ID",
        "GUESTD_JOB_KEY",
        "GUESTD_JOB_SOCKET",
    }
    private = (set(STARTED_WITH) | {"NOTIFY_SOCKET", "GUESTD_RUNTIME_DIR"}) - {
        "LAYER", "FROM_CONTAINER", "HOME", "USER", "LOGNAME", "SHELL",
    }  # fmt: skip
    assert private.isdisjoint(env)


def test_a_job_knows_its_id(peer: Peer, way: dict[str, Any]) -> None:
    call = peer.open("exec", argv=["sh", "-c", "echo $GUESTD_JOB_ID"], **way)
    name = call.accepted()["id"]
    assert call.end()["code"] == 0
    assert call.stdout.decode() == f"{name}\n"


@pytest.mark.parametrize(
    ("asked", "name", "where"),
    [
        ({}, "root", "/root"),
        ({"user": "root"}, "root", "/root"),
        ({"user": NOBODY}, NOBODY, "/nonexistent"),
        ({"user": "smith"}, "smith", "home"),
        ({"user": 4242}, "smith", "home"),
        ({"user": "4242"}, "smith", "home"),
        ({"user": 31337}, "31337", "/"),
    ],
    ids=str,
)
def test_home_and_names_are_those_of_the_user_it_runs_as(
    peer: Peer, home: str, asked: dict[str, Any], name: str, where: str
) -> None:
    env = environment(run(peer, "env", "-0", **asked))
    assert (env["USER"], env["LOGNAME"]) == (name, name)
    assert env["HOME"] == (home if where == "home" else where)
    assert env["SHELL"] == "/bin/bash" if os.path.exists("/bin/bash") else env["SHELL"]
    assert os.access(env["SHELL"], os.X_OK)


def test_the_variables_can_have_any_bytes(peer: Peer, way: dict[str, Any]) -> None:
    value = "".join(chr(code) for code in range(1, 128)) + "äöü €"
    done = run(peer, "printenv", "ODD", env={"ODD": value, "EMPTY": ""}, **way)
    assert done.stdout == value.encode() + b"\n"
    assert run(peer, "printenv", "EMPTY", env={"EMPTY": ""}, **way).text == ""


def test_words_can_have_any_bytes_but_nul(peer: Peer, way: dict[str, Any]) -> None:
    every = bytes(range(1, 256))
    assert run(peer, b"printf", b"%s", every, b"", b"end", **way).stdout == every + b"end"


def test_the_trace_context_reaches_the_command(peer: Peer, way: dict[str, Any]) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    env = environment(run(peer, "env", "-0", traceparent=parent, tracestate="vendor=1", **way))
    assert (env["TRACEPARENT"], env["TRACESTATE"]) == (parent, "vendor=1")
    assert "TRACEPARENT" not in environment(run(peer, "env", "-0", **way))


def test_without_a_path_there_is_a_usual_one(home: str) -> None:
    prefix = ["env", "-u", "PATH"]
    with serving_commands(prefix=prefix) as (_, peer):
        for fields in ({}, {"user": NOBODY}):
            assert environment(run(peer, "env", "-0", **fields))["PATH"].endswith(":/usr/bin:/sbin:/bin")


# ---------------------------------------------------------------------------------------------------------------- place


def test_it_starts_in_the_workspace(peer: Peer, way: dict[str, Any]) -> None:
    assert run(peer, "pwd", "-P", **way).text == "/mnt/workspace"
    assert run(peer, "pwd", "-P", cwd="/usr", **way).text == "/usr"


def test_without_a_workspace_it_starts_at_home(home: str) -> None:
    with serving_commands(config='workspace = "/proc/no/such/place"\n') as (_, peer):
        assert run(peer, "pwd", "-P").text == "/root"
        assert run(peer, "pwd", "-P", user="smith").text == home
        assert run(peer, "pwd", "-P", user=NOBODY).text == "/"  # its home does not exist either


def test_a_program_is_found_from_the_directory_it_starts_in(
    peer: Peer, tmp_path: Path, way: dict[str, Any]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tool").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "here" / "tool").chmod(0o755)
    assert run(peer, "./tool", cwd=str(tmp_path / "here"), **way).text == "found"
    assert run(peer, "tool", cwd=str(tmp_path / "here"), env={"PATH": ":/bin"}, **way).text == "found"


# ----------------------------------------------------------------------------------------------------------------- user


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({"user": "smith"}, (4242, 4242, {4242, 4250, 4251})),
        ({"user": 4242}, (4242, 4242, {4242, 4250, 4251})),
        ({"user": "12"}, (4343, 4343, {4343})),
        ({"user": 12}, (12, 12, {12})),
        ({"user": 31337}, (31337, 31337, {31337})),
        ({"user": "smith", "group": "tty"}, (4242, 5, {5, 4250, 4251})),
        ({"user": "smith", "group": 9999}, (4242, 9999, {9999, 4250, 4251})),
        ({"user": "smith", "groups": ["tty", 7]}, (4242, 4242, {5, 7})),
        ({"user": "smith", "groups": []}, (4242, 4242, set[int]())),
        ({"group": "smith"}, (0, 4242, {4242})),
        ({"user": "root"}, (0, 0, {0})),
    ],
    ids=str,
)
def test_user_and_groups_are_those_asked_for(
    peer: Peer, asked: dict[str, Any], ids: tuple[int, int, set[int]]
) -> None:
    status = status_of(peer, **asked)
    uid, gid, groups = ids
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(gid)] * 4
    assert {int(group) for group in status["Groups"].split()} | (
        {gid} if "groups" not in asked else set()
    ) == groups


def test_another_user_has_no_capabilities(peer: Peer) -> None:
    status = status_of(peer, user=NOBODY)
    assert [int(status[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4


def test_commands_run_as_agent_where_there_is_one(home: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "passwd").write_text(PASSWD.format(home=home) + "agent:x:4444:4444::/:/bin/sh\n")
    with serving_commands() as (_, peer):
        assert run(peer, "id", "-u").text == "0"
        subprocess.run(["mount", "--bind", tmp_path / "passwd", "/etc/passwd"], check=True)
        try:
            # No restart: a user that was made just now is there.
            assert run(peer, "sh", "-c", "id -u; echo $USER").text == "4444\nagent"
            assert run(peer, "id", "-u", user="root").text == "0"
        finally:
            subprocess.run(["umount", "/etc/passwd"], check=True)
    with serving_commands(config='user = "smith"\n') as (_, peer):
        assert run(peer, "id", "-u").text == "4242"


# ----------------------------------------------------------------------------------------------- limits and priority


def test_the_umask_is_the_one_asked_for(peer: Peer, way: dict[str, Any]) -> None:
    assert run(peer, "sh", "-c", "umask", **way).text == "0022"
    assert run(peer, "sh", "-c", "umask", umask=0o077, **way).text == "0077"
    assert run(peer, "sh", "-c", "umask", umask=0, **way).text == "0000"


def test_resource_limits_are_those_asked_for_and_the_others_untouched(served: tuple[Server, Peer]) -> None:
    server, peer = served

    def limits(**fields: Any) -> dict[str, str]:  # noqa: ANN401
        lines = run(peer, "cat", "/proc/self/limits", **fields).text.splitlines()
        return {line[:26].strip(): " ".join(line[26:].split()[:2]) for line in lines[1:]}

    usual = limits()
    # guestd has raised its own; what it was started with is what its children get.
    own = subprocess.run(["cat", "/proc/self/limits"], capture_output=True, text=True, check=True).stdout
    started_with = {line[:26].strip(): " ".join(line[26:].split()[:2]) for line in own.splitlines()[1:]}
    assert usual == started_with
    assert limits(user=NOBODY) == started_with
    changed = limits(
        rlimits={"nofile": 99, "CORE": [0, 4096], "RLIMIT_STACK": [4194304, "unlimited"], "cpu": 1000}
    )
    assert changed == usual | {
        "Max open files": "99 99", "Max core file size": "0 4096", "Max stack size": "4194304 unlimited",
        "Max cpu time": "1000 1000",
    }  # fmt: skip
    assert server.pid


def test_a_limit_is_in_force_from_the_first_instruction(peer: Peer) -> None:
    done = run(peer, "sh", "-c", "while :; do :; done", rlimits={"cpu": [1, 2]})
    assert (done.result["outcome"], done.result["signal_name"]) == ("signaled", "SIGXCPU")


@pytest.mark.parametrize("nice", [-5, 0, 7, 19])
def test_niceness_is_the_one_asked_for(peer: Peer, nice: int) -> None:
    done = run(peer, "cat", "/proc/self/stat", nice=nice)
    assert int(done.text.rpartition(") ")[2].split()[16]) == nice


def test_the_supervisor_is_the_last_to_be_killed_for_memory_and_its_commands_are_not(
    served: tuple[Server, Peer], way: dict[str, Any]
) -> None:
    server, peer = served
    with open("/proc/self/oom_score_adj") as file:
        before = file.read()
    try:
        # Whether anybody may lower it is the kernel's to say, and asked by trying.
        with open("/proc/self/oom_score_adj", "r+") as file:
            file.seek(0)
            file.write("-1000")
            file.flush()
            file.seek(0)
            file.write(before)
        expected = -1000
    except PermissionError:
        expected = int(before)
    with open(f"/proc/{server.pid}/oom_score_adj") as file:
        assert int(file.read()) == expected
    call = peer.open("exec", argv=["sh", "-c", "cat & cat"], stdin="stream", **way)
    pid = call.accepted()["pid"]
    with open(f"/proc/{pid}/oom_score_adj") as file:
        assert int(file.read()) == 0
    call.event(event="eof", offset=0)
    call.end()
    assert run(peer, "cat", "/proc/self/oom_score_adj", nice=1, oom_score_adj=300).text == "300"
    call = peer.open("exec", argv=["cat"], stdin="stream", oom_score_adj=500, **way)
    with open(f"/proc/{call.accepted()['pid']}/oom_score_adj") as file:
        assert int(file.read()) == 500
    call.event(event="eof", offset=0)
    call.end()
