"""The end is complete: a command that is over, timed out or killed has left nothing behind, or only what is said.

Each tree here is made of real processes, in every way in which a program loses its parent, once where each command
has a cgroup and once where it has none. Every process of the private namespace is a test's own, so «nothing is left»
is looked up in /proc, not taken from guestd's word.
"""

from __future__ import annotations

import json
import os
import random
import select
import shlex
import shutil
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from guestd.process.members import children_of, read_member, same, send
from tests.support.peer import PATIENCE, Peer, Watched, living
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.peer import Call

#: A tree by plan: every process prints its pid when it is what it is to be, and waits. It must not outlive a SIGTERM
#: unless the plan says that it ignores it.
TREE = r"""
import json, os, signal, sys

def go_on(plan):
    os.write(1, b"%d\n" % os.getpid())
    if plan["stops"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        signal.pause()

def grow(plan):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if plan["ignores"] else signal.SIG_DFL)
    for child in plan["children"]:
        pid = os.fork()
        if pid == 0:
            if child["how"] in ("setsid", "daemon"):
                os.setsid()
            if child["how"] == "group":
                os.setpgid(0, 0)
            between = os.getpid()
            if child["how"] in ("orphan", "daemon"):
                if os.fork():
                    os._exit(0)
                # Whoever is stopped before would be ended by the kernel then, with SIGHUP.
                while os.getppid() == between:
                    pass
            grow(child)
        if child["how"] in ("orphan", "daemon"):
            os.waitpid(pid, 0)
    if plan["execs"]:
        os.execv("/bin/sh", ["sh", "-c", "echo $$; read line < " + sys.argv[2]])
    if plan["hollow"]:
        import _thread, ctypes
        _thread.start_new_thread(go_on, (plan,))
        # The thread alone: what goes on looks like a zombie, and shows no environment.
        ctypes.CDLL(None).pthread_exit(None)
    go_on(plan)

grow(json.loads(sys.argv[1]))
"""
#: Prints «up», and then its name for each SIGTERM and SIGUSR1; given a status, it ends with that on the first.
LISTENER = r"""
import os, signal, sys
wanted = {signal.SIGTERM, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
os.write(1, b"up\n")
while signal.sigwait(wanted):
    os.write(1, sys.argv[1].encode() + b"\n")
    if sys.argv[2:]:
        sys.exit(int(sys.argv[2]))
"""
HOW = ("fork", "group", "setsid", "orphan", "daemon")
GRACE = 0.2


