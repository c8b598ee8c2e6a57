"""Shells of the AgentCore surface, frame by frame: every status and every close code in its case."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.agentcore import ARN, BARE_HOME, SESSION
from tests.support.peer import Peer
from tests.support.server import Server, serving
from tests.support.survivor import surviving

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from websockets.sync.client import ClientConnection

_websockets: Any = import_module("websockets.sync.client")
STDIN, STDOUT, STDERR, STATUS, RESIZE, HEARTBEAT, CLOSE = 0, 1, 2, 3, 4, 5, 0xFF
SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
QUIET = b"PS1=; stty -echo; echo re''ady\n"


@pytest.fixture(scope="module")
def lasting() -> Iterator[Server]:
    with serving(config=BARE_HOME) as server:
        with Peer(server.address) as peer:
            # Whoever starts programs on terminals is started with the first of them.
            peer.ask("exec", argv=["true"], user="root")
        yield server
        server.stop()
        assert "Traceback" not in server.log, server.log


@pytest.fixture
def guest(lasting: Server) -> Iterator[Server]:
    yield lasting
    with Peer(lasting.address) as peer:
        for job in peer.ask("ps")["jobs"]:
            if job["state"] != "ended":
                peer.ask("kill", id=job["id"])


class Shell:
    """One connection. `first` is the status that it began with."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seen = b""
        self.statuses: list[dict[str, Any]] = []
        self.others: list[bytes] = []
        self.first: dict[str, Any] = {}

    def begin(self) -> None:
        message = self.receive()
        assert message[0] == STATUS, "the first message is a status"
        self.first = self.statuses[0]

    def receive(self) -> bytes:
        message = self.connection.recv(timeout=30)
        assert isinstance(message, bytes)
        match message[0]:
            case 1:
                assert len(message) <= 65536
                self.seen += message[1:]
            case 3:
                self.statuses.append(json.loads(message[1:]))
            case _:
                self.others.append(message)
        return message

    def type(self, data: bytes) -> None:
        self.send(STDIN, data)

    def send(self, channel: int, payload: bytes = b"") -> None:
        self.connection.send(bytes((channel,)) + payload)

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            self.receive()

    def closed(self) -> int | None:
        """Read to the end; the code it was closed with."""
        try:
            while True:
                self.receive()
        except ConnectionClosed as closed:
            return None if closed.rcvd is None else closed.rcvd.code


@contextmanager
def opened(server: str, query: str = "", *, begin: bool = True, **more: Any) -> Generator[Shell]:  # noqa: ANN401  of a library
    uri = f"ws://guest/runtimes/{ARN.replace(':', '%3A').replace('/', '%2F')}/ws/shells?qualifier=DEFAULT{query}"
    path = server.removeprefix("unix:")
    # Without pings there is no thread for them, which would end some time after its connection.
    dialled = _websockets.unix_connect(
        path,
        uri,
        max_size=None,
        additional_headers={SESSION_HEADER: SESSION, **more.pop("headers", {})},
        ping_interval=None,
        **more,
    )
    with dialled as connection:
        shell = Shell(cast("ClientConnection", connection))
        if begin:
            shell.begin()
        yield shell


def ready(shell: Shell) -> Shell:
    shell.type(QUIET)
    shell.until(b"ready")
    return shell


def end(shell: Shell) -> None:
    shell.send(CLOSE)
    assert shell.closed() == 1000
    assert shell.others[-1] == b"\xff"


def test_a_shell_is_opened_with_both_ids_and_ended_by_ff(guest: Server) -> None:
    with opened(guest.address, "&shellId=both") as shell:
        assert shell.connection.response is not None
        headers = shell.connection.response.headers
        assert headers["X-Amzn-Bedrock-AgentCore-Shell-Id"] == "both"
        assert headers[SESSION_HEADER] == SESSION
        assert shell.first["metadata"] == {"shellId": "both", "reconnected": False}
        with Peer(guest.address) as peer:
            (job,) = (job for job in peer.ask("ps")["jobs"] if job["id"] == "both")
            assert job["owner"] is not None
            end(shell)
            assert peer.ask("wait", id="both")["signal"] == 1, "SIGHUP, and it is gone when FF comes back"


def test_a_shell_belongs_to_the_trace_of_who_opened_it(guest: Server) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with opened(guest.address, headers={"traceparent": trace, "tracestate": "vendor=value"}) as shell:
        ready(shell)
        shell.type(b"echo $TRACEPARENT $TRACESTATE\n")
        shell.until(f"{trace} vendor=value".encode())
        end(shell)


