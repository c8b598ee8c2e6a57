"""Only the host gets in: who may connect, by which way, and what whoever may not is told, there and in the log."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, cast

import pytest

from guestd.config import resolve
from guestd.errors import Forbidden
from guestd.transport.access import Access
from tests.support.peer import Peer, Raw, Refused
from tests.support.server import Server, free_port, serving

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

NOBODY = 65534
TOKEN = "a-token-of-the-tests"
DIALECTS = ("native", "websocket")

#: Connects as somebody else and prints what it hears until the end.
KNOCK = """
import os, socket, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(sys.argv[1])
except OSError as error:
    sys.exit(error.strerror)
sock.sendall(bytes.fromhex(sys.argv[2]))
while data := sock.recv(65536):
    sys.stdout.buffer.write(data)
    if len(sys.argv) > 3:
        break
"""

#: Puts descriptors where a service manager puts them, and executes what follows.
ACTIVATE = """
import fcntl, os, sys
given = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
for at, fd in enumerate(given):
    os.dup2(fd, 3 + at)
os.closerange(3 + len(given), 1024)
os.environ.update(LISTEN_FDS=str(len(given)), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def _knock(path: str, say: bytes, *more: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", "-c", KNOCK, path, say.hex(), *more]
    return subprocess.run(command, capture_output=True, check=False, timeout=30)


def _hello() -> bytes:
    from guestd.wire.frames import PREFACE, Kind, encode
    from guestd.wire.messages import pack

    return PREFACE + encode(Kind.HELLO, 0, pack({"version": 1, "agent": "knock"}))


@contextlib.contextmanager
def _refusing(*listen: str, config: str = "") -> Generator[str]:
    """What guestd says when it does not start."""
    with pytest.raises(AssertionError) as failed, serving(*listen, config=config):
        pass
    text = str(failed.value)
    assert "guestd ended with" in text
    assert "Traceback" not in text
    yield text


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


# ---------------------------------------------------------------------------------------------------------------- unix


def test_the_unix_socket_is_its_owners_alone(server: Server) -> None:
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
    os.chmod(server.directory, 0o755)
    knocked = _knock(server.path, _hello())
    assert knocked.stderr.decode().strip() == "Permission denied"


def test_whoever_gets_past_the_mode_is_asked_who_it_is(server: Server) -> None:
    os.chmod(server.directory, 0o755)
    os.chmod(server.path, 0o666)
    knocked = _knock(server.path, _hello())
    assert b"forbidden" in knocked.stdout
    assert f"unix uid {NOBODY}" in server.log
    assert f"refused: uid {NOBODY} may not connect here; access.unix_uids lists who else may" in server.log
    with Peer(server.address) as peer:
        assert peer.ask("status")["connections"] == 1, "it was never a connection"


def test_a_user_that_the_settings_name_is_served() -> None:
    with serving(config=f"[access]\nunix_uids = [{NOBODY}]\n") as server:
        assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o666
        os.chmod(server.directory, 0o755)
        knocked = _knock(server.path, _hello(), "once")
        assert b"boot_id" in knocked.stdout
        with Peer(server.address) as peer:
            peer.ask("status")
    with serving(config="[access]\nunix_uids = [12345]\n") as server:
        os.chmod(server.directory, 0o755)
        assert b"forbidden" in _knock(server.path, _hello()).stdout
        assert f"uid {NOBODY} may not connect" in server.log


def test_a_socket_file_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    with serving() as first:
        path = first.path
        first.kill()
        assert os.path.exists(path), "killed, it could not take it away"
        with serving(f"unix:{path}") as second, Peer(second.address) as peer:
            assert peer.ask("status")["pid"] == second.pid
        assert not os.path.exists(path)


def test_a_socket_that_somebody_listens_on_is_left_alone(server: Server) -> None:
    with _refusing(server.address) as text:
        assert f"cannot listen on {server.address}: another process listens there" in text
        assert "is guestd running already?" in text
    with Peer(server.address) as peer:
        assert peer.ask("status")["pid"] == server.pid


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    with _refusing(f"unix:{file}") as text:
        assert f"cannot listen on unix:{file}: there is a file of that name that is no socket" in text
    assert file.read_text() == "mine"


# ----------------------------------------------------------------------------------------------------------------- tcp


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """On every address of the machine, with a token."""
    path = "/mnt/workspace/token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, f"{TOKEN}\n".encode())
    os.close(descriptor)
    try:
        with serving(f"tcp:0.0.0.0:{free_port()}", "unix:{}/s", config=f'token_file = "{path}"\n') as server:
            yield server
    finally:
        os.unlink(path)


def _local(server: Server) -> str:
    return server.addresses[0].replace("0.0.0.0", "127.0.0.1")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_on_the_loopback_no_token_is_asked_for(dialect: str) -> None:
    with serving(f"tcp:127.0.0.1:{free_port()}") as server, Peer(server.address, dialect=dialect) as peer:
        assert peer.ask("exec", argv=["true"])["code"] == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_beyond_the_loopback_guestd_does_not_listen_without_a_token(host: str) -> None:
    address = f"tcp:{host}:{free_port()}"
    with _refusing(address) as text:
        assert address in text
        assert "token_file" in text


def test_a_socket_that_was_handed_over_gets_no_exception() -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as listener,
        pytest.raises(AssertionError) as failed,
        _activated(listener),
    ):
        pass
    assert "token_file" in str(failed.value)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_right_token_opens(guarded: Server, dialect: str) -> None:
    with Peer(_local(guarded), dialect=dialect, token=TOKEN) as peer:
        assert peer.ask("exec", argv=["true"])["code"] == 0


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN + "\n", "ä" * 20])
def test_any_other_token_does_not(guarded: Server, dialect: str, token: str | None) -> None:
    with pytest.raises(Refused) as refused:
        Peer(_local(guarded), dialect=dialect, token=token)
    assert refused.value.code == "unauthorized"
    if dialect == "native":  # the peer is told first, and a WebSocket closes slowly
        assert "this listener wants a token" in guarded.log
    assert TOKEN not in refused.value.message + guarded.log