@pytest.fixture(scope="module", params=["auto", "off"], ids=["cgroup", "no-cgroup"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(config=f'[command]\ncgroup = "{request.param}"\n') as running:
        with Peer(running.address) as peer:
            # The process that starts programs for others is guestd's own, and comes with the first of them.
            peer.ask("exec", argv=["true"], user="nobody")
            has_cgroups = peer.ask("status")["processes"]["cgroups"]
        if request.param == "auto" and not has_cgroups:
            pytest.skip(
                "no cgroup v2 that can be written to on this machine: the tests without one still run"
            )
        assert has_cgroups is (request.param == "auto")
        yield running


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server.address) as connected:
        yield connected


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Somewhere to wait for ever, or for a word."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    os.chmod(tmp_path, 0o755)
    os.chmod(path, 0o666)
    return path


def _plan(draw: random.Random, size: int) -> dict[str, Any]:
    """A random tree of `size` processes."""
    nodes: list[dict[str, Any]] = []
    for _ in range(size):
        node: dict[str, Any] = {
            "how": draw.choice(HOW),
            "ignores": draw.random() < 0.25,
            "stops": draw.random() < 0.15,
            "execs": draw.random() < 0.2,
            "hollow": draw.random() < 0.2,
            "children": [],
        }
        if nodes:
            draw.choice(nodes)["children"].append(node)
        nodes.append(node)
    return nodes[0]


def _tree(plan: dict[str, Any], fifo: Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", TREE, json.dumps(plan), str(fifo)]


def _listener(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", LISTENER, *words]


def _only(before: dict[int, str]) -> dict[int, str]:
    """What lives now and did not then."""
    return {pid: name for pid, name in living().items() if pid not in before}


# --------------------------------------------------------------------------------------------------------- whole trees


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_reaches_every_process_of_a_tree_however_it_forked(peer: Peer, fifo: Path, seed: int) -> None:
    draw = random.Random(seed)
    size = draw.randrange(2, 14)
    before = living()
    call = peer.open(
        "exec", argv=_tree(_plan(draw, size), fifo), id=f"tree-{os.urandom(4).hex()}", grace=GRACE
    )
    pids = {int(line) for line in call.lines(size)}
    assert _only(before).keys() == pids

    peer.ask("kill", id=call.accepted()["id"])

    assert _only(before) == {}
    result = call.end()
    assert (result["outcome"], result["ended_by"]) == ("signaled", "kill")
    assert result["killed"]["count"] == size
    assert {each["pid"] for each in result["killed"]["processes"]} == pids
    assert result["left"]["count"] == result["unreached"]["count"] == 0


@pytest.mark.parametrize("seed", range(100, 104))
def test_a_timeout_ends_the_whole_tree_and_says_what_it_had_to_kill(
    peer: Peer, fifo: Path, seed: int
) -> None:
    draw = random.Random(seed)
    size = draw.randrange(2, 14)
    before = living()
    call = peer.open("exec", argv=_tree(_plan(draw, size), fifo), timeout=0.7, grace=GRACE)
    result = call.end()
    assert _only(before) == {}
    assert (result["outcome"], result["ended_by"], result["status"]) == ("timed_out", "timeout", 124)
    # How much of it there was by then is the machine's affair.
    assert {int(line) for line in call.stdout.split()} <= {
        each["pid"] for each in result["killed"]["processes"]
    }
    assert result["killed"]["count"] == len(result["killed"]["processes"]) > 0
    assert 0.7 <= result["duration"] < PATIENCE


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_lost_connection_ends_the_whole_tree_where_that_was_asked(
    server: Server, fifo: Path, how: str
) -> None:
    draw = random.Random(how)
    before = living()
    with Peer(server.address) as watcher, Peer(server.address) as starter:
        call = starter.open("exec", argv=_tree(_plan(draw, 9), fifo), kill_on_disconnect=True, grace=GRACE)
        call.lines(9)
        job_id = call.accepted()["id"]
        if how == "close":
            starter.close()
        else:
            call.reset()
        result = watcher.ask("wait", id=job_id)
    assert _only(before) == {}
    assert (result["ended_by"], result["killed"]["count"]) == ("disconnect", 9)


def test_a_program_that_goes_on_forking_while_it_is_killed_does_not_get_away(peer: Peer) -> None:
    """Each process forks a successor and ends, for ever: whoever lists first and kills afterwards is always late."""
    before = living()
    program = (
        "import os, signal\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0: break\n"
        "else:\n"
        "    signal.pause()\n"
        "os.write(1, b'up\\n')\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid()\n"
    )
    call = peer.open("exec", argv=[sys.executable, "-I", "-S", "-c", program], id="comet")
    call.lines(4)
    peer.ask("kill", id="comet", grace=0)
    assert call.end()["unreached"]["count"] == 0
    assert _only(before) == {}


def test_a_fork_bomb_of_a_user_with_a_limit_is_ended(peer: Peer) -> None:
    before = living()
    program = '$| = 1; while (1) { my $pid = fork; print "up\\n" if defined $pid && $pid == 0 }'
    call = peer.open(
        "exec", argv=["perl", "-e", program], user="nobody", cwd="/", rlimits={"nproc": 40}, id="bomb"
    )
    call.lines(20)
    peer.ask("kill", id="bomb", grace=0.1)
    result = call.end()
    assert _only(before) == {}
    assert result["ended_by"] == "kill"
    assert result["unreached"]["count"] == 0
    assert result["killed"]["count"] >= 20
    assert len(result["killed"]["processes"]) == 20, "all are counted, and only some are named"


@pytest.mark.parametrize("server", ["auto"], ids=["cgroup"], indirect=True)
def test_where_there_is_a_cgroup_even_what_left_no_other_trace_is_reached(server: Server, fifo: Path) -> None:
    """Another session, no parent, and nothing of the job's environment: what a daemon does that cleans up."""
    program = f"(exec setsid env -i sh -c 'echo $$; read line < {fifo}' &)\nread line < {fifo}"
    settled = f"until grep -q guestd /proc/self/cgroup; do :; done; {program}"
    before = living()
    with Peer(server.address) as peer:
        call = peer.open("exec", shell=settled, id="traceless")
        call.lines(1)
        peer.ask("kill", id="traceless")
        assert call.end()["killed"]["count"] == 2
    assert _only(before) == {}


@pytest.mark.parametrize("server", ["auto"], ids=["cgroup"], indirect=True)
def test_groups_that_a_command_made_within_its_own_go_with_it(peer: Peer, fifo: Path) -> None:
    """Threaded ones too, whose list of processes cannot be read; once one of those kept guestd from starting again."""
    shell = (
        "until grep -q guestd /proc/self/cgroup; do :; done\n"
        "own=$(grep cgroup2 /proc/self/mounts | cut -d' ' -f2)$(sed -n 's/^0:://p' /proc/self/cgroup)\n"
        "mkdir -p $own/plain/deeper $own/threads && echo threaded >$own/threads/cgroup.type\n"
        f"(setsid sh -c 'read line <{fifo}' &) ; echo $own; read line <{fifo}"
    )
    before = living()
    call = peer.open("exec", shell=shell, id="groups", grace=GRACE)
    own = call.lines(1)[0]
    assert os.path.isdir(f"{own}/threads")
    peer.ask("kill", id="groups")
    assert call.end()["unreached"]["count"] == 0
    assert _only(before) == {}
    with serving() as another, Peer(another.address) as other:
        assert other.ask("exec", argv=["true"])["code"] == 0


# --------------------------------------------------------------------------------------------------- signals and grace


def test_sigterm_comes_first_and_a_program_may_use_its_grace(peer: Peer) -> None:
    call = peer.open("exec", argv=_listener("bye", "3"), id="polite", grace=PATIENCE)
    call.lines(1)
    peer.ask("kill", id="polite")
    result = call.end()
    assert call.stdout == b"up\nbye\n"
    assert (result["outcome"], result["code"], result["ended_by"]) == ("exited", 3, "kill")


def test_what_ignores_sigterm_is_killed_when_its_grace_is_over(peer: Peer, fifo: Path) -> None:
    call = peer.open("exec", shell=f"trap '' TERM; echo up; read line < {fifo}", id="stubborn", grace=GRACE)
    call.lines(1)
    with Watched(call.accepted()["pid"]) as process:
        peer.ask("kill", id="stubborn")
        assert not process.lives
    result = call.end()
    assert (result["outcome"], result["signal_name"], result["status"]) == ("signaled", "SIGKILL", 137)
    assert result["duration"] >= GRACE


def test_a_stopped_program_hears_the_sigterm_too(peer: Peer, fifo: Path) -> None:
    """A stopped process acts on SIGTERM only when it continues; nobody else would continue it."""
    call = peer.open("exec", shell=f"echo up; kill -STOP $$; read line < {fifo}", id="stopped", grace=20)
    call.lines(1)
    peer.ask("kill", id="stopped")
    assert call.end()["signal_name"] == "SIGTERM"


def test_asking_again_without_grace_shortens_an_end_that_is_under_way(server: Server, peer: Peer) -> None:
    call = peer.open("exec", argv=_listener("heard"), id="slow", grace=3600)
    call.lines(1)
    first = peer.open("kill", id="slow")
    call.lines(2)  # it has heard the SIGTERM: the end is under way
    second = peer.ask("kill", id="slow", grace=0)
    assert second["signal_name"] == first.end()["signal_name"] == call.end()["signal_name"] == "SIGKILL"


@pytest.mark.parametrize(("scope", "reached"), [("tree", 3), ("leave", 1)])
def test_a_signal_goes_to_the_whole_tree_or_to_the_first_process(
    peer: Peer, scope: str, reached: int
) -> None:
    child, first = shlex.join(_listener("child")), shlex.join(_listener("first"))
    call = peer.open("exec", shell=f"{child} & setsid {child} & exec {first}", id=f"signalled-{scope}")
    call.lines(3)
    answer = peer.ask("kill", id=f"signalled-{scope}", signal="USR1", scope=scope)
    assert (answer["signalled"], answer["state"]) == (reached, "running")
    heard = call.lines(3 + reached)[3:]
    assert sorted(heard) == sorted(["first"] + ["child"] * (reached - 1))
    peer.ask("kill", id=f"signalled-{scope}", grace=0)
    call.end()


# ----------------------------------------------------------------------------------------------------------- the scope


def test_a_normal_end_leaves_what_it_left_and_says_so_and_a_kill_ends_that_too(
    peer: Peer, fifo: Path
) -> None:
    before = living()
    call = peer.open("exec", shell=f"(read line < {fifo}) >/dev/null 2>&1 & echo $!; exit 4", id="leaver")
    result = call.end()
    pid = int(call.stdout)
    assert (result["outcome"], result["code"], result["ended_by"]) == ("exited", 4, None)
    assert result["left"]["count"] == 1
    assert [each["pid"] for each in result["left"]["processes"]] == [pid]
    assert result["killed"]["count"] == 0
    assert _only(before).keys() == {pid}

    answer = peer.ask("kill", id="leaver", grace=GRACE)

    assert _only(before) == {}
    assert (answer["already_ended"], answer["killed_left"], answer["code"]) == (True, 1, 4)


def test_scope_tree_lets_nothing_outlive_a_normal_end(peer: Peer, fifo: Path) -> None:
    before = living()
    # Nobody ever writes to the second one: whoever waits there, and ignores SIGTERM, has to be killed.
    os.mkfifo(never := f"{fifo}-never")
    child = f'trap "" TERM; echo up; read line < {never}'
    call = peer.open(
        "exec",
        shell=f"sh -c '{child}' & setsid sh -c '{child}' & read a < {fifo}; exit 4",
        scope="tree",
        grace=GRACE,
    )
    call.lines(2)
    fifo.write_text("go\n")
    result = call.end()
    assert _only(before) == {}
    assert (result["outcome"], result["code"], result["ended_by"]) == ("exited", 4, None)
    assert (result["left"]["count"], result["killed"]["count"]) == (0, 2)


def test_a_kill_of_scope_leave_ends_the_first_process_and_names_what_it_left(peer: Peer, fifo: Path) -> None:
    before = living()
    call = peer.open(
        "exec", shell=f"setsid sh -c 'echo $$; read line < {fifo}' & wait", id="half", drain=0.01
    )
    daemon = int(call.lines(1)[0])
    peer.ask("kill", id="half", scope="leave")
    result = call.end()
    assert _only(before).keys() == {daemon}
    assert (result["ended_by"], result["killed"]["count"]) == ("kill", 1)
    assert [each["pid"] for each in result["left"]["processes"]] == [daemon]
    assert result["unreached"]["count"] == 0
    peer.ask("kill", id="half", grace=0)
    assert _only(before) == {}


# -------------------------------------------------------------------------------------------- streams that stay open


def test_a_child_that_holds_stdout_delays_the_result_by_the_drain_and_never_dies_of_sigpipe(
    peer: Peer, fifo: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    os.mkfifo(back)
    later = "head -c 300000 /dev/zero && head -c 300000 /dev/zero >&2"
    call = peer.open("exec", shell=f"(read line < {fifo}; {later} && echo alive > {back}) & echo now", drain=0.05,
                     id="holder")  # fmt: skip
    result = call.end()
    # The child still waits for our word, so it was not waited for.
    assert call.stdout == b"now\n"
    assert result["outcome"] == "exited"
    assert result["held"] == ["stdout", "stderr"]
    assert result["left"]["count"] == 1
    with Watched(result["left"]["processes"][0]["pid"]) as child:
        with fifo.open("w") as word:
            word.write("go\n")
        with back.open() as answer:
            assert answer.read() == "alive\n"
        child.wait()
    assert peer.ask("wait", id="holder")["streams"]["stdout"]["bytes"] == 4, (
        "a result does not change afterwards"
    )


def test_a_child_that_closes_stdout_in_time_is_not_cut_short(peer: Peer, fifo: Path) -> None:
    """Often, because once what was printed right before the exit was shown only when the drain was over."""
    for _ in range(20):
        call = peer.open("exec", shell=f"(read line < {fifo}; echo late) & echo early", drain=PATIENCE)
        call.lines(1)
        fifo.write_text("go\n")
        result = call.end()
        assert call.stdout == b"early\nlate\n"
        assert result["held"] == []


def test_a_command_that_closes_its_own_streams_runs_on_to_its_end(peer: Peer, fifo: Path) -> None:
    call = peer.open("exec", shell=f"echo last; exec >&- 2>&-; read line < {fifo}; exit 5")
    call.lines(1)
    fifo.write_text("go\n")
    assert call.end()["code"] == 5


# ------------------------------------------------------------------------------------------------ output at the end


def test_output_written_right_before_the_exit_is_never_lost(peer: Peer, tmp_path: Path) -> None:
    draw = random.Random(5)
    # Around everything that has a size here: a pipe, a page, the first read, the ring.
    sizes = [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 200_000]
    source = draw.randbytes(max(sizes))
    file = tmp_path / "source"
    file.write_bytes(source)
    waiting: list[tuple[Call, int, int]] = []
    for number in range(500):
        size = sizes[number % len(sizes)]
        stream = 1 + number % 2
        redirect = "" if stream == 1 else " >&2"
        call = peer.open("exec", shell=f"exec head -c {size} {file}{redirect}")
        waiting.append((call, size, stream))
        if len(waiting) == 10:
            for call, size, stream in waiting:
                result = call.end()
                assert result["code"] == 0
                assert bytes(call.output[stream]) == source[:size]
                assert bytes(call.output[3 - stream]) == b""
            waiting.clear()


def test_what_a_full_pipe_held_at_the_exit_arrives_however_late_it_is_read(
    peer: Peer, tmp_path: Path
) -> None:
    """The reader gives no credit: the ring fills, then the pipe, and the command exits with both full."""
    source = random.Random(6).randbytes(4096 + 1024 + 65536)
    (tmp_path / "source").write_bytes(source)
    call = peer.open(
        "exec", shell=f"head -c 69632 {tmp_path}/source; exit 6", tape=4096, window=0, drain=0.01
    )
    with suppress(ProcessLookupError), Watched(call.accepted()["pid"]) as process:
        process.wait()
    # Another command's whole life, so that the drain is over by any measure.
    peer.ask("exec", shell="sleep 0.1")
    call.credit(1_000_000)
    assert call.end()["code"] == 6
    assert call.stdout == source[:69632]
    assert call.gaps == []


# ------------------------------------------------------------------------------------------------------------- zombies


def test_orphans_leave_no_zombies_and_confuse_no_exit_status(server: Server, peer: Peer) -> None:
    before = set(children_of(server.pid))
    waiting: list[tuple[int, Call]] = []
    for number in range(300):
        waiting.append((number, peer.open("exec", shell=f"(exit 99) & (true &) ; exit {number % 200}")))
        if len(waiting) == 10:
            for expected, call in waiting:
                assert call.end()["code"] == expected % 200
            waiting.clear()
    while set(children_of(server.pid)) - before:
        peer.ask(
            "status"
        )  # the last orphan ends in its own time; each round trip is guestd's chance to reap it


# ------------------------------------------------------------------------------------------------- pids used again


def test_a_signal_never_hits_a_process_that_only_has_the_number() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(7)
    os.close(read)
    try:
        member = read_member(pid)
        assert member is not None
        assert same(member)
        earlier = member._replace(started=member.started - 1)
        assert not same(earlier)
        assert not send(earlier, signal.SIGKILL)
        assert read_member(pid) == member, "it was hit"
    finally:
        os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert read_member(pid) is None
    assert not send(member, signal.SIGKILL)


def test_a_zombie_is_nobody_to_signal() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert read_member(pid) is None
    os.waitpid(pid, 0)


# ---------------------------------------------------------------------------------------------------------- unreached


def test_what_cannot_be_reached_is_named(tmp_path: Path, fifo: Path) -> None:
    """A guestd that is not root, and a set-uid program that became root: nobody's signals do not reach it."""
    program = f"import os; os.setresuid(0, 0, 0); print(os.getpid(), flush=True); open('{fifo}').read()"
    as_nobody = 'chown nobody . notify && exec setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"'
    before = living()
    with serving(prefix=["sh", "-c", as_nobody, "sh"]) as server, Peer(server.address) as peer:
        helper = server.directory / "python"
        shutil.copy(os.path.realpath(sys.executable), helper)
        os.chmod(helper, 0o4755)
        call = peer.open(
            "exec", shell=f'{helper} -I -S -c "{program}" & wait', id="beyond", grace=GRACE, cwd="/"
        )
        pid = int(call.lines(1)[0])
        peer.ask("kill", id="beyond")
        result = call.end()
        assert [each["pid"] for each in result["unreached"]["processes"]] == [pid]
        assert result["killed"]["count"] == 1, "the shell itself"
        fd = os.open(fifo, os.O_WRONLY)
        with Watched(pid) as process:
            select.select([], [fd], [], PATIENCE)
            os.close(fd)
            process.wait()
    assert _only(before) == {}


def test_a_daemon_in_the_middle_of_its_exec_is_counted() -> None:
    """Between an exec's old memory and the new one a process shows no environment; after setsid no session either."""
    with serving(config='[command]\ncgroup = "off"\n') as server, Peer(server.address) as peer:
        for _ in range(150):
            assert peer.ask("exec", shell="setsid sleep 30 >/dev/null 2>&1 &")["left"]["count"] == 1
