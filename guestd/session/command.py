"""A command: one program, run once, with stdout and stderr apart."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guestd.errors import StartFailed
from guestd.session.input import Input
from guestd.session.job import Job
from guestd.session.program import INPUT, KILLED_FIRST, ProgramRequest, shown
from guestd.session.recording import Recording
from guestd.session.spool import Spool
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.process.identity import Identity
    from guestd.process.plan import Plan
    from guestd.session.program import Programs
    from guestd.session.terms import Surroundings

_log = logging.getLogger("guestd.jobs")
STDOUT, STDERR = 1, 2
STREAM_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


@dataclass(slots=True, kw_only=True)
class CommandRequest(ProgramRequest):
    """See `ProgramRequest`."""

    stdin: str
    spool: bool
    #: A file of at most so many bytes, which holds nobody up when it is full. None: as the settings have it.
    spool_limit: int | None = None


class Command:
    """Makes jobs of requests."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._null)

    def identity_of(self, user: str) -> Identity:
        """Who that is. Raises StartFailed."""
        return self._programs.user(user)

    def begin(
        self,
        job_id: str,
        mark: str,
        request: CommandRequest,
        around: Surroundings,
        *,
        killed: bool = False,
    ) -> Job:
        """A job for the request, already on its way. What cannot be started is a job too, with that as its
        result.
        """
        job = Job(job_id, "command", mark, request.terms, around)
        job.about = {
            "command": shown(request),
            "user": request.user,
            "cwd": request.cwd,
            "background": request.terms.background,
        }
        job.trace, variables = self._programs.trace(request, mark)
        if killed:
            job.refuse(StartFailed(KILLED_FIRST, stage="killed"), EndedBy.KILL)
            return job
        try:
            plan = self._programs.plan(request, self._programs.identity(request), job.id, mark, variables)
        except StartFailed as failure:
            job.refuse(failure)
            return job
        job.about = {**job.about, "user": plan.identity.name}
        job.shown_env = self._programs.shown_env(plan.env)
        try:
            close_child_fds = self._connect(job, request, plan)
        except OSError as error:
            job.refuse(
                StartFailed(
                    f"could not start: no pipes for it: {error.strerror}", stage="fork", errno=error.errno
                )
            )
            return job

        if around.chronicle.store.there:
            digest = request.digest()
            job.facts = lambda: {"digest": digest}
        job.start(plan, close_child_fds)
        return job

    def _connect(self, job: Job, request: CommandRequest, plan: Plan) -> Callable[[], None]:
        """The pipes between the job and its program. Returns what closes the program's ends on this side."""
        with ExitStack() as ours, ExitStack() as theirs:
            if request.stdin == "stream":
                read, write = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, read)
                job.input = Input(write)
                ours.callback(job.input.close)
                plan.fds[INPUT] = read
            elif request.stdin == "closed":
                plan.fds[INPUT] = None
            else:
                plan.fds[INPUT] = self._null
            for stream in (STDOUT, STDERR):
                read, write = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, write)
                plan.fds[stream] = write
                spool = self._spool(request.spool_limit) if request.spool else None
                recording = Recording(
                    stream,
                    STREAM_NAMES[stream],
                    read,
                    request.tape,
                    job.viewers,
                    job.stream_changed,
                    spool,
                )
                ours.callback(recording.close)
                job.recordings.append(recording)
            ours.pop_all()
            return theirs.pop_all().close

    def _spool(self, limit: int | None) -> Spool | None:
        settings = self._programs.settings
        if limit is None:
            return Spool.begin(settings.spool_dir, settings.command.spool_limit)
        try:
            return Spool.begin(settings.spool_dir, limit, patient=False)
        except OSError as error:
            # It was a wish: the command goes without.
            _log.warning("no spool file in %s: %s", settings.spool_dir, error.strerror)
            return None
