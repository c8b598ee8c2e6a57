"""Plays a person at AgentCore's own shell client: `python agentcore_shell.py SOCKET SCENARIO…`.

The client speaks TLS to the host name that AWS has, and to nothing else. So this makes a network namespace of its own,
in which that name is this machine (a hosts file) and a TLS server at port 443 passes what it gets on to guestd's
socket, as a load balancer would. The certificate's authority is told by SSL_CERT_FILE. Ends with 0 when all went as it
should.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import socket
import ssl
import struct
import sys
import tempfile
from typing import Any

_NEWNS, _NEWNET = 0x20000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
HOST = "bedrock-agentcore.us-west-2.amazonaws.com"
ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/my_agent-AbCdEf1234"
SESSION = "a-session-of-the-tests-with-enough-characters"
#: Between a shell and the one that plays with it.
FIFO = f"/tmp/agentcore-{os.urandom(6).hex()}"
_libc = ctypes.CDLL(None, use_errno=True)


def enter_network(folder: str) -> ssl.SSLContext:
    """From here on HOST is this machine, and its certificate is good."""
    import trustme

    _check(_libc.unshare(_NEWNS | _NEWNET))
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    with open(f"{folder}/hosts", "w", encoding="ascii") as file:
        file.write(f"127.0.0.1 localhost {HOST}\n")
    _check(_libc.mount(f"{folder}/hosts".encode(), b"/etc/hosts", None, _MS_BIND, None))
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{folder}/ca.pem")
    os.environ["SSL_CERT_FILE"] = f"{folder}/ca.pem"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)  # pyright: ignore[reportUnknownMemberType]  it takes OpenSSL's as well
    return context


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Front:
    """The end of the TLS. `cut` is a network that is gone."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def serve(self, near: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        far, to_guest = await asyncio.open_unix_connection(self._path)
        self._open |= {to_client, to_guest}
        try:
            await asyncio.gather(self._pass_on(near, to_guest), self._pass_on(far, to_client))
        finally:
            self._open -= {to_client, to_guest}

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()


