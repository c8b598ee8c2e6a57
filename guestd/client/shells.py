"""A shell as its client has it: the terminal's output as it comes, what is typed, the size, and who may do what.

    shell = await client.shell("work", size=TerminalSize(80, 24))
    async for item in shell:
        match item:
            case Output(stream="terminal" | "screen", data=data): ...   # both are for the terminal, in this order
            case Gap() | Restore() | Role() | Resized() | InputState() | Began(): ...

Output of `terminal` has its place in all that the shell ever printed; what `screen` carries only draws the state that
the shell was in at one such place, and `Restore`, which comes before it, says at which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import trio

from guestd.client.attachment import Attachment
from guestd.client.inbox import Item

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeGuard

    from guestd.client.inbox import RoleName

#: Credit for one shell: a terminal draws it in a blink, and what is behind a Ctrl+C is no more than that.
SHELL_WINDOW = 256 * 1024


class TerminalSize(NamedTuple):
    """In cells, and in pixels where they are known. 0 columns or rows: not known."""

    columns: int
    rows: int
    width: int = 0
    height: int = 0


class ShellOptions(TypedDict, total=False):
    """What a shell can be asked for besides argv, as docs/protocol.md has it. What is left out the guest decides."""

    shell: str
    login: bool
    env: Mapping[str, str]
    cwd: str
    user: str | int
    group: str | int
    groups: Sequence[str | int]
    umask: int
    rlimits: Mapping[str, int | str | Sequence[int | str]]
    nice: int
    oom_score_adj: int
    term: str
    colorterm: str
    size: TerminalSize
    role: RoleName
    client: str
    hold: bool
    without_mounts: bool
    tape: int
    retain: float
    grace: float
    idle_timeout: float
    lifetime: float
    kill_on_disconnect: bool
    integration: bool
    or_restore: bool
    traceparent: str
    tracestate: str


def shell_fields(id: str | None, argv: Sequence[str | bytes] | None, options: ShellOptions) -> dict[str, Any]:
    """The request, as OPEN carries it."""
    fields: dict[str, Any] = {"op": "shell", **options}
    if id is not None:
        fields["id"] = id
    if argv is not None:
        fields["argv"] = list(argv)
    if "size" in options:
        fields["size"] = options["size"]._asdict()
    return fields


class Shell(Attachment[Item]):
    """See the module."""

    @property
    def role(self) -> RoleName:
        """What this attachment may do, as the guest said last."""
        return self._channel.inbox.role or "watcher"

    @property
    def size(self) -> TerminalSize:
        """The size of the shell's screen, as the guest said last."""
        return TerminalSize(self._channel.inbox.columns, self._channel.inbox.rows)

    @property
    def start(self) -> dict[str, int] | Literal["restore"]:
        """From where another attachment goes on. A restore of which a part is missing has to come whole."""
        inbox = self._channel.inbox
        return dict(inbox.positions) if inbox.positions and not inbox.restoring else "restore"

    async def resize(self, columns: int, rows: int, width: int = 0, height: int = 0) -> None:
        """Give the shell's screen another size. The guest heeds it from the owner."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.resize_now(TerminalSize(columns, rows, width, height))

    def resize_now(self, size: TerminalSize) -> None:
        """The same without waiting for anything."""
        self._channel.event({"event": "resize", **size._asdict()})

    async def ask_role(self, role: RoleName) -> None:
        """Ask to be `owner`, `writer` or `watcher`. A `Role` says when it is so."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.ask_role_now(role)

    def ask_role_now(self, role: RoleName) -> None:
        """The same without waiting for anything."""
        self._channel.event({"event": "role", "role": role})

    def _wants(self, item: Item) -> TypeGuard[Item]:
        del item
        return True
