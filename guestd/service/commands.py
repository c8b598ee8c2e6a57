"""Operations on jobs: exec, attach, wait, kill, ps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import trio

from guestd.errors import BadRequest, LimitReached, TimedOut
from guestd.service.jobview import JobView, describe_start, read_signal
from guestd.session.command import CommandRequest, read_rlimits
from guestd.session.terms import Terms
from guestd.tape import LEAST_CAPACITY
from guestd.wire.messages import Fields
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from guestd.config import Settings
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.jobview import Start
    from guestd.service.session import Session
    from guestd.session.job import Job

_TRACE_FIELDS = {"traceparent": "TRACEPARENT", "tracestate": "TRACESTATE"}
_SCOPES = ("tree", "leave")
_MOST_DRAIN = 3600.0
_POINTER = 8
_LEAST_OOM, _MOST_OOM = -1000, 1000


def exec_(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Start a command, or find the one of that id; show it, unless asked to detach at once."""
    request = read_request(session.settings, fields)
    start = _read_start(fields)
    holds, detach = fields.flag("hold", default=True), fields.flag("detach")
    job, created = session.jobs.start_command(fields.text("id", None, most=1024), request)
    if detach:

        def begun() -> None:
            channel.accept(describe_start(job, created=created))
            channel.end({"id": job.id, "detached": True})

        job.start_settled.then(begun)
        return
    JobView(
        connection, channel, job, created=created, start=start, holds=holds, takes_input=True,
        kills=request.terms.kill_on_disconnect,
    )  # fmt: skip


def attach(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Show a job that exists, from where the client says."""
    start = _read_start(fields)
    JobView(
        connection, channel, session.jobs.get(fields.text("id", most=1024)), created=False, start=start,
        holds=fields.flag("hold"), takes_input=fields.flag("input"), kills=False,
    )  # fmt: skip


def wait(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """The result, once there is one."""
    job = session.jobs.get(fields.text("id", most=1024))
    timeout = fields.seconds("timeout", None)
    channel.accept({"id": job.id, "state": job.state})

    async def answer() -> dict[str, Any]:
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            await job.ended.wait()
        if job.result is None:
            raise TimedOut(f"job {job.id} did not end within {timeout} s; it goes on", id=job.id)
        return job.result.to_map()

    connection.start_soon(channel, answer, only_asks=True)


def kill(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """With a signal: send it. Without: end the job, and answer when it has ended."""
    job_id = fields.text("id", most=1024)
    number = read_signal(fields) if fields.has("signal") else None
    grace = fields.seconds("grace", None)
    scope = fields.choice("scope", _SCOPES, None)
    if not session.jobs.knows(job_id):
        remembered = session.jobs.remember_kill(job_id)
        channel.accept({})
        channel.end({"id": job_id, "state": "unknown", "remembered": remembered})
        return
    job = session.jobs.get(job_id)
    channel.accept({})
    if number is not None:
        reached = job.signal(number, first_only=scope == "leave")
        channel.end({"id": job.id, "state": job.state, "signalled": reached})
        return
    was_ended = job.result is not None
    job.end(EndedBy.KILL, grace=grace, scope=scope)
    connection.start_soon(channel, lambda: _ended(job, grace, was_ended=was_ended))


async def _ended(job: Job, grace: float | None, *, was_ended: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"id": job.id, "already_ended": was_ended}
    if was_ended:
        # The command is over; a kill now is for what it left running.
        ending = await job.end_left(job.terms.grace if grace is None else grace)
        if ending is not None:
            answer["killed_left"] = len(ending.gone)
            answer["unreached_left"] = len(ending.unreached)
    await job.ended.wait()
    assert job.result is not None
    return {**job.result.to_map(), **answer, "state": job.state}


def ps(session: Session, _: Connection, channel: Channel, fields: Fields) -> None:
    """Every job that runs or is kept."""
    del fields
    channel.accept({})
    channel.end({"jobs": [_row(session, job) for job in session.jobs]})


def _row(session: Session, job: Job) -> dict[str, Any]:
    row: dict[str, Any] = {
        **describe_start(job, created=False),
        **job.about,
        "attached": len(job.attachments),
        "age": None if job.started_at is None else session.clock()[0] - job.started_at,
    }
    del row["created"]
    if job.pid is not None and job.result is None:
        row["cwd"] = _current_directory(job.pid) or row["cwd"]
    if job.result is not None:
        row["result"] = job.result.to_map()
    return row


def _current_directory(pid: int) -> str | None:
    """Where it is now, as the kernel says."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def read_request(settings: Settings, fields: Fields) -> CommandRequest:
    """What is asked for, checked, with the configured defaults for what is not said."""
    command, limits = settings.command, settings.limits
    words = fields.raw("argv")
    if isinstance(words, list) and len(cast("list[object]", words)) > limits.argv // _POINTER:
        raise LimitReached(
            f"argv has {len(cast('list[object]', words))} words; the kernel counts a pointer for each beside them,"
            f" and the limit is {limits.argv} bytes; pass the data by stdin, or raise limits.argv",
            limit=limits.argv, setting="limits.argv",
        )  # fmt: skip
    argv = fields.texts("argv", None)
    shell = fields.text("shell", None, most=limits.argv)
    if (argv is None) == (shell is None):
        raise BadRequest(
            "give either `argv` or `shell`, and not both", field="argv", expected="argv or shell"
        )
    if argv is not None:
        if not argv:
            raise BadRequest(
                "`argv` is empty; its first word is the program", field="argv", expected="at least one word"
            )
        size = sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in argv)
        if size > limits.argv:
            raise LimitReached(
                f"argv has {size} bytes; the limit is {limits.argv}; pass the data by stdin, or raise limits.argv",
                limit=limits.argv, setting="limits.argv",
            )  # fmt: skip
    tape = fields.integer("tape", command.tape, least=LEAST_CAPACITY, most=limits.tapes)
    timeout = fields.seconds("timeout", command.timeout)
    return CommandRequest(
        argv=argv,
        shell=shell,
        env=_read_env(fields, limits.env),
        cwd=fields.text("cwd", None, most=4096),
        user=fields.name_or_number("user"),
        group=fields.name_or_number("group"),
        groups=_read_groups(fields),
        stdin=fields.choice("stdin", ("none", "stream", "closed"), "none"),
        umask=fields.integer("umask", command.umask, most=0o777),
        rlimits={**command.rlimits, **read_rlimits(fields.mapping("rlimits"))},
        nice=fields.integer("nice", command.nice, least=-20, most=19),
        oom_score_adj=fields.integer(
            "oom_score_adj", command.oom_score_adj, least=_LEAST_OOM, most=_MOST_OOM
        ),
        tape=tape,
        spool=fields.flag("spool"),
        terms=Terms(
            timeout=timeout or None,
            grace=fields.seconds("grace", command.grace),
            drain=fields.seconds("drain", command.drain, most=_MOST_DRAIN),
            retain=fields.seconds("retain", command.retain),
            scope=fields.choice("scope", _SCOPES, None),
            kill_on_disconnect=fields.flag("kill_on_disconnect"),
        ),
        trace={name: fields.text(key, most=8192) for key, name in _TRACE_FIELDS.items() if fields.has(key)},
    )