def test_a_heartbeat_is_echoed_and_unknown_channels_are_ignored(guest: Server) -> None:
    with opened(guest.address) as shell:
        shell.send(77, b"from the future")
        shell.connection.send(b"")
        shell.send(HEARTBEAT, b"abc")
        while not shell.others:
            shell.receive()
        assert shell.others == [b"\x05abc"]
        end(shell)


def test_a_size_of_nothing_changes_nothing_and_one_that_is_none_is_told(guest: Server) -> None:
    with opened(guest.address) as shell:
        ready(shell)
        shell.send(RESIZE, b'{"width":101,"height":31}')
        shell.send(RESIZE, b'{"width":0,"height":0}')
        shell.type(b"stty size\n")
        shell.until(b"31 101")
        shell.send(RESIZE, b"nonsense")
        while not shell.others:
            shell.receive()
        assert shell.others[0].startswith(b"\x02guestd: a size is")
        end(shell)


def test_a_second_client_takes_over_and_the_first_hears_4000(guest: Server) -> None:
    with opened(guest.address, "&shellId=over") as first:
        ready(first)
        with opened(guest.address, "&shellId=over&replay=all") as second:
            assert second.first["metadata"]["reconnected"] is True
            assert first.closed() == 4000
            second.until(b"ready")
            end(second)


def test_five_text_messages_in_a_row_are_1003(guest: Server) -> None:
    with opened(guest.address) as shell:
        for _ in range(3):
            for _ in range(4):
                shell.connection.send("text")
            shell.send(HEARTBEAT)
        for _ in range(5):
            shell.connection.send("text")
        assert shell.closed() == 1003


def test_a_message_over_64_kib_is_1009_and_one_of_64_is_fine(guest: Server) -> None:
    with opened(guest.address, "&shellId=big") as shell:
        ready(shell)
        shell.type(b"head -c 65534 | md5sum; echo do''ne\n")
        shell.send(STDIN, b"a" * 1000 + b"\n")
        shell.send(STDIN, (b"a" * 999 + b"\n") * 65 + b"a" * 534)
        shell.until(b"done")
        shell.connection.send(b"\0" * 65537)
        assert shell.closed() == 1009


def test_too_many_frames_are_1008() -> None:
    with serving(config=f"{BARE_HOME}[agentcore]\nframes = 20\n") as server, opened(server.address) as shell:
        with suppress(ConnectionClosed):
            for _ in range(100_000):
                shell.send(HEARTBEAT)
        assert shell.closed() == 1008


def test_a_connection_that_lasted_is_1008_and_the_shell_goes_on() -> None:
    with serving(config=f"{BARE_HOME}[agentcore]\nconnection_lifetime = '1s'\n") as server:
        with opened(server.address, "&shellId=old") as shell:
            assert shell.closed() == 1008
        with opened(server.address, "&shellId=old") as shell:
            assert shell.first["metadata"]["reconnected"] is True


def test_a_client_that_takes_nothing_is_let_go_and_then_told_what_it_missed() -> None:
    """The program waits for its client for `shells.hold`, and then for nobody."""
    config = f"{BARE_HOME}[shells]\nhold = '100ms'\n[limits]\nwrite_stall = '1s'\n"
    with serving(config=config) as server:
        with opened(server.address, "&shellId=slow", max_queue=1) as shell:
            ready(shell)
            shell.type(b"head -c 32M /dev/zero | tr '\\0' x; echo; echo al''l\n")
            _watch(server, "slow", b"all")
            assert shell.closed() in {1008, None}
        with opened(server.address, "&shellId=slow") as shell:
            assert shell.first["metadata"]["bytesDropped"] > 16 * 1024 * 1024
            shell.until(b"all")
            end(shell)


def _watch(server: Server, shell_id: str, text: bytes) -> None:
    """Until it is shown there, whoever else looks."""
    with Peer(server.address) as peer:
        call = peer.open("attach", id=shell_id, role="watcher", **{"from": "start"})
        while text not in call.output[3][-1000:]:
            call.step()


