"""A job as its client has it: output as it comes, input, signals, and the result.

    job = await client.exec(["make", "-j4"])
    async for event in job:          # Output and Gap
        ...
    result = await job.result()

Output that nobody takes stops at the window of its channel; if this attachment holds the job, the command waits
there. So either iterate, or call `result()` without having iterated, or `discard()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import trio

from guestd.client.inbox import Gap, Output
from guestd.errors import ConnectionLost
from guestd.wire.messages import Fields
from guestd.wire.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guestd.client.channel import Channel
    from guestd.errors import GuestdError

Event = Output | Gap
Scope = Literal["tree", "leave"]


class ExecOptions(TypedDict, total=False):
    """What `exec` can be asked for besides argv, as docs/protocol.md has it. What is left out the guest decides."""

    id: str
    shell: str
    env: Mapping[str, str]
    cwd: str
    user: str | int
    group: str | int
    groups: Sequence[str | int]
    stdin: Literal["none", "stream", "closed"]
    umask: int
    rlimits: Mapping[str, int | str | Sequence[int | str]]
    nice: int
    oom_score_adj: int
    timeout: float
    grace: float
    scope: Scope
    drain: float
    tape: int
    spool: bool
    retain: float
    kill_on_disconnect: bool
    hold: bool
    traceparent: str
    tracestate: str


def exec_fields(argv: Sequence[str | bytes] | None, options: ExecOptions) -> dict[str, Any]:
    """The request, as OPEN carries it."""
    fields: dict[str, Any] = {"op": "exec", **options}
    if argv is not None:
        fields["argv"] = list(argv)
    return fields


@dataclass(slots=True)
class Completed:
    """A command that was run to its end, with the output that was kept."""

    result: Result
    stdout: bytes
    stderr: bytes
    #: Bytes of each stream that came after the limit and were thrown away.
    truncated: dict[str, int] = field(default_factory=dict[str, int])
    gaps: list[Gap] = field(default_factory=list[Gap])

    @property
    def status(self) -> int:
        return self.result.status


class Job:
    """See the module. It is an attachment: losing it leaves the job running, unless the job was asked otherwise."""

    def __init__(self, channel: Channel, accepted: Mapping[str, Any]) -> None:
        self._channel = channel
        self._iterated = False
        self._result: Result | None = None
        self.id = str(accepted.get("id", ""))
        self.kind = str(accepted.get("kind", "command"))
        #: False when the id was known already, so that this attached instead of starting.
        self.created = accepted.get("created") is True
        self.pid: int | None = accepted.get("pid")
        self.started_at: float | None = accepted.get("started_at")
        offset = Fields(Fields(accepted).mapping("input")).integer("offset", 0)
        self._input_start = offset
        #: The offset of the next byte of input.
        self.input_offset = offset
        self._input_ended = False

    @property
    def over(self) -> bool:
        """Its END has come, or the connection is lost. Output may still wait to be taken."""
        return self._channel.over

    @property
    def outcome(self) -> Result | None:
        """The result, if it has come."""
        if self._result is None and self._channel.final is not None:
            self._result = Result.from_map(self._channel.final)
        return self._result

    @property
    def error(self) -> GuestdError | None:
        """Why no result will come here; None while it may."""
        return self._channel.error

    @property
    def began(self) -> dict[str, int]:
        """The offset at which the output of each stream begins here."""
        return dict(self._channel.inbox.began)

    @property
    def positions(self) -> dict[str, int]:
        """How far the output of each stream has arrived."""
        return dict(self._channel.inbox.positions)

    @property
    def input_taken(self) -> int:
        """The guest has passed on the input up to here: these bytes never have to be sent again."""
        return self._input_start + self._channel.granted

    @property
    def changed(self) -> trio.lowlevel.ParkingLot:
        """Wakes whoever waits for anything about this job to change."""
        return self._channel.changed

    def __aiter__(self) -> Job:
        self._iterated = True
        return self

    async def __anext__(self) -> Event:
        event = await self._channel.take()
        if event is None:
            raise StopAsyncIteration
        return event

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send input, as fast as the guest takes it. When cancelled, `input_offset` says how much has gone."""
        if self._input_ended:
            raise trio.ClosedResourceError("the input of this job was closed")
        rest = memoryview(data).cast("B")
        while rest:
            sent = await self._channel.send(rest, self.input_offset)
            self.input_offset += sent
            rest = rest[sent:]

    async def close_stdin(self) -> None:
        """The command reads end of file after what was sent."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._input_ended:
            self._channel.event({"event": "eof", "offset": self.input_offset})
            self._input_ended = True

    async def signal(self, name: str) -> None:
        """Send a signal, by name (`INT`, `SIGTERM`)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.signal_now(name)

    def signal_now(self, name: str) -> None:
        """The same without waiting for anything."""
        self._channel.event({"event": "signal", "signal": name.upper().removeprefix("SIG")})

    async def result(self) -> Result:
        """How it ended. Output is thrown away from now on if nobody has begun to take it."""
        if not self._iterated:
            self._channel.discard()
        await self._channel.wait_final()
        result = self.outcome
        assert result is not None
        return result

    def discard(self) -> None:
        """Throw away the output, now and from now on; the command runs on as if it was read."""
        self._channel.discard()

    def detach(self) -> None:
        """Leave the job. Whoever waits for it here gets ConnectionLost."""
        self._channel.reset(ConnectionLost(f"this client has detached from {self.id}"))

    async def wait_over(self) -> None:
        """Wait until nothing more will arrive."""
        while not self._channel.over:
            await self._channel.changed.park()


async def collect(job: Job, limit: int) -> Completed:
    """Take all output, keep the first `limit` bytes of each stream, and wait for the result."""
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    truncated: dict[str, int] = {}
    gaps: list[Gap] = []
    async for event in job:
        if isinstance(event, Gap):
            gaps.append(event)
            continue
        into = kept.setdefault(event.stream, bytearray())
        room = max(0, limit - len(into))
        into += event.data[:room]
        if len(event.data) > room:
            truncated[event.stream] = truncated.get(event.stream, 0) + len(event.data) - room
    result = await job.result()
    return Completed(result, bytes(kept["stdout"]), bytes(kept["stderr"]), truncated, gaps)
