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

from guestd.client.attachment import Attachment
from guestd.client.inbox import Gap, Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeGuard

    from guestd.client.inbox import Item
    from guestd.wire.result import Result

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
    background: bool
    without_mounts: bool
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


class Job(Attachment[Event]):
    """An attachment to any job. Of a shell it gives the output alone; `Shell` gives all there is."""

    def _wants(self, item: Item) -> TypeGuard[Event]:
        return isinstance(item, Output | Gap)


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
