"""Could not start is an outcome of its own: which stage, which errno, what was wrong, and never an exit code."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.commands import NOBODY, Done, public_folder, run, serving_commands
from tests.support.peer import Failed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.peer import Call, Peer
    from tests.support.server import Server

WAYS = pytest.mark.parametrize("way", [{}, {"user": NOBODY}], ids=["direct", "launcher"])
#: Longer than the kernel takes for one word (32 pages), shorter than what guestd takes for all.
TOO_LONG = "x" * (32 * os.sysconf("SC_PAGESIZE") + 1)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, Peer]]:
    with serving_commands() as served:
        yield served


@pytest.fixture
def peer(served: tuple[Server, Peer]) -> Peer:
    return served[1]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can reach."""
    with public_folder() as folder:
        yield folder


def expect(done: Done, stage: str, number: int, status: int) -> str:
    """Exactly so, and nothing that only a program could have. Returns what the message says."""
    result = done.result
    told = {key: result.get(key) for key in ("outcome", "stage", "errno", "errno_name", "status")}
    assert told == {
        "outcome": "not_started", "stage": stage, "errno": number, "errno_name": errno.errorcode[number],
        "status": status,
    }, result  # fmt: skip
    assert result["code"] is result["signal"] is result["ended_by"] is result["pid"] is None
    assert (done.stdout, done.stderr, result["held"], result["left"]["count"]) == (b"", b"", [], 0)
    assert result["message"].startswith("could not start: ")
    assert result["message"].endswith(f"({stage}, {errno.errorcode[number]})")
    return str(result["message"])


# ----------------------------------------------------------------------------------------------------------- programs


@WAYS
def test_no_such_program_in_path(peer: Peer, way: dict[str, str]) -> None:
    message = expect(
        run(peer, "no-such-program", env={"PATH": "/bin:/nowhere"}, **way), "exec", errno.ENOENT, 127
    )
    assert "'no-such-program': no such program in PATH=/bin:/nowhere" in message


@WAYS
def test_no_such_file(peer: Peer, way: dict[str, str]) -> None:
    assert "'/no/such/file'" in expect(run(peer, "/no/such/file", **way), "exec", errno.ENOENT, 127)


@WAYS
def test_an_empty_name_is_no_program(peer: Peer, way: dict[str, str]) -> None:
    expect(run(peer, "", "argument", **way), "exec", errno.ENOENT, 127)


@WAYS
def test_a_file_that_is_not_executable(peer: Peer, place: Path, way: dict[str, str]) -> None:
    (place / "tool").write_text("#!/bin/sh\n")
    (place / "tool").chmod(0o644)
    expect(run(peer, str(place / "tool"), **way), "exec", errno.EACCES, 126)
    expect(run(peer, "tool", env={"PATH": f"/nowhere:{place}"}, **way), "exec", errno.EACCES, 126)


