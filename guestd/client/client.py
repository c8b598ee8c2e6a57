"""`connect` and the typed operations. What a user of the library holds in hand; channels stay hidden."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from guestd import __version__
from guestd.client.connection import DEFAULT_WINDOW, Connection, identity
from guestd.client.forward import ForwardOperations
from guestd.client.inbox import Inbox
from guestd.client.jobs import Completed, Job, collect, exec_fields
from guestd.client.life import LifeOperations
from guestd.client.link import StreamLink
from guestd.client.mounts import MountOperations
from guestd.client.shells import SHELL_WINDOW, Shell, shell_fields
from guestd.client.tasks import background
from guestd.client.transport import dial
from guestd.errors import Conflict, ConnectionLost, Unavailable
from guestd.wire.address import Address, parse_address
from guestd.wire.frames import FRAME_LIMIT
from guestd.wire.hello import Hello
from guestd.wire.result import Result

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from typing import Unpack

    from guestd.client.channel import Channel
    from guestd.client.files import Files
    from guestd.client.inbox import RoleName, ShellStart, Start
    from guestd.client.jobs import ExecOptions, Scope
    from guestd.client.link import Link
    from guestd.client.shells import ShellOptions, TerminalSize
    from guestd.errors import GuestdError

AGENT = f"guestd-client {__version__}"
#: What `run` keeps of each stream.
CAPTURE_LIMIT = 16 * 1024 * 1024


class Client(LifeOperations, MountOperations, ForwardOperations):
    """One connection to one guest. Any number of tasks may use it at once."""

    def __init__(self, connection: Connection, hello: Hello) -> None:
        self._connection = connection
        #: What the guest said of itself.
        self.hello = hello
        self._files: Files | None = None

    @property
    def guest(self) -> dict[str, Any]:
        """Which guest this is: `boot_id`, `session_id`, `generation`, `previous`."""
        return identity(self.hello)

    @property
    def files(self) -> Files:
        """The guest's files."""
        if self._files is None:
            from guestd.client.files import Files

            self._files = Files(self._connection)
        return self._files

    async def exec(self, argv: Sequence[str | bytes] | None = None, **options: Unpack[ExecOptions]) -> Job:
        """Start a command: `argv`, or `shell="a line for the shell"`. With an `id` of your own, asking again is safe.

        The result may be that it could not start; that is a result, not an error.
        """
        return await self.open_job(exec_fields(argv, options))

    async def start(
        self, argv: Sequence[str | bytes] | None = None, **options: Unpack[ExecOptions]
    ) -> dict[str, Any]:
        """Start a command and leave it to itself. Returns its `id`, `pid`, and whether it was `created` now.

        Without a pid it could not start, and `wait` says why.
        """
        channel = self._connection.open({**exec_fields(argv, options), "detach": True})
        started = await _or_reset(channel, channel.wait_accepted)
        return {name: started.get(name) for name in ("id", "pid", "created", "state", "started_at")}

    async def attach(
        self,
        id: str,
        *,
        start: Mapping[str, int] | Start = "start",
        input: bool = False,
        hold: bool = False,
        client: str | None = None,
        command: int | None = None,
    ) -> Job:
        """Come back to a job: all that is kept of its output, what comes from now on (`end`), or from exact offsets.

        For a shell: `client` names who types, so that coming back under the same name continues the input; `command`
        asks for the output of that command alone, as `commands` numbers them.
        """
        fields = {"op": "attach", "id": id, "input": input, "hold": hold}
        return await self.open_job({**fields, **_given(client=client, command=command)}, start)

    async def shell(
        self,
        id: str | None = None,
        argv: Sequence[str | bytes] | None = None,
        *,
        start: Mapping[str, int] | ShellStart = "restore",
        window: int = SHELL_WINDOW,
        **options: Unpack[ShellOptions],
    ) -> Shell:
        """Open a shell: the one of that id if it lives, else a new one; without `argv` and `shell` the user's own.

        With an `id` of your own, asking again is safe as long as the shell lives.
        """
        return await self.open_shell(shell_fields(id, argv, options), start, window)

    async def attach_shell(
        self,
        id: str,
        *,
        role: RoleName = "watcher",
        client: str | None = None,
        size: TerminalSize | None = None,
        start: Mapping[str, int] | ShellStart = "restore",
        or_restore: bool = False,
        hold: bool | None = None,
        window: int = SHELL_WINDOW,
    ) -> Shell:
        """Come back to a shell, which is never started by this.

        `or_restore`: where the offsets of `start` are no longer kept, see the screen as it is instead of a gap.
        """
        fields = {"op": "attach", "id": id, "role": role, **_given(client=client, hold=hold)}
        if size is not None:
            fields["size"] = size._asdict()
        if or_restore:
            fields["or_restore"] = True
        return await self.open_shell(fields, start, window)

    async def commands(self, id: str) -> list[dict[str, Any]]:
        """What was typed at a shell, as far as the shell marks it: number, text, times, exit and byte range of each."""
        found = await self._ask({"op": "commands", "id": id})
        return list(found.get("commands", ()))

    async def run(
        self,
        argv: Sequence[str | bytes] | None = None,
        *,
        input: bytes | None = None,
        capture: int = CAPTURE_LIMIT,
        **options: Unpack[ExecOptions],
    ) -> Completed:
        """Run a command to its end and return what it printed, `capture` bytes of each stream at most."""
        if input is None:
            return await collect(await self.exec(argv, **options), capture)
        options["stdin"] = "stream"
        job = await self.exec(argv, **options)
        async with background() as tasks:
            tasks.start_soon(_feed, job, input)
            return await collect(job, capture)

    async def wait(self, id: str, timeout: float | None = None) -> Result:
        """Wait for the end of a job, without its output."""
        return Result.from_map(await self._ask({"op": "wait", "id": id, **_given(timeout=timeout)}))

    async def kill(
        self,
        id: str,
        *,
        signal: str | int | None = None,
        grace: float | None = None,
        scope: Scope | None = None,
    ) -> dict[str, Any]:
        """End a job, politely and then not, and wait for it; with `signal`, send that and nothing else."""
        return await self._ask({"op": "kill", "id": id, **_given(signal=signal, grace=grace, scope=scope)})

    async def ps(self) -> list[dict[str, Any]]:
        """Every job the guest knows, ended ones as long as they are kept."""
        found = await self._ask({"op": "ps"})
        return list(found.get("jobs", ()))

    async def upgrade(self, program: Sequence[str] | None = None) -> dict[str, Any]:
        """Replace the guest's supervisor by the version that is installed there, or by that program. Jobs go on."""
        return await self._ask(
            {"op": "upgrade", **_given(program=None if program is None else list(program))}
        )

    async def status(self) -> dict[str, Any]:
        """The state of the guest."""
        return await self._ask({"op": "status"})

    @property
    def failure(self) -> GuestdError | None:
        """Why the connection is over; None while it is not."""
        return self._connection.failure

    async def wait_lost(self) -> None:
        """Wait until the connection is over."""
        await self._connection.wait_over()

    async def drain(self) -> None:
        """Wait until everything that was sent has left this side."""
        await self._connection.drain()

    async def open_job(self, fields: Mapping[str, Any], start: Mapping[str, int] | Start = "start") -> Job:
        """Open a channel that carries a job. `start` says from where its output is wanted."""
        inbox = Inbox(start)
        if start != "start":
            fields = {**fields, "from": start if isinstance(start, str) else dict(start)}
        channel = self._connection.open(fields, inbox)
        return Job(channel, await _or_reset(channel, channel.wait_accepted))

    async def open_shell(
        self, fields: Mapping[str, Any], start: Mapping[str, int] | ShellStart, window: int
    ) -> Shell:
        """Open a channel that carries a shell."""
        fields = {**fields, "from": start if isinstance(start, str) else dict(start)}
        channel = self._connection.open(fields, Inbox(start), window)
        accepted = await _or_reset(channel, channel.wait_accepted)
        if accepted.get("kind") != "shell":
            error = Conflict(
                f"{accepted.get('id')!r} is a {accepted.get('kind')}, not a shell; attach to it as a job"
            )
            channel.reset(error)
            raise error
        return Shell(channel, accepted)

    async def _ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        channel = self._connection.open(fields)
        return await _or_reset(channel, channel.wait_final)