def test_what_is_replayed_is_bounded_and_the_rest_is_told(guest: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    with opened(guest.address, "&shellId=long") as shell:
        ready(shell)
        shell.type(f"read x < {tmp_path}/go; seq 1 100000; echo al''l\n".encode())
        had = len(shell.seen)
    (tmp_path / "go").write_text("on\n")
    _watch(guest, "long", b"all")
    with opened(guest.address, "&shellId=long") as shell:
        shell.until(b"all")
        end(shell)
    with Peer(guest.address) as peer:
        total = peer.ask("wait", id="long")["streams"]["terminal"]["bytes"]
    # The rest it had been sent before it left; it did not read to the end.
    assert had <= total - shell.first["metadata"]["bytesDropped"] - len(shell.seen) < had + 4096
    assert 256 * 1024 <= len(shell.seen) < 260 * 1024


def test_what_a_client_has_had_is_not_shown_again_and_what_it_missed_is(
    guest: Server, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    with opened(guest.address, "&shellId=missed") as shell:
        ready(shell)
        shell.type(f"read x < {tmp_path}/go; echo mis''sed\n".encode())
    (tmp_path / "go").write_text("on\n")
    with opened(guest.address, "&shellId=missed") as shell:
        shell.until(b"missed")
        assert b"ready" not in shell.seen
        assert "bytesDropped" not in shell.first["metadata"]
        end(shell)


def test_exit_statuses(guest: Server) -> None:
    with opened(guest.address) as shell:
        shell.type(b"exit 0\n")
        assert shell.closed() == 1000
        assert shell.statuses[-1] == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
        }
        assert CLOSE not in [message[0] for message in shell.others]
    with opened(guest.address) as shell:
        shell.type(b"exit 9\n")
        assert shell.closed() == 1000
        assert shell.statuses[-1]["details"] == {"causes": [{"reason": "ExitCode", "message": "9"}]}


def test_a_shell_that_cannot_start_is_1011_and_says_why() -> None:
    with serving(config="shell = '/no/such/shell'\n") as server, opened(server.address, begin=False) as shell:
        assert shell.closed() == 1011
        (status,) = shell.statuses
        assert (status["reason"], status["code"]) == ("InternalError", 500)
        assert "/no/such/shell" in status["message"]


@pytest.mark.parametrize("over", ["424", "429"])
def test_one_shell_too_many(over: str) -> None:
    config = f"{BARE_HOME}[agentcore]\nshells = 1\nshells_over = '{over}'\n"
    with serving(config=config) as server, opened(server.address, "&shellId=one"):
        with pytest.raises(InvalidStatus) as refused, opened(server.address):
            pass
        assert refused.value.response.status_code == int(over)
        name = {"424": "RuntimeClientError", "429": "ThrottlingException"}[over]
        assert refused.value.response.headers["x-amzn-ErrorType"] == name
        assert b"agentcore.shells" in (refused.value.response.body or b"")
        with opened(server.address, "&shellId=one") as again:
            assert again.first["metadata"]["reconnected"] is True


@pytest.mark.parametrize("shell_id", ["-a", "a.b", "a" * 129, "a%2Fb"])
def test_an_id_that_is_none_is_400(guest: Server, shell_id: str) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(guest.address, f"&shellId={shell_id}"):
        pass
    assert refused.value.response.status_code == 400
    assert b"shellId" in (refused.value.response.body or b"")


def test_an_id_of_a_command_is_409(guest: Server) -> None:
    with Peer(guest.address) as peer:
        peer.open("exec", argv=["sleep", "1000"], id="a-command").accepted()
        with pytest.raises(InvalidStatus) as refused, opened(guest.address, "&shellId=a-command"):
            pass
        assert refused.value.response.status_code == 409
        peer.ask("kill", id="a-command")


def test_a_stop_tells_the_end_and_then_ff() -> None:
    with serving(config=BARE_HOME) as server, opened(server.address) as shell:
        ready(shell)
        with Peer(server.address) as peer:
            peer.open("stop").accepted()
            assert shell.closed() == 1001
        assert shell.others[-1] == b"\xff"
        assert shell.statuses[-1]["details"]["causes"][-1] == {"reason": "Signal", "message": "1"}


def test_after_a_kill_of_guestd_the_same_id_is_the_same_shell() -> None:
    async def kill() -> None:
        await survivor.next_after(await survivor.kill_serve())

    with surviving(f"{BARE_HOME}[init]\nrestart_delay = '10ms'\n") as survivor:
        trio.run(survivor.ask)
        with opened(survivor.address, "&shellId=kept") as shell:
            ready(shell)
            shell.type(b"here=still; echo no''ted\n")
            shell.until(b"noted")
            trio.run(kill)
            assert shell.closed() is None
        with opened(survivor.address, "&shellId=kept") as shell:
            assert shell.first["metadata"]["reconnected"] is True
            shell.until(b"noted")
            shell.type(b"echo $here here\n")
            shell.until(b"still here")
            end(shell)


def test_the_native_dialect_reaches_the_same_shell(guest: Server) -> None:
    with opened(guest.address, "&shellId=shared") as shell:
        ready(shell)
        with Peer(guest.address) as peer:
            call = peer.open("attach", id="shared", role="writer", **{"from": "start"})
            call.accepted()
            call.data(0, b"echo from the o''ther side\n")
            shell.until(b"from the other side")
        end(shell)
