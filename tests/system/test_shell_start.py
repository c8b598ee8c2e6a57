"""How a shell begins: a terminal that controls it, of the right size from the first moment, as whom, where, and under
which id.
"""

from __future__ import annotations

import os
import pwd
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.commands import NOBODY, public_folder, serving_commands
from tests.support.peer import Failed, Peer, living
from tests.support.server import Server, serving
from tests.support.shells import CTRL_C, CTRL_Z, DIALECTS, PROMPT, Seat, bash, python, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_commands() as (running, _):
        yield running


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


def _name() -> str:
    return f"sh-{os.urandom(5).hex()}"


# ------------------------------------------------------------------------------------------------------- the terminal


SAYS_WHO_IT_IS = """
import os, sys
with open("/dev/tty", "rb") as tty:
    same = os.fstat(tty.fileno()).st_rdev != 0 and os.tcgetpgrp(tty.fileno()) == os.getpgrp()
print("tty", all(os.isatty(fd) for fd in (0, 1, 2)), os.ttyname(0) == os.ttyname(1) == os.ttyname(2))
print("session", os.getsid(0) == os.getpid(), "group", os.getpgrp() == os.getpid(), "foreground", same)
"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_program_leads_a_session_that_its_terminal_controls(server: Server, dialect: str) -> None:
    with Peer(server.address, dialect=dialect) as peer:
        seat = Seat(peer, argv=python(SAYS_WHO_IT_IS))
        known = seat.accepted()
        result = seat.end()
    assert seat.shown == b"tty True True\r\nsession True group True foreground True\r\n"
    assert (known["kind"], known["role"], known["created"]) == ("shell", "owner", True)
    assert known["size"] == {"columns": 80, "rows": 24}
    assert known["streams"] == {"terminal": {"start": 0, "end": 0}}
    assert known["id"].startswith("s-")
    assert known["pid"] == result["pid"] > 0
    assert (result["kind"], result["outcome"], result["code"]) == ("shell", "exited", 0)
    assert result["streams"]["terminal"]["bytes"] == len(seat.shown)


def test_job_control_stops_continues_and_lists(peer: Peer) -> None:
    seat = bash(peer)
    seat.line("sleep 1000")
    seat.read_until(b"\n")
    _wait_foreground(peer, seat.id, "sleep")
    seat.type(CTRL_Z)
    assert b"Stopped" in seat.read_until(PROMPT)
    assert seat.run("bg").endswith("sleep 1000 &")
    assert "Running" in seat.run("jobs")
    seat.line("fg")
    seat.read_until(b"sleep 1000\r\n")
    _wait_foreground(peer, seat.id, "sleep")
    seat.type(CTRL_C)
    seat.read_until(PROMPT)
    assert seat.run("echo $?") == "130"
    assert seat.run("jobs") == ""
    seat.line("exit 7")
    assert seat.end()["code"] == 7


def _wait_foreground(peer: Peer, job_id: str, name: str) -> None:
    while row_of(peer, job_id)["foreground"]["name"] != name:
        pass


def test_the_size_is_there_before_the_program(peer: Peer) -> None:
    size = {"columns": 123, "rows": 45, "width": 1000, "height": 700}
    seat = Seat(peer, argv=["stty", "size"], size=size)
    assert seat.accepted()["size"] == {"columns": 123, "rows": 45}
    seat.end()
    assert seat.shown == b"45 123\r\n"
    pixels = "import fcntl, struct, termios as t; print(struct.unpack('4H', fcntl.ioctl(0, t.TIOCGWINSZ, bytes(8))))"
    seat = Seat(peer, argv=python(pixels), size=size)
    seat.end()
    assert seat.shown == b"(45, 123, 1000, 700)\r\n"


@pytest.mark.parametrize(
    "size", [None, {}, {"columns": 0, "rows": 0}, {"columns": 100, "rows": 0}, {"rows": 7}]
)
def test_a_size_that_is_not_known_is_80_by_24(peer: Peer, size: dict[str, int] | None) -> None:
    seat = Seat(peer, argv=["stty", "size"], size=size)
    seat.end()
    assert seat.shown == b"24 80\r\n"


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (10_000, 3), (65535, 65535)])
def test_any_size_that_the_kernel_can_hold(peer: Peer, columns: int, rows: int) -> None:
    seat = Seat(peer, argv=["stty", "size"], size={"columns": columns, "rows": rows})
    seat.end()
    assert seat.shown == b"%d %d\r\n" % (rows, columns)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"size": {"columns": 65536, "rows": 1}}, "columns"),
        ({"size": {"columns": -1, "rows": 1}}, "columns"),
        ({"size": "80x24"}, "size"),
        ({"role": "king"}, "role"),
        ({"from_": "middle"}, "from"),
        ({"from_": {"stdout": 1}}, "from"),
        ({"client": "x" * 129}, "client"),
        ({"term": "x" * 129}, "term"),
        ({"argv": ["true"], "shell": "true"}, "argv"),
        ({"argv": []}, "argv"),
        ({"id": "-x"}, "id"),
    ],
)
def test_a_field_that_cannot_be_is_named(peer: Peer, fields: dict[str, Any], name: str) -> None:
    with pytest.raises(Failed) as refused:
        Seat(peer, **fields).end()
    assert (refused.value.code, refused.value.fields["field"]) == ("bad_request", name)


def test_what_the_terminal_is_comes_from_the_client(peer: Peer) -> None:
    seat = Seat(peer, shell='echo "$TERM/$COLORTERM"', term="foot", colorterm="truecolor")
    seat.end()
    assert seat.shown == b"foot/truecolor\r\n"


def test_what_nobody_says_of_the_terminal_is_usual(server: Server) -> None:
    """And what the request's environment says of a terminal is not this one's."""
    with serving_commands(environment={"COLORTERM": "yes", "LINES": "7", "COLUMNS": "9"}) as (_, peer):
        seat = Seat(peer, shell='echo "$TERM/${COLORTERM-none}/${LINES-none}/${COLUMNS-none}"')
        seat.end()
        assert seat.shown == b"xterm-256color/none/none/none\r\n"
    del server


# ------------------------------------------------------------------------------------------------- what runs, as whom


def test_without_a_program_it_is_the_users_own_shell_as_at_a_login(peer: Peer) -> None:
    seat = Seat(peer, env={"PS1": "$ "}, integration=False)
    seat.line("shopt -q login_shell && echo lo''gin $0 $SHELL; exit")
    assert b"login -bash /bin/bash\r\n" in seat.read_until(b"login -bash /bin/bash\r\n")
    assert seat.end()["code"] == 0
    plain = Seat(peer, login=False, integration=False)
    plain.line("shopt -q login_shell || echo pl''ain; exit")
    plain.read_until(b"plain\r\n")
    assert plain.end()["code"] == 0


def test_a_string_is_run_by_the_sessions_shell(peer: Peer) -> None:
    seat = Seat(peer, shell="echo $((6 * 7)); tty")
    assert seat.end()["code"] == 0
    first, second = seat.shown.split()
    assert first == b"42"
    assert second.startswith(b"/dev/pts/")


def test_environment_directory_mask_and_limits_are_as_asked(peer: Peer) -> None:
    seat = Seat(
        peer, shell="echo $A; pwd; umask; ulimit -n; nice; echo $GUESTD_JOB_ID", env={"A": "b c"}, cwd="/usr",
        umask=0o077, rlimits={"nofile": 77}, nice=3,
    )  # fmt: skip
    job_id = seat.id
    seat.end()
    assert seat.shown.decode().splitlines() == ["b c", "/usr", "0077", "77", "3", job_id]


def test_another_users_terminal_is_that_users(peer: Peer) -> None:
    uid = pwd.getpwnam(NOBODY).pw_uid
    opens = 'exec 3<>/dev/tty 4<>"$(tty)" && echo opened'
    seat = Seat(peer, shell=f'id -u; stat -c %u "$(tty)"; tty -s && {opens}', user=NOBODY, cwd="/")
    assert seat.end()["code"] == 0, seat.shown
    assert seat.shown.decode().split() == [str(uid), str(uid), "opened"]
    told = Seat(peer, argv=["tty"], user=NOBODY, cwd="/")
    assert told.end()["code"] == 0
    assert told.shown.startswith(b"/dev/pts/")


@pytest.mark.parametrize(
    ("fields", "stage"),
    [
        ({"argv": ["/no/such/program"]}, "exec"),
        ({"argv": ["no-such-program"]}, "exec"),
        ({"argv": ["/etc/passwd"]}, "exec"),
        ({"argv": ["true"], "cwd": "/no/such/place"}, "cwd"),
        ({"argv": ["true"], "user": "no-such-user"}, "user"),
    ],
)
def test_what_could_not_start_is_a_result(peer: Peer, fields: dict[str, Any], stage: str) -> None:
    job_id = _name()
    seat = Seat(peer, id=job_id, **fields)
    known = seat.accepted()
    assert (known["kind"], known["created"], known["pid"]) == ("shell", True, None)
    seat.type(b"typed ahead")
    result = seat.end()
    assert (result["outcome"], result["stage"], result["kind"]) == ("not_started", stage, "shell")
    assert peer.ask("attach", id=job_id)["outcome"] == "not_started"
    assert row_of(peer, job_id)["state"] == "ended"
    again = Seat(peer, id=job_id, argv=["true"])
    assert again.accepted()["created"] is True
    assert again.end()["code"] == 0


def test_it_goes_on_detached(peer: Peer) -> None:
    job_id = _name()
    call = peer.open("shell", id=job_id, argv=["cat"], detach=True)
    assert call.end() == {"id": job_id, "detached": True}
    known = call.accepted()
    assert (known["created"], known["state"]) == (True, "running")
    seat = Seat(peer, id=job_id)
    assert seat.accepted()["created"] is False
    seat.line("still there")
    seat.read_until(b"still there\r\nstill there\r\n")
    seat.call.event(event="eof")
    assert seat.end()["code"] == 0


def test_a_kill_that_overtakes_its_start_wins(peer: Peer) -> None:
    job_id = _name()
    assert peer.ask("kill", id=job_id)["state"] == "unknown"
    result = Seat(peer, id=job_id, argv=["sleep", "1000"]).end()
    assert (result["outcome"], result["stage"], result["ended_by"]) == ("not_started", "killed", "kill")


# ------------------------------------------------------------------------------------------------------------- the id


def test_the_same_id_is_the_living_shell(peer: Peer, server: Server) -> None:
    first = bash(peer, id=_name())
    with Peer(server.address, dialect="websocket") as other:
        second = Seat(other, id=first.id, from_="start")
        known = second.accepted()
        assert (known["created"], known["pid"]) == (False, first.accepted()["pid"])
        second.read_until(PROMPT)
        second.line("echo fr''om here")
        second.read_until(b"\r\nfrom here\r\n")
        first.read_until(b"\r\nfrom here\r\n")
    first.line("exit")
    first.end()


def test_an_ended_shells_id_begins_anew(peer: Peer) -> None:
    job_id = _name()
    old = Seat(peer, id=job_id, argv=["echo", "old"])
    old.end()
    new = Seat(peer, id=job_id, shell="echo new; exit 3", from_="start")
    assert new.accepted()["created"] is True
    assert new.end()["code"] == 3
    assert new.shown == b"new\r\n"


def test_an_id_of_the_other_kind_is_a_conflict(peer: Peer) -> None:
    peer.ask("exec", id=(command := _name()), argv=["true"])
    peer.ask("shell", id=(shell := _name()), argv=["cat"], detach=True)
    for op, job_id in (("shell", command), ("exec", shell)):
        with pytest.raises(Failed) as refused:
            peer.ask(op, id=job_id, argv=["true"])
        assert refused.value.code == "conflict"
    peer.ask("kill", id=shell, grace=0)


ASKED: dict[str, object] = {
    "argv": ["sleep", "1000"], "env": {"A": "b"}, "cwd": "/usr", "user": 0, "umask": 0o027, "nice": 1,
    "oom_score_adj": 10, "rlimits": {"nofile": 99},
}  # fmt: skip


def test_what_is_said_of_a_living_shell_must_be_true(peer: Peer) -> None:
    job_id = _name()
    peer.ask("shell", id=job_id, **ASKED, detach=True)
    assert peer.open("shell", id=job_id, **ASKED, detach=True).accepted()["created"] is False
    others: dict[str, object] = {
        "argv": ["sleep", "1"], "shell": "sleep 1000", "env": {"A": "c"}, "cwd": "/", "user": NOBODY, "umask": 0,
        "nice": 0, "oom_score_adj": 0, "rlimits": {"nofile": 98}, "group": NOBODY, "groups": [NOBODY],
        "login": False,
    }  # fmt: skip
    for name, value in others.items():
        with pytest.raises(Failed) as refused:
            peer.ask("shell", id=job_id, **{name: value}, detach=True)
        assert (refused.value.code, refused.value.fields["field"]) == ("conflict", name)
    # These are the viewer's own, or say nothing of what runs.
    more: dict[str, object] = {"term": "foot", "size": {"columns": 9, "rows": 9}, "tape": 70_000, "grace": 1}
    assert peer.open("shell", id=job_id, **more, detach=True).accepted()["created"] is False
    peer.ask("kill", id=job_id, grace=0)


def test_saying_what_is_so_by_default_is_no_conflict(peer: Peer) -> None:
    """What was compared once was what had been said, and not what was so."""
    job_id = _name()
    peer.ask("shell", id=job_id, argv=["sleep", "1000"], detach=True)
    said: dict[str, object] = {
        "login": True,
        "env": {},
        "umask": 0o022,
        "nice": 0,
        "oom_score_adj": 0,
        "rlimits": {},
        "user": "root",
    }
    for name, value in said.items():
        assert peer.open("shell", id=job_id, **{name: value}, detach=True).accepted()["created"] is False
    peer.ask("kill", id=job_id, grace=0)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_two_who_open_a_new_id_at_once_get_one_shell(server: Server, dialect: str) -> None:
    rounds = 40
    with ExitStack() as undo:
        peers = [undo.enter_context(Peer(server.address, dialect=dialect)) for _ in range(2)]
        for number in range(rounds):
            job_id = f"both-{dialect}-{number}"
            # Both requests are on their way before either is answered.
            seats = [Seat(each, id=job_id, argv=["cat"]) for each in peers]
            known = [seat.accepted() for seat in seats]
            assert sorted(each["created"] for each in known) == [False, True]
            assert known[0]["pid"] == known[1]["pid"]
            peers[0].ask("kill", id=job_id, grace=0)
            assert [seat.end()["outcome"] for seat in seats] == ["signaled"] * 2


def test_many_threads_that_open_a_new_id_at_once_get_one_shell(server: Server) -> None:
    found: list[tuple[str, int, bool]] = []
    barrier = threading.Barrier(6)

    def open_all() -> None:
        with Peer(server.address) as peer:
            for number in range(20):
                barrier.wait()
                known = Seat(peer, id=f"all-{number}", argv=["cat"]).accepted()
                found.append((known["id"], known["pid"], known["created"]))

    threads = [threading.Thread(target=open_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert len({(job_id, pid) for job_id, pid, _ in found}) == 20
    assert sum(created for _, _, created in found) == 20
    with Peer(server.address) as peer:
        for number in range(20):
            peer.ask("kill", id=f"all-{number}", grace=0)


def test_shells_are_limited_apart_from_commands() -> None:
    with serving(config="[limits]\nshells = 2\n") as server, Peer(server.address) as peer:
        ids = [Seat(peer, argv=["cat"]).id for _ in range(2)]
        with pytest.raises(Failed) as refused:
            peer.ask("shell", argv=["cat"])
        assert (refused.value.code, refused.value.fields["limit"]) == ("limit", 2)
        assert refused.value.fields["setting"] == "limits.shells"
        assert peer.ask("exec", argv=["true"])["code"] == 0
        assert Seat(peer, id=ids[0]).accepted()["created"] is False
        peer.ask("kill", id=ids[0], grace=0)
        assert peer.ask("shell", argv=["true"])["code"] == 0


@pytest.mark.parametrize("user", ["root", NOBODY])
def test_a_shells_descriptors_are_its_terminal_and_no_more(peer: Peer, user: str) -> None:
    """Nor has a job that starts beside it one of the terminal's."""
    listing = "ls /proc/self/fd; readlink /proc/$$/fd/[0-2] | sort -u"
    idle = bash(peer)
    seat = Seat(peer, shell=listing, user=user, cwd="/")
    seat.end()
    # 3 is what ls lists.
    *fds, where = seat.shown.decode().split()
    assert fds == ["0", "1", "2", "3"]
    assert where.startswith("/dev/pts/")
    call = peer.open("exec", shell=f"{listing}; cat < /dev/null", user=user, cwd="/")
    call.end()
    assert "pts" not in call.stdout.decode()
    assert call.stdout.decode().split()[:4] == ["0", "1", "2", "3"]
    # bash keeps its terminal once more, as 255.
    assert idle.run("ls /proc/$$/fd").split() == ["0", "1", "2", "255"]
    _end(peer, idle)


