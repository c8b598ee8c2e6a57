"""The socket for the guest's own programs: anybody may connect, nobody can drive the supervisor through it or take what
the host needs, and what keeps the session awake is told apart by who does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import guestd
from guestd.client import connect
from guestd.wire.frames import PREFACE, Kind, encode
from guestd.wire.messages import pack
from tests.support.init import booted
from tests.support.life import Follower, serving
from tests.support.peer import Failed, Peer, Refused
from tests.support.survivor import surviving

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.support.server import Server

NOBODY, SOMEBODY = 65534, 12345
PATIENCE = 30.0
PACKAGES = str(Path(guestd.__file__).parents[1])


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        os.chmod(running.directory, 0o755)
        yield running


def _inside(server: Server) -> str:
    return f"unix:{server.directory}/agent.sock"


@contextlib.contextmanager
def _as(uid: int) -> Generator[None]:
    """The kernel tells who connects, not who talks later."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _guest(server: Server, uid: int = NOBODY) -> Peer:
    with _as(uid):
        return Peer(_inside(server))


def _rejected(peer: Peer, op: str, **fields: object) -> dict[str, Any]:
    call = peer.open(op, **fields)
    with pytest.raises(Failed) as failed:
        call.end()
    assert failed.value.kind is Kind.REJECT
    return failed.value.fields


#: Becomes another user when all is imported (the interpreter may lie where others cannot read), and is guestctl then.
CTL = """
import os, sys
import guestd.ctl.lifecycle, guestd.ctl.queries, guestd.ctl.parser
from guestd.ctl.main import main
uid = int(sys.argv[1])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
sys.exit(main(sys.argv[2:]))
"""


def _ctl(*words: str, uid: int = NOBODY) -> list[str]:
    return [sys.executable, "-c", CTL, str(uid), *words]


def _environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGES, "PYTHONWARNINGS": "error", **more}


def _busy(peer: Peer) -> list[str]:
    return list(peer.ask("status")["activity"]["busy"])


# ------------------------------------------------------------------------------------------- who may do what


def test_any_user_may_connect_and_drives_nothing(server: Server) -> None:
    with Peer(server.address) as host, _guest(server) as guest:
        assert stat.S_IMODE(os.stat(f"{server.directory}/agent.sock").st_mode) == 0o666
        before = host.ask("status")
        for op in (
            "exec",
            "shell",
            "attach",
            "kill",
            "ps",
            "wait",
            "stop",
            "timers",
            "resume",
            "upgrade",
            "commands",
        ):
            refused = _rejected(guest, op, argv=["true"], id="x")
            assert refused["code"] == "unsupported"
            assert refused["message"].endswith("there are: busy, events, status")
        after = host.ask("status")
        assert (after["jobs"], after["stopping"], after["activity"]["idle_timeout"]) == (
            before["jobs"], None, before["activity"]["idle_timeout"],
        )  # fmt: skip
        assert (after["connections"], after["guests"]) == (1, 1)
        # What is refused has not used the session either.
        assert after["activity"]["last"] == before["activity"]["last"]


def test_status_says_who_holds(server: Server) -> None:
    with Peer(server.address) as host, _guest(server) as guest:
        pid = os.getpid()
        assert guest.ask("busy", **{"for": 600, "by": "make"}) == {
            "by": f"uid {NOBODY} pid {pid} (make)",
            "for": 600,
        }
        held = guest.open("busy", by="a build")
        held.accepted()
        assert _busy(host) == [
            f"hold uid {NOBODY} pid {pid} (make)",
            f"hold uid {NOBODY} pid {pid} (a build)",
        ]
        guest.close()
        while len(_busy(host)) > 1:
            pass
        assert _busy(host) == [f"hold uid {NOBODY} pid {pid} (make)"], (
            "one was held, the other was for a time"
        )


