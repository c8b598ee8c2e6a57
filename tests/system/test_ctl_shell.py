"""guestctl at a terminal: what a person sees and types, whatever happens to the connection, to guestctl, to guestd."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.relay import Relay
from tests.support.screen.oracle import Oracle
from tests.support.server import serving
from tests.support.tty import PATIENCE, Tty
from tests.system.test_ctl import command, environment, guestctl

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from tests.support.server import Server

PROMPT = rb"ready\$ "
LEAVE = b"\x1d"
#: What a shell here is: small, silent about its surroundings, the same on every machine.
PLAIN = ("--env", "PS1=ready$ ", "--", "/bin/sh", "-i")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("unix:{}/guestd.sock", environment={"GUESTD_COMMAND_GRACE": "2"}) as server:
        # What starts commands for other users starts with the first of them, and is no test's own.
        guestctl(server.address, "exec", "--nice", "1", "--", "true")
        yield server


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


@contextmanager
def sitting(address: str, *arguments: str, columns: int = 80, rows: int = 24, **more: str) -> Generator[Tty]:
    env = environment(GUESTD_TO=address, TERM="xterm-256color", **more)
    with Tty(command(*arguments), env, columns=columns, rows=rows) as tty:
        yield tty


@contextmanager
def shell(address: str, id: str, **options: Any) -> Generator[Tty]:  # noqa: ANN401 - sitting's own
    """Somebody at a shell that shows its prompt."""
    with sitting(address, "shell", id, *PLAIN, **options) as tty:
        tty.wait_for(PROMPT)
        yield tty


def job(server: Server, id: str) -> dict[str, Any]:
    return json.loads(guestctl(server.address, "--json", "ps", id).stdout)


def foreground(server: Server, id: str) -> str | None:
    found: dict[str, Any] = job(server, id).get("foreground") or {}
    return found.get("name")


def end(server: Server, id: str) -> None:
    assert guestctl(server.address, "kill", "--grace", "0.1", id).returncode == 0


# --------------------------------------------------------------------------------------------------- sitting, leaving


def test_a_shell_feels_local_and_outlives_who_leaves_it(server: Server) -> None:
    with shell(server.address, "stays") as tty:
        assert tty.raw
        tty.type("cd /tmp; x=mine; echo $TERM; stty size\r")
        tty.wait_for(rb"xterm-256color\r\n24 80\r\n" + PROMPT)
        # The last key before the one that leaves gets there.
        tty.type(b"y=typed\r" + LEAVE)
        assert tty.end() == 0
        assert tty.is_as_it_was
        assert tty.seen.endswith(b"[detached; guestctl shell stays resumes]\r\n")
    with sitting(server.address, "shell", "stays") as tty:
        tty.wait_for(rb"24 80.*" + PROMPT)
        tty.type("echo $PWD $x $y; exit 7\r")
        tty.wait_for(rb"/tmp mine typed\r\n")
        assert tty.end() == 7
        assert tty.is_as_it_was
        assert tty.seen.endswith(b"[shell stays ended: exited 7]\r\n")


def test_over_a_websocket_it_is_the_same_and_the_way_back_names_the_address(server: Server) -> None:
    address = f"ws+unix:{server.path}"
    with sitting(server.address, "--to", address, "shell", "socket", *PLAIN) as tty:
        tty.wait_for(PROMPT)
        tty.type("echo here\r")
        tty.wait_for(rb"here\r\n" + PROMPT)
        tty.type(LEAVE)
        assert tty.end() == 0
        found = re.search(rb"\[detached; guestctl (--to \S+) (shell socket) resumes\]", tty.seen)
        assert found
    with sitting(server.address, *found[1].decode().split(), *found[2].decode().split()) as tty:
        tty.wait_for(rb"here")
        tty.type("exit\r")
        assert tty.end() == 0


def test_a_plain_end_is_not_talked_about(server: Server) -> None:
    with shell(server.address, "plain") as tty:
        tty.type("exit\r")
        assert tty.end() == 0
        assert b"[" not in re.sub(rb"\x1b\[", b"", tty.rest_of_it)


@pytest.mark.parametrize(("keys", "status"), [("kill -9 $$\r", 137), ("kill -HUP $$\r", 129)])
def test_an_end_by_a_signal_is_its_status(server: Server, keys: str, status: int) -> None:
    with shell(server.address, f"signal-{status}") as tty:
        tty.type(keys)
        assert tty.end() == status
        tty.wait_for(rb"ended: SIG(KILL|HUP)")


def test_keys_are_the_guests_signals_too(server: Server) -> None:
    with shell(server.address, "keys") as tty:
        tty.type("sleep 1000\r")
        tty.wait_for(rb"sleep 1000\r\n")
        tty.wait_until(lambda: foreground(server, "keys") == "sleep")
        tty.type(b"\x03")
        tty.wait_for(PROMPT)
        tty.type("exit 3\r")
        assert tty.end() == 3


@pytest.mark.parametrize(
    ("chosen", "keys", "leaves"),
    [
        ("ctrl-q", b"\x11", True),
        ("ctrl-q", b"\x1b[113;5u", True),
        ("ctrl-q", b"\x1b[27;5;113~", True),
        ("ctrl-q", b"\x1d", False),
        ("none", b"\x1d", False),
    ],
)
def test_the_key_that_leaves_can_be_chosen(server: Server, chosen: str, keys: bytes, leaves: bool) -> None:
    id = f"key-{chosen}-{keys.hex()}"
    with sitting(server.address, "shell", id, "--detach-key", chosen, "--", "cat", "-v") as tty:
        tty.wait_until(lambda: tty.raw)
        tty.type(keys)
        if leaves:
            assert tty.end() == 0
            end(server, id)
        else:
            tty.type("\r\x04")
            tty.wait_for(rb"\^\]\r\n")
            assert tty.end() == 0


def test_without_a_terminal_it_says_what_to_use_instead(server: Server) -> None:
    for arguments in (["shell"], ["exec", "-it", "--", "true"]):
        done = guestctl(server.address, *arguments)
        assert (done.returncode, done.stdout) == (125, b"")
        assert b"needs a terminal" in done.stderr
    assert b"guestctl exec" in guestctl(server.address, "shell").stderr


def test_a_shell_that_cannot_start_says_why(server: Server) -> None:
    with sitting(server.address, "shell", "--", "no-such-program") as tty:
        assert tty.end() == 127
        assert tty.is_as_it_was
        assert b"(exec, ENOENT)" in tty.seen


def test_another_program_under_the_id_is_refused_with_a_way_out(server: Server) -> None:
    with shell(server.address, "other") as tty:
        with sitting(server.address, "shell", "other", "--", "htop") as second:
            assert second.end() == 125
            assert b"leave it out to attach, or choose another id" in second.seen
        tty.type("exit\r")
        assert tty.end() == 0


# ----------------------------------------------------------------------------------------- the terminal is put right

#: A program that has switched on what hurts a prompt.
DRAWS = "printf '\\033[?1049h\\033[?1000h\\033[?1006h\\033[?2004h\\033[>1u\\033=\\033[5;9rdrawn'\r"
UNDONE = rb"\x1b\[<1u\x1b\[\?1000l\x1b\[\?1006l\x1b\[\?2004l\x1b7\x1b\[r\x1b8\x1b\[\?1049l\x1b>.*\x1b\[\?25h"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_whatever_ends_guestctl_the_terminal_is_as_it_was(server: Server, number: int, status: int) -> None:
    id = f"ended-{number}"
    with shell(server.address, id) as tty:
        tty.type(DRAWS)
        tty.wait_for(rb"\x1b\[5;9rdrawn")
        tty.process.send_signal(number)
        assert tty.process.wait(PATIENCE) == status
        tty.wait_for(UNDONE)
        tty.wait_for(rb"guestctl shell " + id.encode() + rb" resumes\]\r+\n")
        # With -9 it is another process that does it.
        tty.wait_until(lambda: tty.is_as_it_was)
        assert job(server, id)["state"] == "running"
        end(server, id)


def test_killed_as_a_job_of_a_shell_it_is_helped_from_the_background(server: Server) -> None:
    """The kernel stops who touches a terminal from there, unless they are prepared for it."""
    env = environment(GUESTD_TO=server.address, TERM="xterm-256color", PS1="local$ ")
    with Tty(["dash", "-i"], env) as tty:
        tty.wait_for(rb"local\$ ")
        tty.type(" ".join(shlex.quote(each) for each in command("shell", "a-job", *PLAIN)) + "\r")
        # Behind its echo, which has it too.
        tty.wait_for(rb"\x1b\[22;0t.*" + PROMPT)
        (pid,) = tty.children
        tty.type(DRAWS)
        tty.wait_for(rb"\x1b\[5;9rdrawn" + PROMPT)
        os.kill(pid, signal.SIGKILL)
        tty.wait_for(UNDONE)
        tty.wait_for(rb"guestctl shell a-job resumes\]\r+\n")
        assert not tty.raw
        tty.type("echo $((6 * 7)); exit 3\r")
        tty.wait_for(rb"42\r\n")
        assert tty.end() == 3
    end(server, "a-job")


def test_a_terminal_that_a_shell_has_taken_over_is_left_to_it(server: Server) -> None:
    """A prompt that was there first, with a mode of its own, lost its echo to who came to help."""
    with shell(server.address, "taken-over") as tty:
        mine = termios.tcgetattr(tty.slave)
        mine[3] |= termios.ISIG
        termios.tcsetattr(tty.slave, termios.TCSANOW, mine)
        (guardian,) = tty.children
        pidfd = os.pidfd_open(guardian)
        tty.process.kill()
        tty.process.wait()
        assert select.select([pidfd], [], [], PATIENCE)[0], "the guardian stays"
        os.close(pidfd)
        assert termios.tcgetattr(tty.slave)[3] == mine[3]
        tty.read_what_came()
        assert b"guestctl is gone" not in tty.seen
        end(server, "taken-over")


def test_a_window_that_is_closed_ends_guestctl_and_not_the_shell(server: Server) -> None:
    with shell(server.address, "closed") as tty:
        children = tty.children
        tty.hang_up()
        assert tty.process.wait(PATIENCE) == 129
        assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]
        assert job(server, "closed")["state"] == "running"
        end(server, "closed")


def test_stopped_from_outside_the_terminal_is_usable_and_the_screen_comes_back(server: Server) -> None:
    with shell(server.address, "stopped") as tty:
        tty.type(DRAWS)
        tty.wait_for(rb"\x1b\[5;9rdrawn")
        tty.process.send_signal(signal.SIGTSTP)
        os.waitid(os.P_PID, tty.process.pid, os.WSTOPPED)
        tty.wait_for(UNDONE)
        assert tty.is_as_it_was
        tty.process.send_signal(signal.SIGCONT)
        tty.wait_for(rb"drawn")
        tty.wait_until(lambda: tty.raw)
        tty.type("exit\r")
        assert tty.end() == 0


# ------------------------------------------------------------------------------------------------------------- sizes


def test_the_window_decides_the_size_before_the_program_starts_and_after(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "size").write_text(
        "import fcntl, termios, struct\n"
        "while True:\n"
        "    print(struct.unpack('4H', fcntl.ioctl(0, termios.TIOCGWINSZ, b'0' * 8)))\n"
        "    input()\n"
    )
    program = (sys.executable, "-u", str(tmp_path / "size"))
    with sitting(server.address, "shell", "sized", "--", *program, columns=101, rows=33) as tty:
        tty.wait_for(rb"\(33, 101, 0, 0\)")
        tty.resize(90, 20, 900, 400)
        tty.wait_until(lambda: job(server, "sized")["size"] == {"columns": 90, "rows": 20})
        tty.type("\r")
        tty.wait_for(rb"\(20, 90, 900, 400\)")
        tty.type(b"\x04")
        assert tty.end() == 1


def test_a_window_that_is_dragged_about_ends_at_its_last_size(server: Server) -> None:
    with shell(server.address, "dragged") as tty:
        for columns in range(40, 140):
            tty.resize(columns, 30)
        tty.wait_until(lambda: job(server, "dragged")["size"] == {"columns": 139, "rows": 30})
        end(server, "dragged")


def test_who_is_not_the_owner_sees_a_new_size_drawn_anew(server: Server) -> None:
    """What the program had drawn for the old size stayed beside what it drew for the new."""
    with (
        shell(server.address, "resized") as owner,
        sitting(server.address, "shell", "resized", "--read-only") as watcher,
    ):
        watcher.wait_for(rb"\x1b\[\?2026h.*" + PROMPT[:-1])
        owner.resize(70, 20)
        watcher.wait_for(rb"\x1b\[\?2026h.*" + PROMPT[:-1])
        assert watcher.process.poll() is None
        owner.type("exit\r")
        assert (owner.end(), watcher.end()) == (0, 0)


# ------------------------------------------------------------------------------------------------------ more than one


def test_who_is_taken_over_is_told_and_leaves(server: Server) -> None:
    with shell(server.address, "one") as first:
        first.type("echo first was here\r")
        first.wait_for(rb"first was here\r\n" + PROMPT)
        with sitting(server.address, "shell", "one", columns=60, rows=20) as second:
            second.wait_for(rb"first was here")
            assert first.end() == 0
            assert first.is_as_it_was
            said = first.seen[first.seen.rindex(b"[detached") :]
            assert re.search(rb"has taken shell one over; guestctl shell one takes it back", said), said
            second.type("stty size; exit\r")
            second.wait_for(rb"20 60\r\n")
            assert second.end() == 0


def test_beside_the_owner_both_type_and_the_size_is_the_owners(server: Server) -> None:
    with (
        shell(server.address, "both") as owner,
        sitting(server.address, "shell", "both", "--join", columns=60, rows=20) as writer,
    ):
        writer.wait_for(PROMPT)
        writer.type("echo typed by the writer; stty size\r")
        owner.wait_for(rb"by the writer\r\n24 80")
        owner.type("exit 4\r")
        assert (owner.end(), writer.end()) == (4, 4)


@pytest.mark.parametrize(("keys", "status"), [(b"\x03", 130), (LEAVE, 0)])
def test_a_watcher_sends_nothing_and_leaves_when_it_likes(server: Server, keys: bytes, status: int) -> None:
    id = f"watched-{status}"
    with (
        shell(server.address, id) as owner,
        sitting(server.address, "shell", id, "--read-only", columns=60, rows=20) as watcher,
    ):
        watcher.wait_for(PROMPT)
        owner.type("echo seen by both\r")
        watcher.wait_for(rb"seen by both\r\n")
        watcher.type(b"echo no\r" + keys)
        assert watcher.end() == status
        assert b"--read-only " + id.encode() + b" resumes]" in watcher.seen
        owner.type("exit\r")
        assert owner.end() == 0
        assert b"echo no" not in owner.seen


@pytest.mark.parametrize("option", ["--join", "--read-only"])
def test_who_comes_to_what_is_not_there_starts_nothing(server: Server, option: str) -> None:
    with sitting(server.address, "shell", "nowhere", option) as tty:
        assert tty.end() == 125
        assert b"there is no job 'nowhere'" in tty.seen
        assert tty.is_as_it_was


def test_without_replay_only_what_comes_is_shown(server: Server) -> None:
    with shell(server.address, "fresh") as tty:
        tty.type("echo before\r")
        tty.wait_for(rb"before\r\n")
        tty.type(LEAVE)
        tty.end()
    with sitting(server.address, "shell", "fresh", "--no-replay") as tty:
        tty.wait_until(lambda: tty.raw)
        tty.type("echo after; exit\r")
        tty.wait_for(rb"after\r\n")
        assert tty.end() == 0
        assert b"before" not in tty.seen


# ---------------------------------------------------------------------------------------------------- lost connections


def looks(oracle: Oracle, output: bytes) -> list[str]:
    """What a terminal shows that got all that."""
    with oracle.screen(80, 24) as screen:
        screen.feed(output)
        return screen.text()


@pytest.mark.parametrize("draws", ["", DRAWS], ids=["prompt", "full screen"])
def test_a_lost_connection_is_one_quiet_line_that_is_gone_without_a_trace(
    server: Server, tmp_path: Path, oracle: Oracle, draws: str
) -> None:
    id = f"lost-{len(draws)}"
    with Relay(tmp_path / "relay", server.path) as relay, shell(relay.address, id) as tty:
        # A screen full of lines, the last of them at the bottom.
        tty.type("i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); done\r")
        tty.wait_for(rb"line 49\r\n" + PROMPT)
        tty.type(draws or "\r")
        tty.wait_for(rb"\x1b\[5;9rdrawn" + PROMPT if draws else PROMPT)
        before = looks(oracle, tty.seen)
        relay.cut()
        # At the bottom, in reverse, and the cursor goes back.
        tty.wait_for(rb"\x1b7[^\n]*\x1b\[24;1H\x1b\[0;7m connection lost; next try in 1 s; Ctrl\+\] leaves")
        drawn = len(tty.seen)
        tty.type("echo typed")
        tty.wait_for(rb"10 keys kept")
        tty.wait_for(rb"next try in 2 s")
        assert b"\n" not in tty.seen[drawn:], "it scrolls"
        shown = looks(oracle, tty.seen)
        assert shown[:-1] == before[:-1]
        assert "connection lost" in shown[-1]
        relay.mend()
        tty.wait_until(lambda: any("echo typed" in line for line in looks(oracle, tty.seen)))
        tty.type(" too\r")
        tty.wait_for(rb"typed too\r\n" + PROMPT)
        tty.type(LEAVE)
        tty.end()
        assert relay.connections == 2
        end(server, id)
        printed = guestctl(server.address, "attach", id).stdout
        local = tty.seen[: tty.seen.rindex(b"\x18")]
        with oracle.screen(80, 24) as expected, oracle.screen(80, 24) as found:
            expected.feed(printed)
            found.feed(local)
            assert expected.differences(found, ignore=["titles"]) == []


def test_more_keys_than_are_kept_are_refused_with_a_bell(server: Server, tmp_path: Path) -> None:
    with Relay(tmp_path / "relay", server.path) as relay:
        with sitting(relay.address, "shell", "bounded", "--", "cat") as tty:
            tty.wait_until(lambda: tty.raw)
            relay.cut()
            tty.wait_for(rb"connection lost")
            for _ in range(4):
                tty.type(b"x" * 1000)
                tty.wait_for(rb"000 keys kept")
            # What a mouse says is no key.
            tty.type(b"\x1b[<35;1;1Mz")
            tty.wait_for(rb"4001 keys kept")
            tty.type(b"y" * 200)
            tty.wait_for(rb"\a")
            tty.type(b"\r")
            tty.wait_for(rb"4002 keys kept")
            relay.mend()
            tty.wait_for(rb"x{1000}.*\r\n")
            tty.type(b"\r\x04")
            assert tty.end() == 0
        output = guestctl(server.address, "attach", "bounded").stdout
        assert output.count(b"x") == 8000
        assert b"y" not in output
        assert b"35;1;1M" not in output


def test_without_a_connection_one_can_leave_and_is_told_what_was_not_sent(
    server: Server, tmp_path: Path
) -> None:
    with Relay(tmp_path / "relay", server.path) as relay, shell(relay.address, "away") as tty:
        relay.cut()
        tty.wait_for(rb"connection lost")
        tty.type("lost\r")
        tty.wait_for(rb"5 keys kept")
        tty.type(LEAVE)
        assert tty.end() == 0
        assert tty.is_as_it_was
        assert b"[5 keys typed without a connection were not sent]" in tty.seen
        end(server, "away")


def test_guestd_that_dies_is_a_lost_connection_and_one_can_leave() -> None:
    with serving() as server:
        with shell(server.address, "orphan") as tty:
            pid = int(json.loads(guestctl(server.address, "--json", "ps", "orphan").stdout)["pid"])
            server.kill()
            tty.wait_for(rb"connection lost")
            tty.type(LEAVE)
            assert tty.end() == 0
            assert tty.is_as_it_was
        with suppress(ProcessLookupError):  # its terminal was hung up with guestd
            os.kill(pid, signal.SIGKILL)


def test_an_ownership_that_was_taken_meanwhile_is_not_taken_back_in_silence(
    server: Server, tmp_path: Path
) -> None:
    with Relay(tmp_path / "relay", server.path) as relay, shell(relay.address, "contested") as first:
        relay.cut()
        first.wait_for(rb"connection lost")
        with sitting(server.address, "shell", "contested", columns=60, rows=20) as second:
            second.wait_for(PROMPT)
            relay.mend()
            first.wait_for(rb"somebody else has taken this shell over meanwhile")
            first.type("stty size\r")
            second.wait_for(rb"20 60\r\n" + PROMPT)
            second.type("exit 5\r")
            assert (first.end(), second.end()) == (5, 5)


def test_a_shell_that_ended_meanwhile_tells_its_end(server: Server, tmp_path: Path) -> None:
    with Relay(tmp_path / "relay", server.path) as relay, shell(relay.address, "gone") as tty:
        relay.cut()
        tty.wait_for(rb"connection lost")
        end(server, "gone")
        relay.mend()
        status = tty.end()
        assert status in (129, 137)
        assert tty.is_as_it_was
        tty.wait_for(rb"\[shell gone ended: SIG\w+; ended by kill\]")


def test_a_guest_that_was_started_anew_has_no_such_shell_and_that_is_final(tmp_path: Path) -> None:
    with (
        serving() as old,
        Relay(tmp_path / "relay", old.path) as relay,
        shell(relay.address, "before") as tty,
    ):
        relay.cut()
        tty.wait_for(rb"connection lost")
        with serving() as new:
            relay._target = new.path
            relay.mend()
            assert tty.end() == 125
            assert b"shell 'before' is gone: the guest was started anew" in tty.seen
            assert tty.is_as_it_was
        end(old, "before")


# ----------------------------------------------------------------------------------------------- much that is typed


def test_a_paste_of_a_megabyte_arrives_whole(server: Server) -> None:
    program = "stty raw -echo; echo ready; head -c 1000000 | md5sum; stty sane"
    text = b"".join(b"%d bottles of beer\r" % number for number in range(60_000))[:1_000_000]
    with sitting(server.address, "exec", "-it", program) as tty:
        tty.wait_for(rb"ready")
        tty.type(text)
        tty.wait_for(hashlib.md5(text).hexdigest())
        assert tty.end() == 0


def test_a_program_that_does_not_read_is_told_of_and_can_be_left(server: Server) -> None:
    with sitting(
        server.address, "exec", "--it", "--id", "deaf", "stty raw -echo; echo ready; exec sleep 1000"
    ) as tty:
        tty.wait_for(rb"ready")
        # More than fits on the way; the key that leaves is found behind it.
        tty.type(b"x" * 1_000_000)
        tty.wait_for(rb"the program does not read what is typed; \d+ bytes wait for it")
        tty.type(LEAVE)
        assert tty.end() == 0
        assert tty.is_as_it_was
        tty.wait_for(rb"\[the last \d+ bytes that were typed were not taken, and not sent\]")
        end(server, "deaf")


# --------------------------------------------------------------------------------------------------------------- exec


def test_exec_with_a_terminal_is_the_same_door(server: Server) -> None:
    with sitting(server.address, "exec", "-it", "--", "sh", "-c", "tty; read x; echo got $x; exit 6") as tty:
        tty.wait_for(rb"/dev/pts/\d+")
        tty.type("this\r")
        tty.wait_for(rb"got this\r\n")
        assert tty.end() == 6
        assert b"ended" not in tty.seen
    with sitting(server.address, "exec", "--it", "--id", "door", "echo ready; exec cat") as tty:
        tty.wait_for(rb"ready")
        tty.type(LEAVE)
        assert tty.end() == 0
        tty.wait_for(rb"\[detached; guestctl shell door resumes\]")
    assert job(server, "door")["kind"] == "shell"
    end(server, "door")


def test_exec_on_a_terminal_without_input_needs_none_here(server: Server) -> None:
    done = guestctl(server.address, "exec", "-t", "--", "sh", "-c", "test -t 1 && echo yes; exit 3")
    assert (done.returncode, done.stdout) == (3, b"yes\r\n"), done
    process = subprocess.Popen(
        command("exec", "-t", "echo ready; exec sleep 1000"), env=environment(GUESTD_TO=server.address),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\r\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


# -------------------------------------------------------------------------------------------- backpressure, questions


def test_a_terminal_that_takes_nothing_holds_the_program_and_interrupts_get_through(server: Server) -> None:
    with shell(server.address, "flood") as tty:
        tty.type("while :; do echo all work and no play; done\r")
        tty.wait_for(rb"no play\r\nall")
        # Nobody reads now: what is printed stops, wherever it is kept on its way.
        ends = [0]

        def still() -> bool:
            ends.append(job_end(server, "flood"))
            return ends[-1] == ends[-2] > 0

        while not still():
            pass
        assert ends[-1] < 2 * 1024 * 1024
        tty.type(b"\x03")
        tty.wait_for(PROMPT)
        tty.type("exit 2\r")
        assert tty.end() == 2


def job_end(server: Server, id: str) -> int:
    return int(job(server, id)["streams"]["terminal"]["end"])


def test_old_questions_are_not_answered_again(server: Server) -> None:
    with shell(server.address, "asked") as tty:
        tty.type("printf 'who\\033[c\\033[6n\\033]11;?\\a.\\n'\r")
        tty.wait_for(rb"who\x1b\[c\x1b\[6n\x1b\]11;\?\x07\.")
        tty.type(LEAVE)
        tty.end()
    with sitting(server.address, "attach", "asked", "-i") as tty:
        assert b"\x1b[c" not in tty.wait_for(rb"who.*\.\r*\n")[0]
        tty.process.kill()
    # For a pipe it is what was printed, byte for byte.
    end(server, "asked")
    assert b"who\x1b[c\x1b[6n\x1b]11;?\x07." in guestctl(server.address, "attach", "asked").stdout


# --------------------------------------------------------------------------------------------------- attach, ps, record


def test_attach_shows_the_raw_output_and_sends_nothing(server: Server) -> None:
    with shell(server.address, "raw") as tty:
        process = subprocess.Popen(
            command("attach", "raw"), env=environment(GUESTD_TO=server.address), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            assert os.read(process.stdout.fileno(), 7) == b"ready$ "
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        tty.type("echo 0123456789; exit 3\r")
        assert tty.end() == 3
    whole = guestctl(server.address, "attach", "raw")
    assert whole.returncode == 3
    assert whole.stdout.startswith(b"ready$ echo 0123456789; exit 3\r\n0123456789\r\n")
    for start in ("5", "terminal=5"):
        assert guestctl(server.address, "attach", "raw", "--from", start).stdout == whole.stdout[5:]


def test_commands_are_listed_and_shown_alone(server: Server) -> None:
    with sitting(server.address, "shell", "marked", "--", "bash", "--norc", "-i") as tty:
        # Without the line editor, whose own sequences come before and after each command.
        marks = "set +o emacs; PS0='\\e]133;C;\\a'; PS1='\\[\\e]133;D;$?\\a\\e]133;A\\a\\]ok> \\[\\e]133;B\\a\\]'\r"
        tty.type(marks)
        tty.wait_for(rb"\x07ok> ")
        tty.type("echo alone; (exit 9)\r")
        tty.wait_for(rb"alone\r\n.*ok> ")
        found = json.loads(guestctl(server.address, "--json", "ps", "marked", "--commands").stdout)[
            "commands"
        ]
        assert [each["exit"] for each in found] == [9]
        table = guestctl(server.address, "ps", "marked", "--commands").stdout.decode().splitlines()
        assert table[0].split() == ["N", "WHEN", "LONG", "EXIT", "OUTPUT", "COMMAND"]
        done = guestctl(server.address, "attach", "marked", "--command", str(found[0]["n"]))
        assert (done.returncode, done.stdout) == (9, b"alone\r\n"), done
        missing = guestctl(server.address, "attach", "marked", "--command", "77")
        assert missing.returncode == 125
        assert b"--commands" in missing.stderr
        tty.type("exit\r")
        tty.end()


def test_ps_shows_a_shell_as_what_it_is(server: Server) -> None:
    with shell(server.address, "shown") as tty:
        tty.type("sleep 1000\r")
        tty.wait_until(lambda: foreground(server, "shown") == "sleep")
        tables = guestctl(server.address, "ps").stdout.decode().split("\n\n")
        header, *rows = tables[-1].splitlines()
        assert header.split() == [
            "ID",
            "KIND",
            "STATE",
            "PID",
            "USER",
            "AGE",
            "IDLE",
            "SIZE",
            "ATTACHED",
            "OUTPUT",
            "RUNNING",
        ]
        (row,) = (row.split() for row in rows if row.startswith("shown "))
        assert (row[1], row[2], row[7], row[8], row[10:]) == (
            "shell",
            "running",
            "80x24",
            "owner",
            ["sleep", "1000"],
        )
        details = guestctl(server.address, "ps", "shown").stdout.decode()
        assert re.search(r"^attached +owner: ", details, re.MULTILINE)
        assert re.search(r"^size +80x24$", details, re.MULTILINE)
        tty.type(b"\x03")
        tty.wait_for(PROMPT)
        tty.type("exit\r")
        tty.end()
    assert guestctl(server.address, "ps", "no-such").returncode == 125


def test_a_recording_plays_what_was_shown(server: Server, tmp_path: Path) -> None:
    with shell(server.address, "filmed", columns=70, rows=20) as tty:
        tty.type("printf 'old \\303\\251\\n'\r")
        tty.wait_for(rb"old \xc3\xa9\r\n" + PROMPT)
        cast = tmp_path / "out.cast"
        process = subprocess.Popen(
            command("record", "filmed", str(cast)), env=environment(GUESTD_TO=server.address, TERM="vt220")
        )
        with process:
            tty.wait_until(lambda: cast.exists() and cast.read_text().count("\n") > 1)
            tty.resize(90, 25)
            tty.wait_until(lambda: '"r", "90x25"' in cast.read_text())
            tty.type("printf '\\303'; printf '\\251\\377'; exit\r")
            assert tty.end() == 0
            assert process.wait(PATIENCE) == 0
    header, *events = (json.loads(line) for line in cast.read_text().splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 70, 20)
    assert header["env"] == {"TERM": "vt220"}
    played = "".join(text for _, kind, text in events if kind == "o")
    assert played.encode() == guestctl(server.address, "attach", "filmed").stdout.replace(
        b"\xff", "\ufffd".encode()
    )
    times = [at for at, _, _ in events]
    assert times == sorted(times)
    assert "old é" in "".join(text for at, kind, text in events if kind == "o" and at == 0)
    assert [text for _, kind, text in events if kind == "r"] == ["90x25"]
    assert times[-1] > 0
    again = guestctl(server.address, "record", "filmed", str(cast))
    assert again.returncode == 125
    assert b"is there already" in again.stderr
    with (
        shell(server.address, "cut"),
        subprocess.Popen(
            command("record", "cut", "-"), env=environment(GUESTD_TO=server.address), stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["version"] == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    end(server, "cut")
    piped = guestctl(server.address, "record", "filmed", "-")
    assert piped.returncode == 0
    assert json.loads(piped.stdout.splitlines()[0])["version"] == 2
