"""A channel that shows a job: its output as DATA, its gaps as EVENT, its result as END; input and signals the
other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from guestd import observe
from guestd.errors import BadOffset, BadRequest
from guestd.service.writer import COALESCE_BYTES, COALESCE_TIME
from guestd.session.attachment import Gap, stop_viewing
from guestd.session.input import Input
from guestd.session.program import INPUT
from guestd.wire.frames import Kind
from guestd.wire.result import EndedBy, signal_number

if TYPE_CHECKING:
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.link import Outgoing
    from guestd.service.requests import Start
    from guestd.session.attachment import Attachment
    from guestd.session.job import Job
    from guestd.wire.messages import Fields


class JobView:
    """One attachment of one client. Begins once the job's program runs, or is known not to."""

    def __init__(
        self, connection: Connection, channel: Channel, job: Job, *, created: bool, start: dict[str, Start] | str,
        holds: bool, takes_input: bool, kills: bool,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._channel = channel
        self._job = job
        self._created = created
        self._start = start
        self._holds = holds
        self._takes_input = takes_input
        self._kills = kills
        self._attachment: Attachment | None = None
        self._last_sent = 0.0
        self._waits = False
        self._channel.hurries = True
        channel.subject = job.id
        channel.handler = self
        observe.began(
            "attachment",
            self,
            job=job.id,
            job_of=job,
            who=connection.peer,
            role=self._role(),
            trace=channel.trace,
        )
        job.start_settled.then(self._begin)

    def _role(self) -> str:
        """What it is to the job, in a word."""
        return "holder" if self._holds else "watcher"

    def _begin(self) -> None:
        if self._channel.handler is not self:
            return  # the client has gone meanwhile
        try:
            cursors = {recording.stream: self._cursor(recording.name, recording.start, recording.end)
                       for recording in self._job.recordings}  # fmt: skip
        except BadOffset as error:
            self._channel.fail(error)
            return
        self._show_from(cursors)

    def _show_from(self, cursors: dict[int, int]) -> None:
        attachment = self._job.attach(cursors, self._news, holds=self._holds)
        self._attachment = attachment
        has_news = attachment.pending > 0 or attachment.finished
        self._channel.accept(self._first_word(), urgent=has_news)
        if has_news:
            self._channel.wake()

    def _first_word(self) -> dict[str, Any]:
        return describe_start(self._job, created=self._created)

    def _cursor(self, name: str, oldest: int, end: int) -> int:
        if isinstance(self._start, str):
            return end if self._start == "end" else oldest
        wanted = self._start.get(name)
        if wanted is None:
            return oldest
        if wanted > end:
            raise BadOffset(f"{name} has {end} bytes; there is no offset {wanted} to continue from")
        return wanted

    # --------------------------------------------------------------------------------------- output

    def _news(self) -> None:
        attachment = self._attachment
        # While little output waits for its 2 ms, more little output need not wake anybody.
        if (
            self._waits
            and attachment is not None
            and self._job.result is None
            and attachment.pending < COALESCE_BYTES
        ):
            return
        self._channel.wake()

    def hurry(self) -> None:
        """The next output is to leave at once."""
        self._last_sent = 0.0
        self._waits = False

    def pull(self, most: int) -> Outgoing | None:
        attachment = self._attachment
        if attachment is None:
            return None
        if attachment.finished:
            return self._channel.control(Kind.END, self._last_word(attachment))
        credit = self._channel.credit.available
        pending = attachment.pending
        if not credit or not pending:
            return None
        if pending < COALESCE_BYTES and self._job.result is None:
            due = self._last_sent + COALESCE_TIME
            now = trio.current_time()
            if now < due:
                self._waits = True
                self._connection.later(self._channel, due)
                return None
            self._last_sent = now
        self._waits = False
        piece = attachment.take(min(most, credit))
        self._channel.hurries = False
        if piece is None:
            return None
        if isinstance(piece, Gap):
            return self._gap(piece)
        return self._channel.data(piece.stream, piece.offset, piece.data)

    def _gap(self, gap: Gap) -> Outgoing:
        event = {"event": "gap", "stream": gap.stream, "from": gap.start, "to": gap.end}
        return self._channel.control(Kind.EVENT, event)

    def _last_word(self, attachment: Attachment) -> dict[str, Any]:
        assert self._job.result is not None
        names = {recording.stream: recording.name for recording in self._job.recordings}
        return {
            **self._job.result.to_map(),
            "gaps": {names[stream]: lost for stream, lost in attachment.lost.items()},
        }

    # ---------------------------------------------------------------------------------------- input

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        if stream != INPUT:
            raise BadRequest(
                f"data for stream {stream}: only {INPUT}, the input, goes to a job", field="stream"
            )
        job_input = self._job.input
        if not isinstance(job_input, Input) or not self._takes_input:
            raise BadRequest(
                "this job's input is not yours to write: start it with stdin=stream, and attach with input=true",
                field="stdin", expected="stream",
            )  # fmt: skip
        job_input.write(offset, data, self._channel.consumed)

    def on_event(self, fields: Fields) -> None:
        match fields.text("event", most=64):
            case "eof":
                if isinstance(self._job.input, Input) and self._takes_input:
                    self._job.input.finish(fields.integer("offset"))
            case "signal":
                self._job.signal(read_signal(fields), first_only=False)
            case _:
                pass  # an event of a newer protocol; what is not known is ignored

    # ------------------------------------------------------------------------------------------ end

    def closed(self) -> None:
        stop_viewing(self, self._attachment)
        if self._kills:
            # Nothing happens where the job has ended: then this is just the channel's own end.
            self._job.end(EndedBy.DISCONNECT)


def describe_start(job: Job, *, created: bool) -> dict[str, Any]:
    """What ACCEPT says of a job."""
    return {
        "id": job.id,
        "kind": job.kind,
        "created": created,
        "pid": job.pid,
        "state": job.state,
        "started_at": job.started_at,
        "input": {"offset": job.input.offset if job.input is not None else 0},
        "streams": {
            recording.name: {"start": recording.start, "end": recording.end} for recording in job.recordings
        },
    }


def read_signal(fields: Fields) -> int:
    """A signal by name or number."""
    given = fields.name_or_number("signal")
    number = None if given is None else signal_number(str(given))
    if number is None:
        raise fields.bad("signal", "a signal's name or number, as TERM, SIGTERM or 15")
    return number