def test_nobody_but_guestd_and_the_shell_has_an_end_of_its_terminal(server: Server, peer: Peer) -> None:
    """A copy that stayed open in the launcher would make each end wait for the drain."""
    seat = bash(peer)
    shell = seat.accepted()["pid"]
    assert len(_terminals_of(server.pid)) == 3
    others = [pid for pid in living() if _parent_of(pid) == server.pid and pid != shell]
    assert others  # the launcher
    assert not [where for pid in others for where in _terminals_of(pid)]
    seat.line("exit")
    assert seat.end()["held"] == []
    assert not _terminals_of(server.pid)


def _terminals_of(pid: int) -> list[str]:
    found: list[str] = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # it was closed in this moment
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return [where for where in found if "/pts/" in where or "ptmx" in where]


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(") ")[2].split()[1])


def test_its_folder_can_be_one_that_only_its_user_may_enter(peer: Peer) -> None:
    with public_folder() as folder:
        own = folder / "own"
        own.mkdir(mode=0o700)
        os.chown(own, pwd.getpwnam(NOBODY).pw_uid, -1)
        seat = Seat(peer, argv=["pwd"], user=NOBODY, cwd=str(own))
        assert seat.end()["code"] == 0
        assert seat.shown.decode().strip() == str(own)


def _end(peer: Peer, *seats: Seat) -> None:
    """The shells of these; a test that leaves them running would be told so."""
    for seat in seats:
        peer.ask("kill", id=seat.id, grace=0)