def test_a_start_that_rides_behind_a_wrong_token_is_not_run(guarded: Server, tmp_path: Path) -> None:
    """A client may send its first request right behind its hello."""
    from guestd.wire.frames import PREFACE, Kind, encode
    from guestd.wire.messages import pack

    hello = encode(Kind.HELLO, 0, pack({"version": 1, "agent": "test", "token": "wrong"}))
    start = encode(Kind.OPEN, 1, pack({"op": "exec", "argv": ["touch", str(tmp_path / "ran")]}))
    with Raw(_local(guarded)) as raw:
        raw.send(PREFACE + hello + start)
        assert raw.last_words()["code"] == "unauthorized"
    with Peer(guarded.addresses[1]) as peer:
        assert peer.ask("status")["jobs"]["started"] == 0 or not (tmp_path / "ran").exists()


def test_the_unix_socket_of_the_same_guestd_needs_no_token(guarded: Server) -> None:
    with Peer(guarded.addresses[1]) as peer:
        peer.ask("status")


@pytest.mark.parametrize(("content", "what"), [("short\n", "at least"), (None, "No such file")])
def test_a_token_that_is_none_is_refused_at_the_start(tmp_path: Path, content: str | None, what: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.touch(0o600)
        file.write_text(content)
    with _refusing(f"tcp:127.0.0.1:{free_port()}", config=f'token_file = "{file}"\n') as text:
        assert str(file) in text
        assert what in text


# --------------------------------------------------------------------------------------------------------------- vsock


def _loopback() -> str | None:
    """Why a process of this machine cannot reach another one over vsock here; None where it can."""
    try:
        with socket.socket(socket.AF_VSOCK) as listener, socket.socket(socket.AF_VSOCK) as caller:
            listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            listener.listen()
            # Without the loopback transport the kernel asks the host, who need not answer.
            caller.settimeout(1)
            caller.connect((1, listener.getsockname()[1]))
    except OSError as error:
        return f"the kernel has no vsock loopback transport (CONFIG_VSOCKETS_LOOPBACK): {error}"
    return None


@pytest.fixture(scope="module")
def _vsock() -> None:
    reason = _loopback()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.usefixtures("_vsock")
def test_over_vsock_a_process_of_the_guest_itself_is_refused() -> None:
    port = 20_000 + os.getpid() % 10_000
    with serving(f"vsock:any:{port}") as server, Raw(f"vsock:1:{port}") as raw:
        raw.send(_hello())
        assert raw.last_words()["code"] == "forbidden"
        assert "refused: CID 1 may not connect here; the host is 2 (access.vsock_cids)" in server.log


@pytest.mark.usefixtures("_vsock")
def test_over_vsock_a_cid_that_the_settings_name_is_served() -> None:
    port = 20_000 + os.getpid() % 10_000
    with (
        serving(f"vsock:any:{port}", config="[access]\nvsock_cids = [1, 2]\n"),
        Peer(f"vsock:1:{port}") as peer,
    ):
        assert peer.ask("exec", argv=["true"])["code"] == 0


@pytest.mark.parametrize(
    ("config", "cid", "admitted"),
    [("", 2, True), ("", 1, False), ("", 3, False), ("[access]\nvsock_cids = [1]", 1, True),
     ("[access]\nvsock_cids = [1]", 2, False), ("[access]\nvsock_cids = []", 2, False)],
)  # fmt: skip
def test_the_rule_for_cids_whatever_transport_there_is(config: str, cid: int, admitted: bool) -> None:
    """The same as above for machines whose kernel has no loopback: a socket of which only the peer's name matters."""

    class Vsock:
        family = socket.AF_VSOCK

        def getpeername(self) -> tuple[int, int]:
            return cid, 1023

    access = Access(resolve(file=config.encode()).checked())
    sock = cast("socket.socket", Vsock())
    assert access.describe(sock) == f"vsock cid {cid} port 1023"
    if admitted:
        access.check_peer(sock)
    else:
        with pytest.raises(Forbidden, match=f"CID {cid} may not connect"):
            access.check_peer(sock)


# --------------------------------------------------------------------------------------------------- socket activation


@contextlib.contextmanager
def _activated(*listeners: socket.socket) -> Generator[Server]:
    """As a service manager starts guestd when it has made the sockets: from descriptor 3 on, for this very process."""
    fds = [sock.fileno() for sock in listeners]
    prefix = [sys.executable, "-I", "-S", "-c", ACTIVATE, ",".join(map(str, fds))]
    with serving(prefix=prefix, pass_fds=fds) as server:
        yield server


def test_sockets_that_were_handed_over_are_served_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX) as first, socket.create_server(("127.0.0.1", 0)) as second:
        first.bind(str(path))
        first.listen()
        # Connected before there is anybody to accept: it waits in the backlog.
        with Raw(f"unix:{path}") as early:
            early.send(_hello())
            with _activated(first, second) as server:
                assert b"guestd" in early.sock.recv(65536)
                port = second.getsockname()[1]
                for address in (f"unix:{path}", f"tcp:127.0.0.1:{port}"):
                    with Peer(address) as peer:
                        assert peer.ask("status")["pid"] == server.pid
                        assert peer.ask("status")["listening"] == [f"unix:{path}", f"tcp:127.0.0.1:{port}"]
                        call = peer.open("exec", shell="env; ls -l /proc/self/fd")
                        call.end()
                        assert b"LISTEN" not in call.stdout, (
                            "what was between guestd and its manager stays there"
                        )
                        assert call.stdout.count(b"->") == 4, call.stdout
                assert not os.path.exists(server.path), (
                    "it was told where to listen, and listened nowhere else"
                )
        assert path.exists(), "it is the manager's to remove"


def test_sockets_that_were_handed_to_another_process_are_not_taken() -> None:
    with serving(environment={"LISTEN_FDS": "1", "LISTEN_PID": "1"}) as server, Peer(server.address) as peer:
        assert peer.ask("status")["listening"] == [server.address]


@pytest.mark.parametrize("origin", [b"", b"Origin: https://somewhere.example\r\n"])
def test_a_web_page_may_not_connect_where_no_token_is_asked_for(origin: bytes) -> None:
    """A browser opens a WebSocket to 127.0.0.1 for any page; only the Origin tells that it was a page."""
    port = free_port()
    with (
        serving(f"tcp:127.0.0.1:{port}"),
        socket.create_connection(("127.0.0.1", port), timeout=30) as sock,
    ):
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: guest\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" + origin + b"\r\n"
        )
        status = sock.recv(4096).split(b"\r\n")[0]
        assert status.split()[1] == (b"403" if origin else b"101")
