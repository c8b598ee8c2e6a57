"""A channel that shows a terminal, and types at it: its bytes as DATA of one stream, pictures of its screen as DATA
of another, who sits at it and how large it is as EVENT.

A viewer that asks for a restore gets a picture of the screen first, and then the bytes from exactly there. The same
happens when such a viewer has fallen behind the tape: bytes with a hole in them would leave any screen wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guestd.errors import BadOffset, BadRequest
from guestd.service.jobview import JobView, describe_start
from guestd.service.requests import read_size
from guestd.session.program import INPUT
from guestd.session.terminal import OWNER, ROLES, WATCHER
from guestd.session.terminal_recording import TERMINAL, TERMINAL_NAME
from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from guestd.process.terminal import Size
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.link import Outgoing
    from guestd.service.requests import Start
    from guestd.session.attachment import Gap
    from guestd.session.keyboard import Typist
    from guestd.session.shell import ShellJob
    from guestd.session.terminal import Terminal
    from guestd.terminal.marks import Command
    from guestd.wire.messages import Fields

#: The stream that carries pictures.
SCREEN = 4
RESTORE = "restore"


@dataclass(slots=True, kw_only=True)
class Terms:
    """What somebody who attaches asks for."""

    role: str
    client: str | None
    start: dict[str, Start] | str
    or_restore: bool
    #: None: as the role has it.
    hold: bool | None
    size: Size
    #: Only this command's output.
    command: Command | None = None


class ShellView(JobView):
    """See the module. It is a seat at the terminal."""

    def __init__(
        self, connection: Connection, channel: Channel, job: ShellJob, terms: Terms, since: float, *,
        created: bool, kills: bool,
    ) -> None:  # fmt: skip
        self.role = terms.role
        self.name = connection.peer
        self.since = since
        self.client = terms.client
        self._terms = terms
        self._shell = job
        self._size = terms.size
        self._restores = terms.start == RESTORE or terms.or_restore
        # Between the wish for a picture and its first byte.
        self._restoring = False
        self._lacks_credit = False
        self._events: dict[str, dict[str, object]] = {}
        self._announcement: dict[str, object] | None = None
        self._picture = memoryview(b"")
        self._pictured = 0
        self._typist: Typist | None = None
        start = terms.start if terms.start != RESTORE else "start"
        super().__init__(
            connection, channel, job, created=created, start=start, holds=self._would_hold(),
            takes_input=terms.role != WATCHER, kills=kills,
        )  # fmt: skip

    # --------------------------------------------------------------------------------------- output

    def _role(self) -> str:
        return self.role

    def _begin(self) -> None:
        terminal = self._shell.terminal
        if terminal is None or self._channel.handler is not self:
            super()._begin()
            return
        if terminal.keyboard is not None:
            self._typist = terminal.keyboard.typist(self.client)
        recording = terminal.recording
        # Whoever opened it sees its first bytes, also those that came before the start was known.
        wants_picture = self._terms.start == RESTORE and not self._created
        if recording.end and (wants_picture or self._is_too_late(recording.start)):
            terminal.sit(self)
            self._channel.accept(self._first_word())
            self._want_picture(terminal)
            return
        try:
            at = self._cursor(recording.name, recording.start, recording.end)
        except BadOffset as error:
            self._channel.fail(error)
            return
        terminal.sit(self)
        self._decide_size(terminal)
        self._show_from({TERMINAL: at})

    def _is_too_late(self, oldest: int) -> bool:
        if not self._terms.or_restore or isinstance(self._start, str):
            return False
        wanted = self._start.get(TERMINAL_NAME)
        return wanted is None or wanted < oldest

    def _first_word(self) -> dict[str, Any]:
        found = describe_start(self._job, created=self._created)
        terminal = self._shell.terminal
        if terminal is not None:
            found["role"] = self.role
            found["size"] = {"columns": terminal.size.columns, "rows": terminal.size.rows}
            if self._terms.command is not None:
                # Where this one begins, not where the tape does.
                found["streams"][TERMINAL_NAME]["start"] = self._terms.command.start
            found["input"] = {"offset": self._typist.offset if self._typist is not None else 0}
        return found

    def _want_picture(self, terminal: Terminal) -> None:
        assert terminal.screen is not None
        self._restoring = True
        if self._channel.credit.available:
            terminal.screen.when_current(self._take_picture)
        else:
            # It would only lie here, as large as it is, once for everybody who does not take it.
            self._lacks_credit = True

    def _take_picture(self) -> None:
        terminal = self._shell.terminal
        if terminal is None or terminal.screen is None or self._channel.handler is not self:
            return
        # First the size: what is drawn again for it comes behind the picture.
        self._decide_size(terminal)
        picture = terminal.screen.picture()
        self._picture = memoryview(picture.data)
        self._announcement = {
            "event": RESTORE, "offset": picture.offset, "bytes": len(picture.data), "columns": picture.size.columns,
            "rows": picture.size.rows, "exact": picture.exact,
        }  # fmt: skip
        self._restoring = False
        if self._attachment is None:
            self._attachment = self._job.attach({TERMINAL: picture.offset}, self._news, holds=self._holds)
        else:
            self._attachment.move(TERMINAL, picture.offset)
        if not picture.exact and self._job.result is None:
            terminal.redraw()
        self._channel.wake()

    def pull(self, most: int) -> Outgoing | None:
        if self._events:
            return self._channel.control(Kind.EVENT, self._events.pop(next(iter(self._events))))
        if self._lacks_credit and self._channel.credit.available and self._shell.terminal is not None:
            self._lacks_credit = False
            self._want_picture(self._shell.terminal)
        if self._restoring or self._attachment is None:
            return None
        if self._announcement is not None:
            event, self._announcement = self._announcement, None
            return self._channel.control(Kind.EVENT, event)
        if self._picture:
            piece = self._picture[: min(most, self._channel.credit.available)]
            if not piece:
                return None
            offset = self._pictured
            self._picture = self._picture[len(piece) :]
            self._pictured += len(piece)
            return self._channel.data(SCREEN, offset, piece)
        command = self._terms.command
        if command is not None and command.end is not None:
            left = command.end - self._attachment.position(TERMINAL)
            if left <= 0:
                return self._channel.control(Kind.END, self._last_of_command(command))
            most = min(most, left)
        return super().pull(most)

    def _last_of_command(self, command: Command) -> dict[str, Any]:
        assert self._attachment is not None
        lost = self._attachment.lost.get(TERMINAL)
        gaps = {TERMINAL_NAME: lost} if lost else {}
        return {"id": self._job.id, "kind": self._job.kind, "command": command.to_map(), "gaps": gaps}

    def _gap(self, gap: Gap) -> Outgoing:
        if self._restores and self._shell.terminal is not None:
            self._want_picture(self._shell.terminal)
        return super()._gap(gap)

    # ----------------------------------------------------------------------------------- as a seat

    def role_changed(self, by: str) -> None:
        """It has another role now; `by` is who wanted that."""
        self._takes_input = self.role != WATCHER
        self._holds = self._would_hold()
        if self._attachment is not None:
            self._attachment.hold(holds=self._holds)
        self._tell("role", role=self.role, by=by)

    def size_changed(self, size: Size) -> None:
        self._tell("size", columns=size.columns, rows=size.rows)

    def input_changed(self, *, blocked: bool, waiting: int) -> None:
        state = "blocked" if blocked else "flowing"
        self._tell("input", state=state, waiting=waiting)

    def _tell(self, event: str, **what: object) -> None:
        """The newest of each kind: somebody who does not listen does not have all the others kept."""
        self._events[event] = {"event": event, **what}
        self._channel.wake()

    def _would_hold(self) -> bool:
        return self.role == OWNER if self._terms.hold is None else self._terms.hold

    def _decide_size(self, terminal: Terminal) -> None:
        if self.role == OWNER and self._size.columns:
            terminal.resize(self._size, self)

    # ---------------------------------------------------------------------------------------- input

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        terminal = self._shell.terminal
        if stream != INPUT:
            raise BadRequest(
                f"data for stream {stream}: only {INPUT}, what is typed, goes to a shell", field="stream"
            )
        if not self._takes_input:
            raise BadRequest(
                "you are a watcher here; ask for the role of a writer to type",
                field="role",
                expected="owner or writer",
            )
        if terminal is None or terminal.keyboard is None or self._typist is None:
            # Typed ahead of a shell that could not start.
            self._channel.consumed(len(data))
            return
        terminal.has_typed()
        # Its echo does not wait for more output to go with it, however quickly somebody types.
        self.hurry()
        terminal.keyboard.type(self._typist, offset, data, self._channel.consumed)

    def on_event(self, fields: Fields) -> None:
        terminal = self._shell.terminal
        if terminal is None:
            return
        match fields.text("event", most=64):
            case "resize":
                self._size = read_size(fields, self._size)
                self._decide_size(terminal)
            case "role":
                terminal.take_role(self, fields.choice("role", ROLES))
                self._decide_size(terminal)
            case "eof":
                if terminal.keyboard is not None and self._typist is not None and self._takes_input:
                    terminal.keyboard.end_of_file(self._typist)
            case _:
                super().on_event(fields)

    # ------------------------------------------------------------------------------------------ end

    def closed(self) -> None:
        if self._shell.terminal is not None:
            self._shell.terminal.leave(self)
        super().closed()
