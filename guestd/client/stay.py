"""`stay`: a shell across lost connections. The person who sits at it keeps their place, their size, their keys.

What is asked for when the connection is back:
- A shell that was accepted once is only ever attached to. If the guest has forgotten it, that is an error and said so.
- One whose first answer was lost is opened again under its id. If nobody else can have that id, it is looked for first:
  what ran and has ended meanwhile does not run twice.
- Output goes on at the exact byte, or, where that is no longer kept, with the screen as it is.
- The last size and the last role. But an ownership that somebody else took meanwhile is theirs: this one then comes
  back as a writer.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guestd.client.backoff import Backoff, Notice
from guestd.client.guest import has_same_jobs
from guestd.client.inbox import Item
from guestd.client.keeper import Keeper
from guestd.client.shells import SHELL_WINDOW, Shell, shell_fields
from guestd.client.tasks import background
from guestd.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from guestd.client.client import Client
    from guestd.client.inbox import RoleName, ShellStart
    from guestd.client.shells import ShellOptions, TerminalSize


@dataclass(frozen=True)
class ShellRequest:
    """Where to sit. `open` are the fields that open the shell; without them it must be there."""

    id: str
    client: str
    open: Mapping[str, Any] | None = None
    #: Nobody else knows the id.
    own_id: bool = False
    role: RoleName = "owner"
    size: TerminalSize | None = None
    start: Mapping[str, int] | ShellStart = "restore"
    or_restore: bool = True
    hold: bool | None = None
    window: int = SHELL_WINDOW

    @property
    def ends_with_us(self) -> bool:
        return self.open is not None and self.open.get("kill_on_disconnect") is True


def to_shell(
    id: str | None,
    argv: Sequence[str | bytes] | None,
    options: ShellOptions,
    start: Mapping[str, int] | ShellStart = "restore",
) -> ShellRequest:
    """Stay at a shell that is opened if it is not there. It gets an id if it has none, so that asking twice is safe."""
    own_id = id is None
    id = id or "s-" + os.urandom(5).hex()
    client = options.get("client") or new_client()
    return ShellRequest(
        id, client, {**shell_fields(id, argv, options), "client": client}, own_id, options.get("role", "owner"),
        options.get("size"), start, hold=options.get("hold"),
    )  # fmt: skip


def new_client() -> str:
    """A name for somebody who types, that nobody else has."""
    return "guestd-" + os.urandom(8).hex()


class Stayed(Keeper[Shell, Item]):
    """A shell that is stayed at. Used like a `Shell`."""

    def __init__(
        self,
        dial: Callable[[], AbstractAsyncContextManager[Client]],
        request: ShellRequest,
        *,
        give_up: float | None,
        backoff: Backoff,
        notice: Callable[[Notice], None],
    ) -> None:
        super().__init__(
            dial, request.id, types=request.role != "watcher", give_up=give_up, backoff=backoff, notice=notice
        )
        self._request = request
        self._size = request.size
        self._wanted_role: RoleName | None = None
        self._redraws = False

    @property
    def role(self) -> str:
        """What may be done here, as the guest said last."""
        return self._request.role if self.job is None else self.job.role

    def resize(self, size: TerminalSize) -> None:
        """Give the screen another size, now or when there is a connection again."""
        self._size = size
        if self.job is not None and not self.job.over:
            self.job.resize_now(size)

    def ask_role(self, role: RoleName) -> None:
        """Ask for another role, now or when there is a connection again."""
        if self.job is not None and not self.job.over:
            self.job.ask_role_now(role)
        else:
            self._wanted_role = role

    def redraw(self) -> None:
        """See the screen as it is, whatever is drawn there: now, or when there is a connection again.

        A shell that ends with its connection is left as it is, because this is a new attachment.
        """
        if self._request.ends_with_us:
            return
        self._redraws = True
        if self.job is not None and not self.job.over and not self._anew:
            self._anew = True
            self.job.detach()

    async def _open(self, client: Client) -> Shell:
        before, asked = self.job, self._guest is not None
        if before is None:
            self._guest = client.guest
            shell = await self._open_first(client, asked=asked)
            # What is given now is the first that this client types, or goes behind what it typed under this name.
            self._input.start = shell.input_offset
            return shell
        shell = await self._attach_to(client, await self._role(client, before), self._start(before))
        self._wanted_role, self._redraws = None, False
        return shell

    async def _open_first(self, client: Client, *, asked: bool) -> Shell:
        request = self._request
        if request.open is None:
            return await self._attach_to(client, request.role, request.start)
        if asked and request.own_id:
            try:
                return await self._attach_to(client, request.role, request.start)
            except NotFound:
                pass  # the first request never arrived
        fields = dict(request.open)
        if self._size is not None:
            fields["size"] = self._size._asdict()
        return await client.open_shell(fields, request.start, request.window)

    async def _attach_to(
        self, client: Client, role: RoleName, start: Mapping[str, int] | ShellStart
    ) -> Shell:
        request = self._request
        try:
            return await client.attach_shell(
                request.id, role=role, client=request.client, size=self._size, start=start,
                or_restore=request.or_restore, hold=request.hold, window=request.window,
            )  # fmt: skip
        except NotFound as error:
            if self.job is None:
                raise
            why = (
                "the guest was started anew"
                if not has_same_jobs(self._guest or {}, client.guest)
                else "it ended, and is no longer kept"
            )
            raise NotFound(f"shell {request.id!r} is gone: {why}", id=request.id) from error

    def _start(self, before: Shell) -> Mapping[str, int] | ShellStart:
        return "restore" if self._redraws else before.start

    async def _role(self, client: Client, before: Shell) -> RoleName:
        """The last one, but no ownership that somebody else has now."""
        if self._wanted_role is not None:
            return self._wanted_role
        if before.role != "owner":
            return before.role
        for row in await client.ps():
            if row.get("id") == self.id and any(
                viewer.get("role") == "owner" and viewer.get("client") != self._request.client
                for viewer in row.get("viewers") or ()
            ):
                return "writer"
        return "owner"


def _ignore(_: Notice) -> None:
    pass


@asynccontextmanager
async def stay(
    dial: Callable[[], AbstractAsyncContextManager[Client]],
    request: ShellRequest,
    *,
    give_up: float | None = None,
    backoff: Backoff | None = None,
    notice: Callable[[Notice], None] = _ignore,
) -> AsyncGenerator[Stayed]:
    """Stay at a shell across lost connections: `stay(partial(connect, address), to_shell("work", None, {}))`.

    Nothing but a refusal ends that, unless there is a `give_up`, in seconds without a connection. Leaving the block
    leaves the shell.
    """
    stayed = Stayed(dial, request, give_up=give_up, backoff=backoff or Backoff(), notice=notice)
    async with background() as tasks:
        await stayed.begin(tasks)
        yield stayed