@WAYS
def test_a_later_folder_of_path_may_have_the_one_that_is_executable(
    peer: Peer, place: Path, way: dict[str, str]
) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (place / name).mkdir(mode=0o755)
        (place / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (place / name / "tool").chmod(mode)
    assert run(peer, "tool", env={"PATH": f"{place}/first:{place}/second:/bin"}, **way).text == "second"


def test_what_a_user_may_not_look_for_is_not_there(peer: Peer, place: Path) -> None:
    """With root's PATH, every misspelt command of another user was once «permission denied», with status 126."""
    (place / "roots").mkdir(mode=0o700)
    (place / "roots" / "tool").write_text("#!/bin/sh\necho found\n")
    (place / "roots" / "tool").chmod(0o755)
    path = {"PATH": f"{place}/roots:/bin"}
    assert run(peer, "tool", env=path).text == "found"
    expect(run(peer, "tool", env=path, user=NOBODY), "exec", errno.ENOENT, 127)
    # Named, it is another matter.
    expect(run(peer, f"{place}/roots/tool", user=NOBODY), "exec", errno.EACCES, 126)


@WAYS
def test_a_directory_is_no_program(peer: Peer, place: Path, way: dict[str, str]) -> None:
    assert "is a directory" in expect(run(peer, str(place), **way), "exec", errno.EACCES, 126)


@WAYS
@pytest.mark.parametrize(
    "content",
    [b"\x7fELF and nothing more", b"just text\n", b"\0\0\0\0", b""],
    ids=["elf", "text", "nul", "empty"],
)
def test_a_file_without_a_format(peer: Peer, place: Path, way: dict[str, str], content: bytes) -> None:
    """No shell is tried on it, as execvp(3) would: what has no first line is not run by guesswork."""
    (place / "thing").write_bytes(content)
    (place / "thing").chmod(0o755)
    assert "#!/bin/sh" in expect(run(peer, str(place / "thing"), **way), "exec", errno.ENOEXEC, 126)


@WAYS
def test_a_script_whose_interpreter_is_missing(peer: Peer, place: Path, way: dict[str, str]) -> None:
    (place / "script").write_text("#!/no/such/interpreter\n")
    (place / "script").chmod(0o755)
    message = expect(run(peer, str(place / "script"), **way), "exec", errno.ENOENT, 127)
    assert "interpreter" in message


@WAYS
def test_a_loop_of_links(peer: Peer, place: Path, way: dict[str, str]) -> None:
    (place / "loop").symlink_to(place / "loop")
    expect(run(peer, str(place / "loop"), **way), "exec", errno.ELOOP, 126)


@WAYS
@pytest.mark.parametrize("where", ["argv", "env"])
def test_more_than_the_kernel_takes(peer: Peer, way: dict[str, str], where: str) -> None:
    done = (
        run(peer, "true", TOO_LONG, **way)
        if where == "argv"
        else run(peer, "true", env={"LONG": TOO_LONG}, **way)
    )
    assert "stdin or a file" in expect(done, "exec", errno.E2BIG, 126)


def test_a_program_that_is_being_written(peer: Peer, place: Path) -> None:
    (place / "tool").write_bytes(b"")
    (place / "tool").chmod(0o755)
    with (place / "tool").open("wb"):
        for way in ({}, {"user": NOBODY}):
            expect(run(peer, str(place / "tool"), **way), "exec", errno.ETXTBSY, 126)


# ------------------------------------------------------------------------------------------------------- who and where


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"user": "no-such-user"}, "there is no user 'no-such-user' in /etc/passwd"),
        ({"group": "no-such-group"}, "there is no group 'no-such-group' in /etc/group"),
        ({"groups": ["tty", "no-such-group"]}, "there is no group 'no-such-group' in /etc/group"),
        ({"user": "-1"}, "there is no user '-1' in /etc/passwd"),
        ({"user": str(2**32)}, f"there is no user '{2**32}' in /etc/passwd"),
    ],
    ids=str,
)
def test_nobody_of_that_name(peer: Peer, asked: dict[str, Any], said: str) -> None:
    assert said in expect(run(peer, "true", **asked), "user", errno.ENOENT, 125)


@WAYS
def test_no_such_directory(peer: Peer, way: dict[str, str]) -> None:
    assert "'/no/such/place'" in expect(
        run(peer, "true", cwd="/no/such/place", **way), "cwd", errno.ENOENT, 125
    )


@WAYS
def test_a_file_is_no_directory(peer: Peer, way: dict[str, str]) -> None:
    assert "'/etc/passwd'" in expect(run(peer, "true", cwd="/etc/passwd", **way), "cwd", errno.ENOTDIR, 125)


def test_a_directory_that_the_user_may_not_enter(peer: Peer, place: Path) -> None:
    (place / "mine").mkdir(mode=0o700)
    assert run(peer, "pwd", cwd=str(place / "mine")).text == str(place / "mine")
    expect(run(peer, "true", cwd=str(place / "mine"), user=NOBODY), "cwd", errno.EACCES, 125)


def test_where_the_default_workspace_cannot_be_entered_it_is_the_next_best_place(place: Path) -> None:
    """A workspace that only root may enter is no reason to refuse: nobody asked for it."""
    (place / "mine").mkdir(mode=0o700)
    with serving_commands(config=f'workspace = "{place}/mine"\n') as (_, peer):
        assert run(peer, "pwd").text == str(place / "mine")
        assert run(peer, "pwd", user=NOBODY).text == "/"  # /nonexistent, its home, is just that