def test_a_guest_is_told_what_keeps_the_session_awake_but_not_what_others_do(server: Server) -> None:
    with Peer(server.address) as host, _guest(server) as guest, _guest(server, SOMEBODY) as other:
        host.open("exec", argv=["sleep", "1000"], id="secret-name").accepted()
        other.ask("busy", **{"for": 600, "by": "of another user"})
        guest.ask("busy", **{"for": 500})
        found = guest.ask("status")
        assert found["you"] == {"uid": NOBODY, "pid": os.getpid()}
        assert found["activity"]["busy"] == ["hold", "command"]
        assert found["activity"]["stops_for"] == "lifetime"
        (lease,) = found["leases"]
        assert lease["by"] == f"uid {NOBODY} pid {os.getpid()}"
        assert 400 < lease["left"] <= 500
        assert "secret-name" not in repr(found)
        assert "of another user" not in repr(found)
        host.ask("kill", id="secret-name")


def test_a_guest_hears_of_the_end_and_not_of_the_hosts_affairs(server: Server) -> None:
    with Peer(server.address) as host, _guest(server) as guest:
        follower = Follower(guest)
        host.ask("timers", idle_timeout=60.0)
        stopping = host.open("stop", by="a secret")
        event = follower.until("stopping")
        assert event["cause"] == "asked"
        assert "a secret" not in repr(event)
        stopping.end()
        assert {each["event"] for each in follower.seen} <= {"stopping", "idle_soon", "active"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"for": 24 * 3600 + 1}, "for"),
        ({"for": -1}, "for"),
        ({"by": "x" * 65}, "by"),
        ({"by": "a name \x1b[2J that clears your screen"}, "by"),
    ],
)
def test_what_a_lease_cannot_be(server: Server, fields: dict[str, Any], field: str) -> None:
    with _guest(server) as guest:
        refused = _rejected(guest, "busy", **fields)
        assert (refused["code"], refused["field"]) == ("bad_request", field)


# ------------------------------------------------------------------------------------------- what it may cost


def test_one_users_connections_and_leases_are_bounded_and_nobody_elses_are_touched() -> None:
    config = "[limits]\nconnections = 2\n[agent]\nuser_connections = 3\nconnections = 4\nleases = 2\n"
    with serving(config=config) as server, contextlib.ExitStack() as stack:
        os.chmod(server.directory, 0o755)
        greedy = [stack.enter_context(_guest(server)) for _ in range(3)]
        with pytest.raises(Refused, match="3 connections of user 65534 are open") as refused:
            _guest(server)
        assert "agent.user_connections" in refused.value.message
        for number in range(2):
            greedy[number].ask("busy", **{"for": 600, "by": str(number)})
        refusal = _rejected(greedy[2], "busy")
        assert (refusal["code"], refusal["setting"]) == ("limit", "agent.leases")
        # Taken again under its name it is the same one.
        assert greedy[2].ask("busy", **{"for": 700, "by": "1"})["for"] == 700
        other = stack.enter_context(_guest(server, SOMEBODY))
        assert other.ask("busy", **{"for": 60})["for"] == 60
        with pytest.raises(Refused, match="4 connections are open"):
            _guest(server, 4321)
        # The host has its own.
        hosts = [stack.enter_context(Peer(server.address)) for _ in range(2)]
        assert hosts[1].ask("status")["guests"] == 4
        greedy[0].close()
        while hosts[0].ask("status")["guests"] == 4:
            pass
        stack.enter_context(_guest(server))


ABUSE = """
import os, socket, sys
path, flood = sys.argv[1], sys.stdin.buffer.read()
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
kept = []
print("begun", flush=True)
while True:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(0.05)
    try:
        sock.connect(path)
        while True:
            sock.sendall(flood)
    except OSError:
        pass
    # Never read from, and never closed, as far as there is room.
    kept.append(sock)
    if len(kept) > 500:
        kept.pop(0).close()
"""


def test_guests_are_heeded_at_a_rate_and_the_host_is_not(server: Server) -> None:
    with Peer(server.address) as host, _guest(server) as guest:
        begun = time.monotonic()
        calls = [guest.open("status") for _ in range(400)]
        assert host.ask("exec", argv=["true"])["code"] == 0
        assert calls[300].final is None
        for call in calls:
            call.end()
        # A hundred at once, and 200 a second from there on.
        assert time.monotonic() - begun > 1.4


