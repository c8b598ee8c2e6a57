"""InvokeAgentRuntimeCommand: a command, and its output as a stream of events.

The command is a job like any other. While its client reads, it waits for it and nothing is lost; a client that has gone
holds nobody up. The same `amz-sdk-invocation-id` again is the same command, shown from its start.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

import trio

from guestd import observe
from guestd.errors import BadRequest
from guestd.process.identity import DEFAULT_SHELL, FALLBACK_SHELL
from guestd.service.agentcore import eventstream
from guestd.service.agentcore.failures import INTERNAL
from guestd.service.agentcore.text import Text
from guestd.service.requests import read_command
from guestd.service.writer import COALESCE_BYTES, COALESCE_TIME
from guestd.session.attachment import Gap, stop_viewing
from guestd.session.command import STREAM_NAMES
from guestd.session.jobid import ID_MAX
from guestd.wire.messages import Fields
from guestd.wire.result import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.config import Settings
    from guestd.service.agentcore.exchange import Exchange
    from guestd.service.agentcore.routes import Route
    from guestd.service.agentcore.surface import Surface
    from guestd.session.command import CommandRequest
    from guestd.session.job import Job
    from guestd.wire.result import Result

COMMAND_MAX = 65536
_TIMEOUT, _TIMEOUT_MAX = 300, 3600
#: A command of that many characters, each written by JSON as two escapes, and what else may stand around it.
_BODY_MAX = 12 * COMMAND_MAX + 64 * 1024
#: What the kernel takes as one word of a program's arguments, with its end.
_WORD_MAX = 128 * 1024 - 1
#: Taken at once: with what JSON adds to text, one event.
_PIECE = 48 * 1024
#: Events that are sent together.
_GATHER = 256 * 1024
_PREFIX = "agentcore-"
_TRACE = ("traceparent", "tracestate")
#: Puts a command together again that is too long for one word.
_JOINED = 'c=; for w; do c=$c$w; done; set --; unset w; eval "unset c; $c"'


async def respond(surface: Surface, exchange: Exchange, route: Route) -> None:
    """Start the command, or find the one of that id, and show it to its end."""
    settings = surface.session.settings
    body = await exchange.body(_BODY_MAX, settings.limits.handshake)
    request = read_request(settings, read_body(body), trace_of(exchange))
    job_id = job_id_of(exchange.header(b"amz-sdk-invocation-id"))
    surface.used("command")
    await surface.wait_for_mounts(job_id)
    job, _ = surface.session.jobs.start_command(job_id, request)
    surface.accepted(exchange, route, job=job.id)
    headers = [*surface.headers(exchange, route), (b"Content-Type", eventstream.CONTENT_TYPE)]
    stream = CommandStream(surface, exchange, job)
    try:
        # At once: an SDK that hears nothing for long sends its request again.
        await exchange.begin(200, headers, b"OK")
        await exchange.send(eventstream.chunk({"contentStart": {}}))
        await stream.run()
        await exchange.end()
    finally:
        stream.close()


def job_id_of(invocation: bytes | None) -> str | None:
    """The job that a request with that id is about; None where it says none."""
    if not invocation:
        return None
    name = _PREFIX + invocation.decode("ascii", "replace")
    if len(name) <= ID_MAX and all(each.isascii() and (each.isalnum() or each in "-_") for each in name):
        return name
    return _PREFIX + blake2b(invocation, digest_size=16).hexdigest()


def read_body(body: bytes) -> Mapping[str, object]:
    """What a request says, as JSON."""
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request's body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadRequest("the request's body is not a JSON object")
    return cast("dict[str, object]", found)


def read_request(settings: Settings, said: Mapping[str, object], trace: Mapping[str, str]) -> CommandRequest:
    """The request as a native one would say it."""
    fields = Fields(said)
    command = fields.text("command", most=COMMAND_MAX)
    if not command or any("\ud800" <= each <= "\udfff" for each in command):
        raise fields.bad(
            "command", f"text of 1 to {COMMAND_MAX} characters, none of them half a surrogate pair"
        )
    timeout = fields.integer("timeout", _TIMEOUT, least=1, most=_TIMEOUT_MAX)
    surface = settings.agentcore
    request = read_command(
        settings,
        Fields(
            {
                **_program(settings, command),
                "timeout": timeout,
                "user": user_of(settings),
                "spool": surface.spool > 0,
                **trace,
            }
        ),
    )
    request.spool_limit = surface.spool or None
    return request


def _program(settings: Settings, command: str) -> dict[str, object]:
    data = command.encode()
    if len(data) <= _WORD_MAX:
        return {"shell": command}
    shell = settings.shell or (DEFAULT_SHELL if os.path.exists(DEFAULT_SHELL) else FALLBACK_SHELL)
    # A quarter of the limit in characters is within it in bytes, whatever they are.
    size = _WORD_MAX // 4
    words = [command[at : at + size] for at in range(0, len(command), size)]
    return {"argv": [shell, "-c", _JOINED, shell, *words]}


def user_of(settings: Settings) -> str | None:
    """Whom commands and shells of this surface run as: root, as AgentCore has it, where guestd can."""
    return settings.agentcore.user or ("root" if os.geteuid() == 0 else None)


def trace_of(exchange: Exchange) -> dict[str, str]:
    """The trace that a request belongs to, as a native one would say it."""
    found = {name: exchange.header(name.encode()) for name in _TRACE}
    return {name: value.decode("latin-1") for name, value in found.items() if value}


class CommandStream:
    """One client that is shown a command."""

    def __init__(self, surface: Surface, exchange: Exchange, job: Job) -> None:
        self._exchange = exchange
        self._job = job
        self._surface = surface
        self._news = trio.Event()
        self._leaves = False
        self._texts = {stream: Text() for stream in STREAM_NAMES}
        self._last_sent = 0.0
        before = surface.streams.get(job.id)
        if before is not None:
            # Whoever asks again has given up on that answer.
            before.hold(holds=False)
        self._attachment = job.attach(
            {recording.stream: 0 for recording in job.recordings}, self._wake, holds=True
        )
        surface.streams[job.id] = self._attachment
        exchange.leaving.append(self._leave)
        observe.began("attachment", self, job=job.id, job_of=job, who=exchange.peer, role="holder")

    def close(self) -> None:
        stop_viewing(self, self._attachment)
        if self._surface.streams.get(self._job.id) is self._attachment:
            del self._surface.streams[self._job.id]

    def _wake(self) -> None:
        self._news.set()

    def _leave(self) -> None:
        self._leaves = True
        self._wake()

    async def run(self) -> None:
        """To the command's end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_client)
            await self._show()
            nursery.cancel_scope.cancel()

    async def _watch_client(self) -> None:
        await self._exchange.hung_up()
        # It may still listen, or be gone: that shows when something is sent. Until then it holds nobody up.
        self._attachment.hold(holds=False)

    async def _show(self) -> None:
        while True:
            self._news = trio.Event()
            events = b"".join(self._gather())
            if events:
                self._last_sent = trio.current_time()
                await self._exchange.send(events)
            elif self._attachment.finished:
                break
            elif self._leaves:
                message = (
                    "guestd is leaving, and the command goes on; the same amz-sdk-invocation-id again shows it from its"
                    " start"
                )
                await self._exchange.send(eventstream.exception(INTERNAL.name, message))
                return
            else:
                await self._wait()
        assert self._job.result is not None
        await self._exchange.send(b"".join((*self._rest(), *last_events(self._job.result))))

    async def _wait(self) -> None:
        """For more; and little output in quick succession is sent together."""
        await self._news.wait()
        if self._attachment.pending < COALESCE_BYTES and self._job.result is None:
            await trio.sleep_until(self._last_sent + COALESCE_TIME)

    def _gather(self) -> list[bytes]:
        events: list[bytes] = []
        size = 0
        while size < _GATHER:
            piece = self._attachment.take(_PIECE)
            if piece is None:
                break
            name, text = STREAM_NAMES[piece.stream], self._texts[piece.stream]
            if isinstance(piece, Gap):
                events += _told(name, text.end())
                events += _told(
                    "stderr", f"guestd: {piece.end - piece.start} bytes of {name} are not kept any more\n"
                )
                continue
            size += len(piece.data)
            events += _told(name, text.feed(bytes(piece.data)))
        return events

    def _rest(self) -> list[bytes]:
        return [
            event for stream, text in self._texts.items() for event in _told(STREAM_NAMES[stream], text.end())
        ]


def _told(stream: str, text: str) -> list[bytes]:
    return list(eventstream.deltas(stream, text)) if text else []


def last_events(result: Result) -> list[bytes]:
    """How a command ended: exactly, or not known."""
    if result.outcome is Outcome.UNKNOWN:
        return [
            eventstream.exception(INTERNAL.name, result.message or "what became of the command is not known")
        ]
    code, status = result.status, "COMPLETED"
    events: list[bytes] = []
    if result.outcome is Outcome.TIMED_OUT:
        code, status = -1, "TIMED_OUT"
    elif result.outcome is Outcome.NOT_STARTED:
        code = -1
        events += _told("stderr", f"guestd: {result.message}\n")
    events.append(eventstream.chunk({"contentStop": {"exitCode": code, "status": status}}))
    return events