# --------------------------------------------------------------------------------------------------------------- limits


def test_a_limit_that_the_kernel_refuses(peer: Peer) -> None:
    """More descriptors than the kernel has for anybody."""
    with open("/proc/sys/fs/nr_open") as file:
        most = int(file.read())
    expect(run(peer, "true", rlimits={"nofile": most + 1}), "limits", errno.EPERM, 125)


def test_a_user_with_too_many_processes(peer: Peer) -> None:
    """One is running; with a limit of none at all, the kernel refuses the second's exec."""
    first = peer.open("exec", argv=["cat"], stdin="stream", user=NOBODY)
    first.accepted()
    expect(run(peer, "true", user=NOBODY, rlimits={"nproc": 0}), "exec", errno.EAGAIN, 126)
    first.event(event="eof", offset=0)
    assert first.end()["code"] == 0


_EXHAUSTED = """
import errno, os, resource, sys
from guestd.errors import StartFailed
from guestd.process.identity import Users
from guestd.process.reaper import Reaper
from guestd.process.plan import Plan
from guestd.process.spawn import Spawner
# Nobody may have a second process, and root always may.
null = os.open("/dev/null", os.O_RDWR)
spawner = Spawner(Users().own_identity(), Reaper(lambda: (0.0, 0.0)))
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
plan = Plan(program="true", argv=[b"true"], env={b"PATH": b"/bin"}, cwd=["/"], identity=spawner._own,
            fds={0: null, 1: null, 2: null})
try:
    spawner.start_at_once(plan, lambda _: None)
except StartFailed as failure:
    print(failure.stage, errno.errorcode[failure.errno], failure.message, sep="|")
"""


def test_a_machine_without_room_for_a_process() -> None:
    """Not the program's fault, so not the stage `exec`, and not the status of a program that cannot be executed."""
    done = subprocess.run([sys.executable, "-c", _EXHAUSTED], capture_output=True, text=True, check=False)
    stage, name, message = done.stdout.rstrip("\n").split("|")
    assert (stage, name) == ("fork", "EAGAIN"), done.stderr
    assert "a limit on processes, is exhausted (fork, EAGAIN)" in message


@WAYS
def test_what_could_not_start_is_a_job_that_can_be_asked_about(peer: Peer, way: dict[str, str]) -> None:
    name = f"absent-{'-'.join(way) or 'root'}"
    done = run(peer, "/no/such/file", id=name, **way)
    assert {**peer.ask("wait", id=name), "gaps": {}} == done.result
    assert [row["state"] for row in peer.ask("ps")["jobs"] if row["id"] == name] == ["ended"]
    # The same question again has the same answer, and does not try again.
    assert run(peer, "/no/such/file", id=name, **way).result == done.result


def test_a_supervisor_without_descriptors_refuses_and_goes_on(served: tuple[Server, Peer]) -> None:
    """Running out of them once started programs that nobody knew of, and then ended the supervisor and all its jobs."""
    server, peer = served
    before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (256, before[1]))
    calls: list[Call] = []

    def start_until_refused() -> None:
        for way in itertools.cycle([{}, {"user": NOBODY}]):
            # Each has tapes, and input, and will have to be ended.
            call = peer.open("exec", shell="echo here; echo >&2; cat", stdin="stream", **way)
            assert call.lines(1) == ["here"]
            calls.append(call)

    with pytest.raises(Failed, match="256 descriptors") as refused:
        start_until_refused()
    assert (refused.value.code, refused.value.fields["setting"]) == ("limit", "RLIMIT_NOFILE")
    assert len(calls) >= 16
    assert len(os.listdir(f"/proc/{server.pid}/fd")) < 256 - 8
    for call in calls:
        peer.open("kill", id=call.accepted()["id"], grace=30)
    assert {call.end()["signal_name"] for call in calls} == {"SIGTERM"}
    # What is kept of those that ended gives way.
    for way in ({}, {"user": NOBODY}):
        assert run(peer, "echo", "here", **way).text == "here"
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
