"""Stop means stopped cleanly: SIGTERM always, a bounded grace, everybody told, and nothing left behind.

And where there was no time for that, after kill -9, the next start clears what was left.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guestd.wire.frames import Kind
from tests.support import leaks
from tests.support.peer import PATIENCE, Failed, Peer, Watched
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.peer import Call

#: Prints «up», and its name for each SIGTERM; given a status, it ends with that on the first.
LISTENER = r"""
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.write(1, b"up\n")
while signal.sigwait({signal.SIGTERM}):
    os.write(1, sys.argv[1].encode() + b"\n")
    if sys.argv[2:]:
        sys.exit(int(sys.argv[2]))
"""
CGROUPS = pytest.mark.parametrize("cgroup", ["auto", "off"])


def _listener(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", LISTENER, *words]


def _config(grace: str, cgroup: str = "auto") -> str:
    return f'[stop]\ngrace = "{grace}"\n[command]\ncgroup = "{cgroup}"\n'


def _folders() -> set[str]:
    """Every group of a guestd that was started from here: it makes its own below that of whoever has started it."""
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split(" ")[4] for line in file if " - cgroup2 " in line]
    own = next(
        line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
    )
    return {str(path) for mount in mounts for path in Path(mount, own.strip("/")).glob("guestd.*")}


@contextmanager
def _nothing_left() -> Generator[None]:
    """What was there before is all that there is afterwards, but for what has been killed and has yet to leave."""
    before = leaks.processes()
    yield
    assert [text for pid in leaks.processes() - before if (text := leaks.process_left(pid))] == []


def _started(peer: Peer, *words: str, job_id: str, **fields: object) -> Call:
    call = peer.open("exec", argv=_listener(*words), id=job_id, **fields)
    call.lines(1)
    return call


def _last_words(peer: Peer) -> dict[str, Any]:
    """Of a connection that is closed now."""
    with suppress(EOFError):
        while True:
            peer.pump()
    assert peer.goaway is not None
    return peer.goaway


# ------------------------------------------------------------------------------------------------------------ the order


@CGROUPS
def test_sigterm_ends_everything_and_tells_everybody(cgroup: str) -> None:
    with _nothing_left(), serving(config=_config("20s", cgroup)) as server:
        folders = _folders()
        with Peer(server.address) as peer, Peer(server.address, dialect="websocket") as other:
            polite = _started(peer, "bye", "7", job_id="polite")
            waiting = other.open("wait", id="polite")
            waiting.accepted()
            plain = other.open("exec", argv=["sleep", "1000"])
            plain.accepted()
            daemons = peer.open(
                "exec", shell="for i in 1 2 3; do setsid sleep 1000 >/dev/null 2>&1 & done; echo up"
            )
            assert daemons.end()["left"]["count"] == 3

            server.process.send_signal(signal.SIGTERM)

            result = polite.end()
            assert polite.stdout == b"up\nbye\n"
            assert (result["outcome"], result["code"], result["ended_by"]) == ("exited", 7, "stop")
            assert waiting.end()["ended_by"] == "stop"
            assert (plain.end()["signal_name"], plain.end()["ended_by"]) == ("SIGTERM", "stop")
            for each in (peer, other):
                assert _last_words(each)["code"] == "shutting_down"
        assert server.process.wait(PATIENCE) == 0
        assert not os.path.exists(server.path)
        assert _folders() - folders == set()
        assert "Traceback" not in server.log


@CGROUPS
def test_what_ignores_sigterm_is_killed_when_the_grace_is_over(cgroup: str) -> None:
    with _nothing_left(), serving(config=_config("1s", cgroup)) as server, Peer(server.address) as peer:
        stubborn = _started(peer, "no", job_id="stubborn")
        left = peer.open("exec", shell="(trap '' TERM; exec sleep 1000) >/dev/null 2>&1 & echo up")
        left.end()
        server.process.send_signal(signal.SIGTERM)
        result = stubborn.end()
        assert stubborn.stdout == b"up\nno\n"
        assert (result["signal_name"], result["ended_by"]) == ("SIGKILL", "stop")
        assert server.process.wait(PATIENCE) == 0


def test_what_was_left_running_hears_a_sigterm_too_and_not_only_when_all_else_has_ended(
    tmp_path: Path,
) -> None:
    farewell = tmp_path / "farewell"
    program = LISTENER.replace(
        "os.write(1, sys.argv[1]", f"os.write(os.open('{farewell}', 0o101), sys.argv[1]"
    )
    with _nothing_left(), serving(config=_config("1s")) as server, Peer(server.address) as peer:
        _started(peer, "no", job_id="stubborn")
        words = shlex.join([sys.executable, "-I", "-S", "-c", program, "bye", "0"])
        call = peer.open("exec", shell=f"setsid {words} & wait", id="leaver")
        call.lines(1)
        peer.ask("kill", id="leaver", scope="leave")
        assert call.end()["left"]["count"] == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
    assert farewell.read_text() == "bye\n"


def test_a_supervisor_that_stands_still_in_the_middle_leaves_nobody_behind() -> None:
    """The time for programs was over when it went on: it had killed nobody, and ended without whom it had left."""
    with _nothing_left(), serving(config=_config("1s")) as server, Peer(server.address) as peer:
        stubborn = _started(peer, "heard", job_id="stubborn")
        left = peer.open("exec", shell="trap '' TERM; setsid sleep 1000 >/dev/null 2>&1 & echo up")
        assert left.end()["left"]["count"] == 1
        server.process.send_signal(signal.SIGTERM)
        stubborn.lines(2)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)  # for as long as that; there is nothing to wait for
        server.process.send_signal(signal.SIGCONT)
        assert stubborn.end()["ended_by"] == "stop"
        assert server.process.wait(PATIENCE) == 0


def test_nothing_new_is_started_while_it_stops() -> None:
    with serving(config=_config("3600s")) as server, Peer(server.address) as peer:
        stubborn = _started(peer, "heard", job_id="stubborn")
        server.process.send_signal(signal.SIGTERM)
        stubborn.lines(2)
        for fields in (
            {"argv": ["true"]},
            {"argv": ["true"], "id": "new"},
            {"argv": ["true"], "user": "nobody"},
        ):
            with pytest.raises(Failed) as refused:
                peer.ask("exec", **fields)
            assert (refused.value.kind, refused.value.code) == (Kind.REJECT, "shutting_down")
        # What concerns the old goes on: it can be looked at, and asked for again.
        assert [row["id"] for row in peer.ask("ps")["jobs"]] == ["stubborn"]
        again = peer.open("exec", argv=_listener("heard"), id="stubborn")
        assert again.accepted()["created"] is False
        peer.ask("kill", id="stubborn", grace=0)
        assert stubborn.end()["ended_by"] == "stop"


def test_a_second_sigterm_shortens_the_grace() -> None:
    with _nothing_left(), serving(config=_config("3600s")) as server, Peer(server.address) as peer:
        stubborn = _started(peer, "heard", job_id="stubborn")
        left = peer.open("exec", shell="(trap '' TERM; exec sleep 1000) >/dev/null 2>&1 & echo up")
        left.end()
        server.process.send_signal(signal.SIGTERM)
        stubborn.lines(2)
        server.process.send_signal(signal.SIGTERM)
        assert (stubborn.end()["signal_name"], stubborn.end()["ended_by"]) == ("SIGKILL", "stop")
        assert server.process.wait(PATIENCE) == 0


def test_an_end_under_way_with_a_long_grace_gets_no_longer_than_the_stops() -> None:
    with _nothing_left(), serving(config=_config("200ms")) as server, Peer(server.address) as peer:
        stubborn = _started(peer, "heard", job_id="stubborn")
        killing = peer.open("kill", id="stubborn", grace=3600)
        stubborn.lines(2)
        server.process.send_signal(signal.SIGTERM)
        assert (killing.end()["signal_name"], stubborn.end()["ended_by"]) == ("SIGKILL", "kill")
        assert server.process.wait(PATIENCE) == 0


def test_a_holder_that_reads_nothing_does_not_hold_up_the_stop() -> None:
    with _nothing_left(), serving(config=_config("20s")) as server, Peer(server.address) as peer:
        call = peer.open("exec", argv=["yes"], window=0, tape=4096)
        call.accepted()
        other = peer.open("wait", id=call.accepted()["id"])
        other.accepted()
        server.process.send_signal(signal.SIGTERM)
        assert other.end()["ended_by"] == "stop"
        assert server.process.wait(PATIENCE) == 0


def test_a_stop_with_nothing_to_stop_says_goodbye_and_ends() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving() as server, Peer(server.address) as peer:
            server.process.send_signal(number)
            assert _last_words(peer)["code"] == "shutting_down"
            assert server.process.wait(PATIENCE) == 0


def test_a_hang_up_right_behind_ready_is_heeded_like_any_other() -> None:
    """It met no handler and ended guestd without any order. Where nobody starts the next one, it is a stop."""
    with serving() as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(PATIENCE) == 0


@CGROUPS
def test_two_hundred_commands_end_together(cgroup: str) -> None:
    with _nothing_left(), serving(config=_config("20s", cgroup)) as server, Peer(server.address) as peer:
        folders = _folders()
        calls = [peer.open("exec", shell="sleep 1000 & wait") for _ in range(200)]
        for call in calls:
            call.accepted()
        server.process.send_signal(signal.SIGTERM)
        assert {call.end()["ended_by"] for call in calls} == {"stop"}
        assert server.process.wait(PATIENCE) == 0
        assert _folders() - folders <= set()


def test_daemons_of_jobs_that_are_forgotten_end_with_the_session() -> None:
    for cgroup in ("auto", "off"):
        with _nothing_left(), serving(config=_config("20s", cgroup) + "retain_count = 0\n") as server:
            with Peer(server.address) as peer:
                for _ in range(5):
                    assert peer.ask("exec", shell="setsid sleep 1000 >/dev/null 2>&1 &")["left"]["count"] == 1
                assert len(peer.ask("ps")["jobs"]) <= 1, "only the one that was looked at just now"
            assert server.stop() == 0


# ----------------------------------------------------------------------------------------------------------- no warning


def test_after_kill_9_the_next_guestd_starts_and_clears_what_was_left() -> None:
    folders = _folders()
    with serving() as first:
        with Peer(first.address) as peer:
            has_cgroups = peer.ask("status")["processes"]["cgroups"]
            calls = [peer.open("exec", shell="exec sleep 1000", id=f"orphan-{number}") for number in range(3)]
            processes = [Watched(call.accepted()["pid"]) for call in calls]
        left = _folders() - folders
        assert bool(left) is has_cgroups
        first.kill()
        for process in processes:
            with process:
                assert process.lives, "the supervisor may die, the work may not"
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        assert os.path.exists(first.path)
        with serving(first.address) as second, Peer(second.address) as peer:
            assert peer.ask("exec", shell="echo works")["code"] == 0
            assert peer.ask("exec", shell="echo works", user="nobody")["code"] == 0
            assert peer.ask("status")["processes"]["cgroups"] is has_cgroups
            assert _folders() & left == set()
        assert not os.path.exists(first.path)
    assert _folders() - folders == set()


#: Two children with a child each, none of which heed SIGTERM; says which of the four live when the second was to end.
SPARING = """
import os, select, signal, subprocess
import trio
from guestd.process.tree import end_below
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
deaf = "trap '' TERM; sleep 1000 & echo $!; wait"
kept, gone = (subprocess.Popen(["sh", "-c", deaf], stdout=subprocess.PIPE) for _ in range(2))
below = [int(each.stdout.readline()) for each in (kept, gone)]
all_of_them = [os.pidfd_open(pid) for pid in (kept.pid, below[0], gone.pid, below[1])]
trio.run(lambda: end_below({kept.pid}, grace=0.1))
print([not select.select([each], [], [], 0)[0] for each in all_of_them])
for pid in (below[0], kept.pid):
    os.kill(pid, signal.SIGKILL)
"""


def test_at_the_very_end_everything_goes_but_who_is_spared() -> None:
    """As the exporter is, which sends what the stop has to tell, and does not heed SIGTERM either."""
    done = subprocess.run([sys.executable, "-c", SPARING], capture_output=True, timeout=PATIENCE, check=False)
    assert done.stdout == b"[True, True, False, False]\n", done


def test_two_guestds_leave_each_others_groups_alone() -> None:
    """A pid of another namespace means nothing: each knows the other's folder by its lock."""
    with serving() as first, Peer(first.address) as peer:
        mine = _folders()
        with serving() as second, Peer(second.address) as other:
            assert other.ask("exec", argv=["true"])["code"] == 0
            assert mine <= _folders()
        assert mine <= _folders()
        assert peer.ask("exec", shell="true", user="nobody")["code"] == 0
        assert isinstance(first, Server)
