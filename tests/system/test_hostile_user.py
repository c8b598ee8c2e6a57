"""What runs in the guest as somebody else cannot end, trace, slow down or drive the supervisor.

This is why no thread of the supervisor ever takes a user's id: whoever may signal one thread may end the process.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.commands import NOBODY, run, serving_commands
from tests.support.peer import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.peer import Peer
    from tests.support.server import Server

#: Becomes nobody when all is imported (the interpreter may lie where nobody cannot read), and then does what it can to
#: every thread of every process it was told, until its input ends. Prints what succeeded.
ATTACK = """
import ctypes, errno, json, os, resource, select, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
tgkill, ptrace_attach, ptrace_seize = int(sys.argv[1]), 16, 0x4206
victims = [int(word) for word in sys.argv[2:]]
if os.getuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
succeeded, tried, threads = set(), 0, set()

def failed(what, call, *args):
    global tried
    tried += 1
    try:
        result = call(*args)
    except OSError as error:
        result, number = -1, error.errno
    else:
        number = ctypes.get_errno()
    if result not in (-1,) or number not in (errno.EPERM, errno.EACCES, errno.ESRCH, errno.ENOENT):
        succeeded.add(f"{what}: {result} {errno.errorcode.get(number)}")

def opened(path, flags):
    fd = os.open(path, flags)
    os.close(fd)
    return 0

def renice(tid):
    os.setpriority(os.PRIO_PROCESS, tid, 19)

def limit(tid):
    resource.prlimit(tid, resource.RLIMIT_CPU, (1, 1))

def schedule(tid):
    os.sched_setaffinity(tid, {min(os.sched_getaffinity(0))})

def attack(pid):
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return
    for tid in tids:
        threads.add(tid)
        for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, 33):
            failed(f"kill {number}", os.kill, tid, number)
            failed(f"tgkill {number}", libc.syscall, tgkill, pid, tid, number)
        failed("attach", libc.ptrace, ptrace_attach, tid, 0, 0)
        failed("seize", libc.ptrace, ptrace_seize, tid, 0, 0)
        failed("renice", renice, tid)
        failed("prlimit", limit, tid)
        failed("affinity", schedule, tid)
        for name, flags in (("mem", os.O_RDWR), ("environ", os.O_RDONLY), ("oom_score_adj", os.O_WRONLY)):
            failed(name, opened, f"/proc/{pid}/task/{tid}/{name}", flags)
        for name in ("fd/0", "fd/3", "fd/4", "fd/5", "root/etc/passwd", "cwd/etc/passwd"):
            failed(name, opened, f"/proc/{pid}/task/{tid}/{name}", os.O_RDONLY)
        failed("own session", os.kill, -pid, signal.SIGKILL)

print("ready", flush=True)
while True:
    for pid in victims:
        attack(pid)
    if select.select([sys.stdin], [], [], 0)[0]:
        break
print(json.dumps({"succeeded": sorted(succeeded), "tried": tried, "threads": len(threads)}))
"""
_TGKILL = {"x86_64": 234, "aarch64": 131, "riscv64": 131}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, Peer]]:
    with serving_commands() as served:
        yield served


def attack(served: tuple[Server, Peer], *extra: int, **fields: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """An attack under way on the supervisor and its launcher, by a command of the guest; and how to end it."""
    server, peer = served
    victims = [server.pid, peer.ask("status")["processes"]["launcher"], *extra]
    words = [sys.executable, "-c", ATTACK, str(_TGKILL[os.uname().machine]), *map(str, victims)]
    call = peer.open("exec", argv=words, stdin="stream", **fields)
    call.lines(1)

    def told() -> dict[str, Any]:
        call.event(event="eof", offset=0)
        result = call.end()
        assert result["code"] == 0, (result, call.stderr)
        found: dict[str, Any] = json.loads(call.stdout.splitlines()[1])
        return found

    return call, told


def test_the_attack_is_one_that_works_on_what_is_its_own(served: tuple[Server, Peer]) -> None:
    """Or the tests below would prove nothing: the same program does all of it to a process of the same user."""
    _, peer = served
    own = peer.open("exec", argv=["sleep", "1000"], user=NOBODY)
    pid = own.accepted()["pid"]
    with Watched(pid) as process:
        _, told = attack(served, pid)
        process.wait()
        assert any(what.startswith("kill 15: None") for what in told()["succeeded"])
    assert own.end()["signal_name"] == "SIGTERM"


def test_nobody_can_do_nothing_to_the_supervisor_while_it_starts_nobodys_commands(
    served: tuple[Server, Peer],
) -> None:
    """All the while commands of that user, of root and of numbers without a name are being started, each way."""
    server, peer = served
    launcher = peer.ask("status")["processes"]["launcher"]
    _, told = attack(served)
    for n in range(60):
        calls = [
            peer.open("exec", argv=["true"], **fields)
            for fields in (
                {"user": NOBODY},
                {},
                {"user": NOBODY, "nice": 5},
                {"user": 31337},
                {"umask": n % 8},
            )
        ]
        assert [call.end()["code"] for call in calls] == [0] * len(calls)
    found = told()
    assert found["succeeded"] == []
    assert found["threads"] >= 2
    assert found["tried"] >= 100
    with Watched(server.pid) as supervisor, Watched(launcher) as other:
        assert supervisor.lives
        assert other.lives
    assert peer.ask("status")["processes"]["launcher"] == launcher


def test_no_thread_of_the_supervisor_is_ever_anybody_but_itself(served: tuple[Server, Peer]) -> None:
    """While nobody's commands are being started, with every way in use, as seen by somebody who may see everything."""
    server, peer = served
    seen = set[str]()
    for _ in range(20):
        calls = [peer.open("exec", argv=["true"], user=NOBODY) for _ in range(5)]
        for thread in os.listdir(f"/proc/{server.pid}/task"):
            with open(f"/proc/{server.pid}/task/{thread}/status") as file:
                seen |= {line.strip() for line in file if line.startswith(("Uid", "Gid"))}
        for call in calls:
            assert call.end()["code"] == 0
    assert seen == {"Uid:\t0\t0\t0\t0", "Gid:\t0\t0\t0\t0"}


def test_nobody_cannot_connect(served: tuple[Server, Peer]) -> None:
    """Neither to the socket, whose folder is root's here, nor to one in a folder that everybody can reach."""
    with serving_commands() as (server, peer):
        server.directory.chmod(0o755)
        program = (
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX)\n"
            "os.setresuid(65534, 65534, 65534)\n"
            "try: s.connect(sys.argv[1])\nexcept PermissionError: print('refused')"
        )
        assert run(peer, sys.executable, "-c", program, server.path).text == "refused"
        assert os.stat(server.path).st_mode & 0o777 == 0o600