def _read_env(fields: Fields, most: int) -> dict[str, str]:
    env = fields.text_map("env")
    size = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise BadRequest(
                f"{name[:80]!r} is no name of an environment variable", field="env",
                expected="names that are not empty, without = and NUL",
            )  # fmt: skip
        size += len(name) + len(value.encode("utf-8", "surrogateescape")) + 2
    if size > most:
        raise LimitReached(
            f"env has {size} bytes; the limit is {most}; pass the data by stdin or a file, or raise limits.env",
            limit=most, setting="limits.env",
        )  # fmt: skip
    return env


def _read_groups(fields: Fields) -> list[str | int] | None:
    given = fields.raw("groups")
    if given is None:
        return None
    groups: list[str | int] = []
    for each in cast("list[object]", given if isinstance(given, list) else [given]):
        group = Fields({"groups": each}).name_or_number("groups")
        if group is None:
            raise fields.bad("groups", "a list of names or numbers")
        groups.append(group)
    return groups


def _read_start(fields: Fields) -> dict[str, Start] | str:
    given = fields.raw("from")
    if given is None:
        return "start"
    if isinstance(given, str):
        return fields.choice("from", ("start", "end"))
    offsets = fields.mapping("from")
    for name in offsets:
        if name not in {"stdout", "stderr"}:
            raise fields.bad("from", "offsets for stdout and stderr, or `start`, or `end`")
    return {name: _offset(fields, offset) for name, offset in offsets.items()}


def _offset(fields: Fields, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise fields.bad("from", "offsets that are whole numbers from 0 on")