def test_a_program_that_does_all_it_can_costs_a_bounded_amount(server: Server) -> None:
    """Hundreds of connections that never read, requests as fast as they can be sent: the host notices nothing."""
    hello = PREFACE + encode(Kind.HELLO, 0, pack({"version": 1, "agent": "abuse"}))
    flood = b"".join(
        encode(Kind.OPEN, 2 * number + 1, pack({"op": op, "by": "x" * 60, "follow": True}))
        for number, op in enumerate(["busy", "events", "status", "exec"] * 250)
    )
    with Peer(server.address) as host:
        before = host.ask("status")["memory"]["rss"]
        argv = [sys.executable, "-c", ABUSE, f"{server.directory}/agent.sock"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as abuser:
            try:
                assert abuser.stdin is not None
                assert abuser.stdout is not None
                abuser.stdin.write(hello + flood)
                abuser.stdin.close()
                assert abuser.stdout.readline() == b"begun\n"
                while host.ask("status")["guests"] < 16:
                    pass
                for number in range(200):
                    assert host.ask("exec", argv=["sh", "-c", f"exit {number % 100}"])["code"] == number % 100
                found = host.ask("status")
                assert found["guests"] <= 16
                assert len(found["activity"]["busy"]) <= 64
                with Peer(server.address) as another:
                    another.ask("status")
                # 16 connections: what was sent is read in small pieces, and what waits to be sent is bounded.
                assert found["memory"]["rss"] - before < 24 * 1024 * 1024
                assert len(os.listdir(f"/proc/{server.pid}/fd")) < 100
            finally:
                abuser.kill()
        while (found := host.ask("status"))["guests"]:
            pass
        assert not [why for why in found["activity"]["busy"] if why.startswith("hold")], (
            "what was held has ended"
        )
        # Each renewal is heeded, and few are recorded: the log is for what others do as well.
        with _guest(server) as guest:
            for _ in range(40):
                guest.ask("busy", **{"for": 1, "by": "again"})
        log = host.open("audit")
        log.end()
        recorded = [each for each in log.events if '"who":"guest uid' in str(each.get("line"))]
        assert 1 <= len(recorded) < 40
    assert server.log.count("\n") < 100


def test_nonsense_and_silence_are_dropped(server: Server) -> None:
    for nonsense in (b"GET /ping HTTP/1.1\r\n\r\n", PREFACE + b"\xff" * 64, encode(Kind.OPEN, 1, b"\x80")):
        with socket.socket(socket.AF_UNIX) as sock, _as(NOBODY):
            sock.settimeout(PATIENCE)
            sock.connect(f"{server.directory}/agent.sock")
            sock.sendall(nonsense)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
    with Peer(server.address) as host:
        assert host.ask("status")["guests"] == 0


# ------------------------------------------------------------------------------------------- guestctl in the guest


def test_guestctl_busy_just_works_for_any_user_in_a_job(server: Server) -> None:
    with Peer(server.address) as host:
        job = host.ask("exec", argv=_ctl("busy", "--for", "10m"), env={"PYTHONPATH": PACKAGES})
        assert (job["outcome"], job["code"]) == ("exited", 0)
        (why,) = _busy(host)
        assert why.startswith(f"hold uid {NOBODY} pid ")


def test_guestctl_falls_back_to_the_socket_that_is_this_users_to_open(server: Server) -> None:
    env = _environment(GUESTD_JOB_SOCKET=_inside(server))

    def guestctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            _ctl(*words), env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    read, write = os.pipe()
    with os.fdopen(read, "rb"), os.fdopen(write, "wb") as gate, Peer(server.address) as host:
        line = "read x; exit $x"
        with subprocess.Popen(_ctl("busy", "--", "sh", "-c", line), env=env, stdin=read) as holder:
            while not _busy(host):
                pass
            assert _busy(host)[0].endswith("(guestctl busy -- sh)")
            found = json.loads(guestctl("--json", "status").stdout)
            assert found["activity"]["busy"] == ["hold"]
            assert [lease["left"] for lease in found["leases"]] == [None]
            gate.write(b"7\n")
            gate.flush()
            assert holder.wait(PATIENCE) == 7
        while _busy(host):
            pass
    # What is seen may be a second old.
    while "idle for" not in (shown := guestctl("status").stdout):
        pass
    assert "asked as user 65534 from inside the guest" in shown
    assert guestctl("events", "--last", "1").returncode == 0
    # Everything else is not for them.
    refused = guestctl("ps")
    assert refused.returncode == 125
    assert "cannot reach" in refused.stderr


# ------------------------------------------------------------------------------------------- where it comes from


def test_it_can_be_switched_off() -> None:
    with serving(config="[agent]\nsocket = false\n") as server:
        assert not os.path.exists(f"{server.directory}/agent.sock")
        with Peer(server.address) as host:
            assert host.ask("exec", shell="echo ${GUESTD_JOB_SOCKET-none}")["code"] == 0


GIVE = """
import os, sys
given = sys.argv[1].split(",")
for at, fd in enumerate(given):
    os.dup2(int(fd), 3 + at)
os.environ.update(LISTEN_FDS=str(len(given)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize("on", [True, False])
def test_a_service_manager_may_open_it(tmp_path: Path, on: bool) -> None:
    with contextlib.ExitStack() as stack:
        socks: list[socket.socket] = []
        for name in ("host", "inside"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(tmp_path / name))
            sock.listen()
            socks.append(sock)
        fds = [stack.enter_context(_high(sock)) for sock in socks]
        names = "guestd.socket:agent"
        prefix = [sys.executable, "-c", GIVE, ",".join(map(str, fds)), names]
        config = f"[agent]\nsocket = {'true' if on else 'false'}\n"
        server = stack.enter_context(serving(config=config, prefix=prefix, pass_fds=fds))
        assert not os.path.exists(f"{server.directory}/agent.sock")
        host = stack.enter_context(Peer(f"unix:{tmp_path}/host"))
        host.ask("exec", argv=["true"])
        if on:
            guest = stack.enter_context(Peer(f"unix:{tmp_path}/inside"))
            assert _rejected(guest, "exec", argv=["true"])["code"] == "unsupported"
        else:
            with pytest.raises(Refused, match="switched off"):
                Peer(f"unix:{tmp_path}/inside")


@contextlib.contextmanager
def _high(sock: socket.socket) -> Generator[int]:
    """Its number well above those that it is to be handed over as."""
    import fcntl

    fd = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 50)
    try:
        yield fd
    finally:
        os.close(fd)


def test_init_opens_it_before_serve_is_there_and_passes_it_by_name() -> None:
    with booted(agent=True) as guest:
        assert guest.run("answer = NAMES") == ["listen", "agent", "init"]
        assert stat.S_IMODE(os.stat(guest.directory / "agent.sock").st_mode) == 0o666
        assert guest.run("answer = socket.socket(fileno=descriptors('agent')[0]).getsockname()").endswith(
            "agent.sock"
        )
        assert guest.stop() == 0
    assert not (guest.directory / "agent.sock").exists()


# ------------------------------------------------------------------------------------------- the supervisor dies


async def test_a_lease_survives_the_supervisor_and_a_holder_comes_back() -> None:
    with surviving("[init]\nrestart_delay = '10ms'\n") as survivor:
        os.chmod(survivor.directory, 0o755)
        inside = f"unix:{survivor.directory}/agent.sock"
        await survivor.ask()
        async with connect(inside) as guest:
            await guest.busy_for(500.0, "a lease")
        holder = await trio.lowlevel.open_process(
            _ctl("busy", "--by", "a holder"), env=_environment(GUESTD_TO=inside), stdout=subprocess.PIPE,
        )  # fmt: skip
        assert holder.stdout is not None
        try:
            assert await holder.stdout.receive_some() == b"busy until Ctrl+C\n"
            for replace in (survivor.kill_serve, survivor.upgrade):
                generation = await replace()
                found = await survivor.next_after(generation)
                assert [why for why in found["activity"]["busy"] if "(a lease)" in why], found
                with trio.fail_after(PATIENCE):
                    while not [why for why in found["activity"]["busy"] if "(a holder)" in why]:
                        found = await survivor.ask()
            assert holder.returncode is None
            holder.send_signal(signal.SIGINT)
            assert await holder.wait() == 0
        finally:
            holder.kill()
            await holder.wait()
            await holder.stdout.aclose()
