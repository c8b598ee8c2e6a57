"""Too much of everything, on a kernel of one's own: cgroup v2 is clean there, and memory really ends."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from guestd.wire.frames import Kind
from tests.support.peer import STREAMS

if TYPE_CHECKING:
    from tests.support.vm import Guest

TERMINAL = STREAMS["terminal"]
#: What a shell prints; what was typed has a parenthesis there.
ANSWER = re.compile(rb"(\d+)=\r\n")
#: Takes all the memory there is, a page at a time.
GREEDY = "held = []\nwhile True: held.append(bytearray(32 << 20))"


def test_a_command_that_takes_all_memory_is_told_so_and_nobody_else_suffers(guest: Guest) -> None:
    with guest.peer() as peer:
        pid = peer.ask("status")["pid"]
        bystander = peer.open(
            "exec", shell="while read x; do echo got $x; done", stdin="stream", id="bystander"
        )
        bystander.data(0, b"one\n")
        bystander.lines(1)
        greedy = peer.open("exec", argv=["/opt/guestd/bin/python", "-c", GREEDY], id="greedy")
        end = greedy.end()
        assert (end["outcome"], end["signal"]) == ("oom_killed", 9)
        found = peer.ask("status")
        assert found["pid"] == pid
        # It is the one that was there before, and works.
        bystander.data(4, b"two\n")
        assert bystander.lines(2) == ["got one", "got two"]
        peer.ask("kill", id="bystander")
    assert guest.run("cat /proc/1/comm") == "guestd"


def test_a_bomb_of_processes_is_gone_with_its_command(guest: Guest) -> None:
    bomb = "bomb() { bomb | bomb & }; ulimit -u 150 2>/dev/null; bomb 2>/dev/null; sleep 1000"
    with guest.peer() as peer:
        call = peer.open("exec", argv=["/bin/bash", "-c", bomb], user="nobody", timeout=3.0, grace=0.5)
        assert call.end()["outcome"] == "timed_out"
    assert guest.run("pgrep -u nobody | wc -l") == "0"


def test_fifty_shells(guest: Guest) -> None:
    with contextlib.ExitStack() as undo:
        peer = undo.enter_context(guest.peer())
        calls = [
            peer.open("shell", id=f"shell-{each}", argv=["/bin/sh"], cols=80, rows=24) for each in range(50)
        ]
        for call in calls:
            call.accepted()
        # Each has what was typed into it, and nothing of another's.
        for number, call in enumerate(calls):
            call.data(0, b"echo $((%d * 7))=\n" % number)
        for number, call in enumerate(calls):
            while not (answers := ANSWER.findall(bytes(call.output[TERMINAL]))):
                assert call.step().kind is not Kind.END, call.output
            assert answers == [b"%d" % (number * 7)]
        found = peer.ask("status")
        assert found["jobs"]["running"] >= 50
        for each in range(50):
            peer.ask("kill", id=f"shell-{each}", grace=0.5)
        for call in calls:
            call.end()