class Person:
    """Somebody with the client. What it shows is gathered in `seen`."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401  it has no types
        self.client = client
        self.seen = ""
        self.frames: list[Any] = []

    async def read_until(self, shell: Any, text: str) -> None:  # noqa: ANN401  see above
        """Until it shows that."""
        async with asyncio.timeout(30):
            while text not in self.seen:
                self.note(await anext(shell))

    async def read_to_end(self, shell: Any) -> None:  # noqa: ANN401  see above
        async with asyncio.timeout(30):
            async for frame in shell:
                self.note(frame)

    def note(self, frame: Any) -> None:  # noqa: ANN401  see above
        self.frames.append(frame)
        if frame.channel == 1:
            self.seen += frame.text

    def open(self, shell_id: str | None = None, **more: object) -> Any:  # noqa: ANN401  see above
        return self.client.open_shell(ARN, session_id=SESSION, shell_id=shell_id, **more)


# ------------------------------------------------------------------------------------------------------------ scenarios


async def run(person: Person, front: Front) -> None:
    """Open, run, resize, and an exit code."""
    async with person.open("first") as shell:
        assert (shell.shell_id, shell.session_id) == ("first", SESSION)
        await shell.send("PS1=; stty -echo; echo $((40+2)) $(id -u)\n")
        await person.read_until(shell, "42 0")
        await shell.resize(123, 45)
        await shell.send("stty size\n")
        await person.read_until(shell, "45 123")
        await shell.send("exit 7\n")
        await person.read_to_end(shell)
        assert shell.exit_code == 7
    assert person.frames[-1].json()["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


async def end(person: Person, front: Front) -> None:
    """The other ways to end: well, and by a signal."""
    async with person.open() as shell:
        await shell.send("exit\n")
        await person.read_to_end(shell)
        assert shell.exit_code == 0
    async with person.open() as shell:
        await shell.send("kill -9 $$\n")
        await person.read_to_end(shell)
        assert shell.exit_code == 137
    causes = person.frames[-1].json()["details"]["causes"]
    assert {"reason": "Signal", "message": "9"} in causes


async def drop(person: Person, front: Front) -> None:
    """The network goes in the middle of work; the client comes back by itself to the same shell, and misses nothing."""
    from bedrock_agentcore.runtime.shell import ReconnectConfig

    back = asyncio.Event()
    config = ReconnectConfig(base_delay=0.05, on_reconnect=back.set)
    async with person.open("kept", reconnect_config=config) as shell:
        await shell.send(f"PS1=; stty -echo; cd /tmp; here=still; mkfifo {FIFO}; echo re''ady\n")
        await person.read_until(shell, "ready")
        await shell.send(f"echo wai''ting; read x < {FIFO}; seq 1 2000; echo wo''ken\n")
        await person.read_until(shell, "waiting")
        front.cut()
        await asyncio.to_thread(tell)
        await person.read_until(shell, "woken")
        assert back.is_set()
        assert front.connections >= 2
        await shell.send(f"rm {FIFO}; echo $here $PWD\n")
        await person.read_until(shell, "still /tmp")
        await shell.send("exit\n")
    lines = [line for line in person.seen.split() if line.isdecimal()]
    assert lines == [str(each) for each in range(1, 2001)], "each line once"


async def away(person: Person, front: Front) -> None:
    """A client that left in order finds the shell as it was, and sees what it has missed."""
    async with person.open("away") as shell:
        await shell.send(f"PS1=; stty -echo; mkfifo {FIFO}; echo re''ady\n")
        await person.read_until(shell, "ready")
        await shell.send(f"(read x < {FIFO}; echo mis''sed; echo > {FIFO}) &\n")
        await shell.send("echo wai''ting\n")
        await person.read_until(shell, "waiting")
    person.seen = ""
    await asyncio.to_thread(tell)
    await asyncio.to_thread(listen)
    async with person.open("away") as shell:
        await person.read_until(shell, "missed")
        assert "ready" not in person.seen, "it had that"
        await shell.send(f"rm {FIFO}; exit\n")
        await person.read_to_end(shell)


def tell() -> None:
    with open(FIFO, "w", encoding="ascii") as fifo:
        fifo.write("go\n")


def listen() -> None:
    with open(FIFO, encoding="ascii") as fifo:
        fifo.read()


async def takeover(person: Person, front: Front) -> None:
    """The second client with the same id gets the shell; the first one is told why and does not come back."""
    from bedrock_agentcore.runtime.shell import ReconnectConfig

    async with person.open("one", reconnect_config=ReconnectConfig(base_delay=0.05)) as first:
        await first.send("PS1=; stty -echo; echo re''ady\n")
        await person.read_until(first, "ready")
        async with person.open("one") as second:
            await person.read_to_end(first)
            assert first.kicked
            await second.send("echo se''cond\n")
            await person.read_until(second, "second")
            await second.send("exit\n")
            await person.read_to_end(second)
    assert front.connections == 2


async def authorities(person: Person, front: Front) -> None:
    """A presigned URL, and a token as browsers bring it."""
    from bedrock_agentcore.runtime.shell.auth import OAuthAuth, PresignedAuth

    for auth in (PresignedAuth(), OAuthAuth("any-token-of-the-caller")):
        async with person.open(auth=auth) as shell:
            assert shell.session_id == SESSION
            await shell.send("exit 3\n")
            await person.read_to_end(shell)
            assert shell.exit_code == 3


SCENARIOS = {each.__name__: each for each in (run, end, drop, away, takeover, authorities)}


async def main(path: str, scenarios: list[str], context: ssl.SSLContext) -> None:
    from bedrock_agentcore.runtime.agent_core_runtime_client import AgentCoreRuntimeClient

    client = AgentCoreRuntimeClient("us-west-2")
    for name in scenarios:
        front = Front(path)
        server = await asyncio.start_server(front.serve, "127.0.0.1", 443, ssl=context)
        async with server:
            await SCENARIOS[name](Person(client), front)
        front.cut()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(SCENARIOS))  # noqa: T201  for who asks what there is
    else:
        with tempfile.TemporaryDirectory(prefix="guestd-") as place:
            tls = enter_network(place)
            os.environ |= {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "any secret"}
            asyncio.run(main(sys.argv[1], sys.argv[2:], tls))