async def _or_reset(channel: Channel, answer: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        return await answer()
    except trio.Cancelled:
        channel.reset(ConnectionLost("the request was given up on this side"))
        raise


async def _feed(job: Job, data: bytes) -> None:
    try:
        await job.send(data)
        await job.close_stdin()
    except (trio.BrokenResourceError, ConnectionLost):
        pass  # it ended without reading everything, which is its right; a lost connection is reported by the reader


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


@asynccontextmanager
async def connect(
    address: str | Address,
    token: str | None = None,
    *,
    timeout: float = 30.0,
    window: int = DEFAULT_WINDOW,
    heartbeat: float = 30.0,
) -> AsyncGenerator[Client]:
    """A connection to a guest for the length of a block; its errors come out of the block as they are.

    `timeout` bounds connecting and the handshake. `heartbeat` is how long a silent guest is left unasked whether it is
    still there; `math.inf` never asks.
    """
    target = parse_address(address) if isinstance(address, str) else address
    settings = _Settings(token, timeout, window, heartbeat)
    async with _connected(partial(dial, target), str(target), settings) as client:
        yield client


@asynccontextmanager
async def over(
    stream: trio.abc.Stream,
    token: str | None = None,
    *,
    peer: str = "the other end of the stream",
    timeout: float = 30.0,
    window: int = DEFAULT_WINDOW,
    heartbeat: float = 30.0,
) -> AsyncGenerator[Client]:
    """Be a client over a stream that is connected already, by whatever means."""

    async def carry(_: trio.Nursery) -> Link:
        return StreamLink(stream)

    async with _connected(carry, peer, _Settings(token, timeout, window, heartbeat)) as client:
        yield client


class _Settings(NamedTuple):
    token: str | None
    timeout: float
    window: int
    heartbeat: float


@asynccontextmanager
async def _connected(
    opener: Callable[[trio.Nursery], Awaitable[Link]],
    peer: str,
    settings: _Settings,
) -> AsyncGenerator[Client]:
    async with background() as tasks:
        connection: Connection | None = None
        client: Client | None = None
        try:
            with trio.move_on_after(settings.timeout):
                link = await opener(tasks)
                connection = Connection(link, peer, window=settings.window, heartbeat=settings.heartbeat)
                hello = Hello(agent=AGENT, frame=FRAME_LIMIT, window=settings.window, token=settings.token)
                client = Client(connection, await connection.start(tasks, hello))
            if client is None:
                stage = (
                    "took the connection and said nothing" if connection else "did not take the connection"
                )
                raise Unavailable(
                    f"cannot reach {peer}: it {stage} within {settings.timeout:g} s; is it guestd, and does it run?",
                    address=peer,
                )
            yield client
        finally:
            if connection is not None:
                await connection.aclose()
