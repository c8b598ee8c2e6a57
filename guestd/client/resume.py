"""`follow`: a job across lost connections, every byte once, output and input.

What may be repeated is decided here, and only here:
- An `exec` the guest has not accepted yet is asked again under the same id, which is safe, unless the guest has been
  started anew meanwhile: then nobody can say whether the command ran, and that is what is said.
- Once accepted, a job is only ever attached to. If the guest has forgotten it, that is an error, not a second run.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guestd.client.backoff import Backoff, Notice
from guestd.client.guest import has_same_jobs
from guestd.client.jobs import Event, Job, exec_fields
from guestd.client.keeper import Final, Keeper
from guestd.client.tasks import background

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from guestd.client.client import Client
    from guestd.client.inbox import Start
    from guestd.client.jobs import ExecOptions


@dataclass(frozen=True)
class Request:
    """What is followed: the fields of an `exec`, or the id of a job, and from where its output is wanted."""

    id: str
    exec: Mapping[str, Any] | None = None
    start: Mapping[str, int] | Start = "start"
    input: bool = False
    hold: bool = True
    #: Of a shell: the output of that command alone.
    command: int | None = None


def to_exec(argv: Sequence[str | bytes] | None, options: ExecOptions) -> Request:
    """Follow a command that is to be started. It gets an id if it has none: so asking twice does not run it twice."""
    id = options.get("id") or "x-" + os.urandom(8).hex()
    fields = {**exec_fields(argv, options), "id": id}
    return Request(id, fields, input=options.get("stdin") == "stream", hold=options.get("hold", True))


class Followed(Keeper[Job, Event]):
    """A job that is followed. Used like a `Job`."""

    def __init__(
        self,
        dial: Callable[[], AbstractAsyncContextManager[Client]],
        request: Request,
        *,
        give_up: float | None,
        backoff: Backoff,
        notice: Callable[[Notice], None],
    ) -> None:
        super().__init__(
            dial, request.id, types=request.input, give_up=give_up, backoff=backoff, notice=notice
        )
        self._request = request
        # By this name the guest knows how much of what we type at a shell has arrived.
        self._typist = "guestd-" + os.urandom(8).hex() if request.input else None

    async def _open(self, client: Client) -> Job:
        request, known, before = self._request, self._guest, self.job
        # Asked from now on, whether an answer comes or not.
        self._guest = client.guest
        if before is not None:
            return await self._attach_to(client, before.positions)
        if request.exec is None:
            job = await self._attach_to(client, request.start)
            # What is given now goes behind what others gave. The input of an exec counts from its first byte.
            self._input.start = job.input_offset
            return job
        if known is None or has_same_jobs(known, client.guest):
            return await client.open_job(request.exec, request.start)
        raise Final(
            f"the guest was started anew before it accepted {request.id}: "
            "nobody can say whether the command ran; look before you start it again",
        )

    async def _attach_to(self, client: Client, start: Mapping[str, int] | Start) -> Job:
        request = self._request
        return await client.attach(
            request.id, start=start, input=request.input, hold=request.hold, client=self._typist,
            command=request.command,
        )  # fmt: skip


def _ignore(_: Notice) -> None:
    pass


@asynccontextmanager
async def follow(
    dial: Callable[[], AbstractAsyncContextManager[Client]],
    request: Request,
    *,
    give_up: float | None = None,
    backoff: Backoff | None = None,
    notice: Callable[[Notice], None] = _ignore,
) -> AsyncGenerator[Followed]:
    """Follow a job across lost connections: `follow(partial(connect, address), to_exec(["make"], {}))`.

    After `give_up` seconds without a connection it fails with the last reason; None goes on for ever. Leaving
    the block leaves the job.
    """
    followed = Followed(dial, request, give_up=give_up, backoff=backoff or Backoff(), notice=notice)
    async with background() as tasks:
        await followed.begin(tasks)
        yield followed
