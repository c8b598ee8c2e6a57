"""boto3 over plain HTTP: commands, as programs written for AgentCore Runtime run them."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from botocore.exceptions import (  # pyright: ignore[reportMissingTypeStubs]  it has none
    ClientError,
    EventStreamError,
)

from tests.support.agentcore import ARN, SESSION, Ran, Sdk, Wire, always_send, run, sdk
from tests.support.peer import Peer
from tests.support.server import Server, free_port, serving
from tests.support.survivor import surviving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def guest() -> Iterator[Server]:
    with serving("unix:{}/guestd.sock", f"tcp:127.0.0.1:{free_port()}") as server:
        with sdk(server.addresses[1]) as client:
            # Whoever starts programs as somebody is started with the first of them.
            run(client, "true")
        yield server
        server.stop()
        assert "Traceback" not in server.log, server.log


@pytest.fixture
def client(guest: Server) -> Iterator[Sdk]:
    with sdk(guest.addresses[1]) as client:
        yield client


def test_what_a_command_prints_and_how_it_ends(client: Sdk) -> None:
    ran = run(client, "echo out; echo err >&2; printf 'ä€\\360\\237\\230\\200'; exit 3")
    assert (ran.stdout, ran.stderr, ran.exit) == ("out\nä€😀", "err\n", (3, "COMPLETED"))


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("exit 255", 255), ("no-such-program", 127), ("kill -9 $$", 137)]
)
def test_exit_codes(client: Sdk, command: str, code: int) -> None:
    assert run(client, command).exit == (code, "COMPLETED")


def test_each_is_a_bash_of_its_own_as_root_with_nothing_to_read(client: Sdk) -> None:
    assert run(client, "left=1; cd /; id -u; echo $BASH_VERSION").stdout.startswith("0\n5")
    assert run(client, "echo ${left-gone}; pwd; cat").stdout == "gone\n/mnt/workspace\n"


def test_a_timeout_is_told_as_one(client: Sdk) -> None:
    ran = run(client, "echo before; sleep 1000", timeout=2)
    assert (ran.stdout, ran.exit) == ("before\n", (-1, "TIMED_OUT"))


def test_what_is_no_text_is_replaced_and_exact_on_the_native_dialect(client: Sdk, guest: Server) -> None:
    answer = client.invoke_agent_runtime_command(
        agentRuntimeArn=ARN, body={"command": "printf 'a\\377\\303b'"}
    )
    ran = Ran(answer["stream"])
    assert ran.stdout == "a\ufffd\ufffdb"
    job_id = f"agentcore-{answer['ResponseMetadata']['RequestId']}"
    with Peer(guest.address) as peer:
        call = peer.open("attach", id=job_id)
        call.end()
        assert call.stdout == b"a\xff\xc3b"


def test_twenty_megabytes(client: Sdk) -> None:
    ran = run(client, "seq -f '%019.0f' 1000000")
    assert len(ran.stdout) == 20_000_000
    assert ran.stdout[-20:] == "0000000000001000000\n"
    assert [int(each) for each in ran.stdout.split()] == list(range(1, 1_000_001))
    assert ran.deltas < 1000


@pytest.mark.parametrize("letter", ["x", "ä", "€", "😀"])
def test_a_command_of_64_ki_characters(client: Sdk, letter: str) -> None:
    """The kernel takes 128 KiB as one argument; what is longer is put together again by the shell."""
    filler = 65536 - len("w='';echo ${#w} $# ${c-none} $0; exit 5")
    ran = run(client, f"w='{letter * filler}';echo ${{#w}} $# ${{c-none}} $0; exit 5")
    assert (ran.stdout, ran.exit) == (f"{filler} 0 none /bin/bash\n", (5, "COMPLETED"))


def test_a_longer_one_is_refused(client: Sdk) -> None:
    with pytest.raises(client.exceptions.ValidationException) as failed:
        run(client, "x" * 65537)
    assert failed.value.response["reason"] == "FieldValidationFailed"
    assert "command" in failed.value.response["Error"]["Message"]


@pytest.mark.parametrize("timeout", [0, 3601])
def test_a_timeout_out_of_bounds_is_refused(client: Sdk, timeout: int) -> None:
    with pytest.raises(client.exceptions.ValidationException, match="timeout"):
        run(client, "true", timeout=timeout)


def test_a_slow_reader_gets_everything(client: Sdk, guest: Server) -> None:
    """More than all buffers on the way hold; others are served meanwhile."""
    command = "head -c 32M /dev/zero | tr '\\0' x"
    answer = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body={"command": command})
    stream = iter(answer["stream"])
    assert next(stream) == {"chunk": {"contentStart": {}}}
    first = next(stream)["chunk"]["contentDelta"]["stdout"]
    with sdk(guest.addresses[1]) as other:
        assert run(other, "echo meanwhile").stdout == "meanwhile\n"
    rest = Ran([{"chunk": {"contentStart": {}}}, *stream])
    assert len(first) + len(rest.stdout) == 32 * MIB
    assert rest.exit == (0, "COMPLETED")


def test_a_command_whose_client_closes_early_goes_on(client: Sdk, guest: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    command = f"seq 1 1000000; read line < {tmp_path}/go; seq 1 1000000; exit 7"
    answer = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body={"command": command})
    stream = iter(answer["stream"])
    next(stream)
    next(stream)
    answer["stream"].close()
    (tmp_path / "go").write_text("on\n")
    with Peer(guest.address) as peer:
        assert peer.ask("wait", id=f"agentcore-{answer['ResponseMetadata']['RequestId']}")["code"] == 7


def test_a_command_without_a_client_is_not_held_up_by_a_file_that_is_full() -> None:
    config = "[agentcore]\nspool = '64 KiB'\n"
    with (
        serving("unix:{}/guestd.sock", f"tcp:127.0.0.1:{free_port()}", config=config) as server,
        sdk(server.addresses[1]) as client,
    ):
        command = {"command": "seq 1 5000000; exit 7"}
        answer = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body=command)
        job_id = f"agentcore-{answer['ResponseMetadata']['RequestId']}"
        stream = iter(answer["stream"])
        next(stream)
        next(stream)
        answer["stream"].close()
        del answer, stream
        with Peer(server.address) as peer:
            assert peer.ask("wait", id=job_id)["code"] == 7
        always_send(client, "amz-sdk-invocation-id", job_id.removeprefix("agentcore-"))
        again = run(client, **command)
        assert again.exit == (7, "COMPLETED")
        assert again.stdout.startswith("1\n2\n")
        assert again.stdout.endswith("5000000\n")
        assert "bytes of stdout are not kept any more" in again.stderr


def test_a_retry_after_a_read_timeout_is_the_same_command_from_its_start(
    guest: Server, tmp_path: Path
) -> None:
    """An SDK that hears nothing sends its request again under the same id."""
    command = f"echo ran >> {tmp_path}/runs; seq 1 500000; exit 6"
    with Wire(guest.address, mute=1) as wire, sdk(wire.endpoint, read_timeout=4) as client:
        ran = run(client, command)
        assert wire.connections == 2
    assert ran.exit == (6, "COMPLETED")
    assert [int(each) for each in ran.stdout.split()] == list(range(1, 500_001)), (
        "3 MB, of which a tape keeps one"
    )
    assert (tmp_path / "runs").read_text() == "ran\n"


def test_another_command_under_the_same_id_is_a_conflict(client: Sdk) -> None:
    always_send(client, "amz-sdk-invocation-id", "the-same")
    assert run(client, "echo 1").stdout == "1\n"
    assert run(client, "echo 1").stdout == "1\n"
    with pytest.raises(client.exceptions.ConflictException, match="the-same"):
        run(client, "echo 2")


def test_an_exception_in_mid_stream(tmp_path: Path) -> None:
    """It makes room for another version while a command runs: its client is told so, and asks again."""
    with surviving() as survivor, Wire(survivor.address) as wire, sdk(wire.endpoint) as client:
        trio.run(survivor.ask)
        command = {"command": f"echo begun; read line < {tmp_path}/go; echo done"}
        os.mkfifo(tmp_path / "go")
        always_send(client, "amz-sdk-invocation-id", "kept")
        answer = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body=command)
        stream = iter(answer["stream"])
        next(stream)
        assert next(stream)["chunk"]["contentDelta"] == {"stdout": "begun\n"}
        with Peer(survivor.address) as peer:
            peer.ask("upgrade", program=[sys.executable, "-m", "guestd"])
        with pytest.raises(EventStreamError, match=r"\(internalServerException\).* amz-sdk-invocation-id"):
            next(stream)
        answer["stream"].close()
        del answer, stream
        again = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body=command)
        (tmp_path / "go").write_text("on\n")
        ran = Ran(again["stream"])
        assert (ran.stdout, ran.exit) == ("begun\ndone\n", (0, "COMPLETED"))


def test_a_retry_after_a_kill_of_guestd_is_the_same_command_from_its_start(tmp_path: Path) -> None:
    """3 MB, of which a tape keeps one, and the client breaks off in their midst as an SDK does."""
    command = {"command": f"echo ran >> {tmp_path}/runs; seq 1 500000; read line < {tmp_path}/go; exit 6"}
    os.mkfifo(tmp_path / "go")

    async def kill() -> None:
        await survivor.next_after(await survivor.kill_serve())

    with (
        surviving("[init]\nrestart_delay = '10ms'\n") as survivor,
        Wire(survivor.address) as wire,
        sdk(wire.endpoint) as client,
    ):
        trio.run(survivor.ask)
        always_send(client, "amz-sdk-invocation-id", "kept")
        answer = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body=command)
        next(iter(answer["stream"]))
        trio.run(kill)
        answer["stream"].close()
        del answer
        again = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body=command)
        (tmp_path / "go").write_text("on\n")
        ran = Ran(again["stream"])
        assert (ran.exit, ran.stderr) == ((6, "COMPLETED"), "")
        assert [int(each) for each in ran.stdout.split()] == list(range(1, 500_001))
    assert (tmp_path / "runs").read_text() == "ran\n"


def test_a_trace_reaches_the_command(client: Sdk) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert run(client, "echo $TRACEPARENT", traceParent=trace).stdout == f"{trace}\n"


# --------------------------------------------------------------------------------------------------- errors, by class


def test_too_many_commands_are_throttled() -> None:
    with (
        serving(f"tcp:127.0.0.1:{free_port()}", config="[limits]\njobs = 1\n") as server,
        sdk(server.address, retries={"total_max_attempts": 1}) as client,
    ):
        answer = client.invoke_agent_runtime_command(agentRuntimeArn=ARN, body={"command": "sleep 1000"})
        with pytest.raises(client.exceptions.ThrottlingException, match=r"limits\.jobs"):
            run(client, "true")
        answer["stream"].close()
        del answer


def test_a_token_is_asked_for_where_the_settings_say(tmp_path: Path) -> None:
    token = "a-token-of-the-tests"
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    config = f"[agentcore]\ntoken_file = '{tmp_path}/token'\n"
    with serving(f"tcp:127.0.0.1:{free_port()}", config=config) as server, sdk(server.address) as client:
        with pytest.raises(client.exceptions.UnauthorizedException, match="X-Guestd-Token"):
            run(client, "true")
        always_send(client, "X-Guestd-Token", token)
        assert run(client, "echo in").stdout == "in\n"
        assert token not in server.log


def test_another_session_is_not_here() -> None:
    config = f"[agentcore]\nsession_id = '{SESSION}'\n"
    with serving(f"tcp:127.0.0.1:{free_port()}", config=config) as server, sdk(server.address) as client:
        answer = client.invoke_agent_runtime_command(
            agentRuntimeArn=ARN, runtimeSessionId=SESSION, body={"command": "true"}
        )
        assert answer["runtimeSessionId"] == SESSION
        Ran(answer["stream"])
        with pytest.raises(client.exceptions.ResourceNotFoundException, match="another session"):
            client.invoke_agent_runtime_command(
                agentRuntimeArn=ARN, runtimeSessionId="x" * 40, body={"command": "true"}
            )


def test_switched_off_there_is_nothing(guest: Server) -> None:
    config = "[agentcore]\nenabled = false\n"
    with serving(f"tcp:127.0.0.1:{free_port()}", config=config) as server, sdk(server.address) as client:
        with pytest.raises(ClientError) as failed:
            run(client, "true")
        assert "(426)" in str(failed.value)


# -------------------------------------------------------------------------------------------------------------- the end


def test_a_stop_answers_when_all_is_flushed() -> None:
    with serving("unix:{}/guestd.sock", f"tcp:127.0.0.1:{free_port()}") as server:
        with sdk(server.addresses[1]) as client, sdk(server.addresses[1]) as other:
            answer = client.invoke_agent_runtime_command(
                agentRuntimeArn=ARN,
                body={"command": "trap 'echo told; exit 9' TERM; echo up; sleep 1000 & wait"},
            )
            found: list[Ran] = []
            reading = threading.Thread(target=lambda: found.append(Ran(answer["stream"])))
            reading.start()
            with Peer(server.address) as peer:
                call = peer.open("attach", id=f"agentcore-{answer['ResponseMetadata']['RequestId']}")
                assert call.read_until("stdout", 3) == b"up\n"
            stopped = other.stop_runtime_session(agentRuntimeArn=ARN, runtimeSessionId=SESSION)
            assert (stopped["statusCode"], stopped["runtimeSessionId"]) == (200, SESSION)
            assert (server.directory / "receipt.json").exists(), "before the answer"
            reading.join()
            assert (found[0].stdout, found[0].exit) == ("up\ntold\n", (9, "COMPLETED"))
            answer["stream"].close()
        assert server.process.wait(30) == 0
