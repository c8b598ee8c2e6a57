"""Operations on commands, and on jobs of every kind: exec, attach, wait, kill, ps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import TimedOut
from guestd.service.jobview import JobView, describe_start, read_signal
from guestd.service.requests import ID_FIELD_MAX, SCOPES, read_command, read_start
from guestd.service.shells import attach_shell
from guestd.session.command import STREAM_NAMES
from guestd.session.shell import ShellJob
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.requests import Start
    from guestd.service.session import Session
    from guestd.session.job import Job
    from guestd.wire.messages import Fields


def exec_(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Start a command, or find the one of that id; show it, unless asked to detach at once."""
    request = read_command(session.settings, fields)
    start = _start(fields)
    holds, detach = fields.flag("hold", default=True), fields.flag("detach")
    job, created = session.jobs.start_command(fields.text("id", None, most=ID_FIELD_MAX), request)
    channel.subject = job.id
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
    job = session.jobs.get(fields.text("id", most=ID_FIELD_MAX))
    if isinstance(job, ShellJob) and job.terminal is not None:
        attach_shell(session, connection, channel, fields, job)
        return
    JobView(
        connection, channel, job, created=False, start=_start(fields),
        holds=fields.flag("hold"), takes_input=fields.flag("input"), kills=False,
    )  # fmt: skip


def _start(fields: Fields) -> dict[str, Start] | str:
    return read_start(fields, STREAM_NAMES.values(), "start", "end") or "start"


def wait(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """The result, once there is one."""
    job = session.jobs.get(fields.text("id", most=ID_FIELD_MAX))
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
    job_id = fields.text("id", most=ID_FIELD_MAX)
    number = read_signal(fields) if fields.has("signal") else None
    grace = fields.seconds("grace", None)
    scope = fields.choice("scope", SCOPES, None)
    if not session.jobs.knows(job_id):
        remembered = session.jobs.early_kills.remember(job_id)
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
        "survives": job.survives,
        "age": None if job.started_at is None else session.clock()[0] - job.started_at,
    }
    del row["created"]
    if job.pid is not None and job.result is None:
        row["cwd"] = _current_directory(job.pid) or row["cwd"]
    if isinstance(job, ShellJob) and job.terminal is not None:
        row.update(job.terminal.describe())
    if job.result is not None:
        row["result"] = job.result.to_map()
    return row


def _current_directory(pid: int) -> str | None:
    """Where it is now, as the kernel says."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None
