"""Work on file systems, done outside of this process: the worker, and the programs that check and make them.

Each is a job of guestd's own, so it can be ended, and be left behind when it cannot: a system call that waits for a
dead disk or server ends when the kernel gives up, and nobody here waits for that.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import GuestdError
from guestd.lifecycle.own import kept, own_request, run_own
from guestd.storage import REQUEST
from guestd.storage.kmsg import KernelLog
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestd.config import Settings
    from guestd.lifecycle.own import Done
    from guestd.session.job import Job
    from guestd.session.jobs import Jobs

#: Where programs of an administrator are, also when nobody has set PATH.
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")


class MountTrouble(Exception):
    """Something could not be done. `stage` `where` is nothing that time mends; `said` are the kernel's words."""

    def __init__(self, why: str, *, stage: str = "", errno: int = 0, said: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.stage = stage
        self.errno = errno
        self.said = list(said)


class Outside:
    """Asks for work to be done."""

    def __init__(self, jobs: Jobs, settings: Settings) -> None:
        self.jobs = jobs
        self.settings = settings

    async def do(self, name: str, limit: float, **request: object) -> dict[str, Any]:
        """One request to the worker, under a job id that begins with `name`. Raises MountTrouble."""
        log = KernelLog()
        try:
            answers = await self._answers(name, limit, request)
            if not answers:
                raise MountTrouble(
                    f"it did not answer within {limit:.3g} s, and is given up", stage="time", said=log.lines()
                )
        finally:
            log.close()
        answer = answers[0]
        if not answer["ok"]:
            raise MountTrouble(
                answer["why"], stage=answer["stage"], errno=answer["errno"], said=answer["said"]
            )
        return answer

    async def look(self, paths: Sequence[str], limit: float) -> dict[str, dict[str, Any]]:
        """How the file systems at these paths do, by path; those that did not answer are missing."""
        answers = await self._answers("mounts-look", limit, {"do": "look", "paths": list(paths)})
        return {each["path"]: each for each in answers}

    async def _answers(self, name: str, limit: float, request: object) -> list[dict[str, Any]]:
        asked = own_request(
            self.settings,
            (sys.executable, "-I", "-S", _WORKER),
            user=os.geteuid(),
            cwd="/",
            grace=0.0,
            # Not an argument: those are for everybody to see.
            env={REQUEST: json.dumps(request)},
        )
        try:
            job = self.jobs.start_own(self.free_id(name), asked)
        except GuestdError as error:
            raise MountTrouble(error.message, stage="start") from None
        with kept(job):
            try:
                with trio.move_on_after(limit):
                    await job.ended.wait()
            finally:
                # Stuck in the kernel it may not notice; nobody waits for it.
                job.end(EndedBy.TIMEOUT, grace=0)
            return _read(job)

    async def program(self, name: str, argv: Sequence[str], limit: float) -> Done:
        """Run one of the system's programs to its end. Raises MountTrouble where it is not installed."""
        path = next((each for each in _places(argv[0]) if os.access(each, os.X_OK)), None)
        if path is None:
            raise MountTrouble(f"{argv[0]} is not installed", stage="program")
        asked = own_request(self.settings, (path, *argv[1:]), user=os.geteuid(), cwd="/", grace=1.0)
        try:
            return await run_own(self.jobs, self.free_id(name), asked, limit)
        except GuestdError as error:
            raise MountTrouble(error.message, stage="start") from None

    def free_id(self, name: str) -> str:
        """One that no job has which still runs: the one before may hang."""
        jobs = self.jobs
        job_id = name = "".join(each if each.isalnum() or each in "-_" else "-" for each in name)[:100]
        number = 1
        while jobs.knows(job_id) and jobs.get(job_id).result is None:
            number += 1
            job_id = f"{name}-{number}"
        return job_id

    def running(self, prefix: str) -> list[Job]:
        """Jobs of such an id that have not ended."""
        return [job for job in self.jobs if job.id.startswith(prefix) and job.result is None]


def _places(name: str) -> list[str]:
    return [f"{directory}/{name}" for directory in _PATH]


def _read(job: Job) -> list[dict[str, Any]]:
    lines = b""
    for recording in job.recordings[:1]:
        recording.drain()
        lines = bytes(recording.read(recording.start, recording.capacity).data)
    found: list[dict[str, Any]] = []
    for line in lines.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break  # cut short in its middle
    result = job.result
    if not found and result is not None and result.status != 0 and result.ended_by is None:
        said = b"".join(
            bytes(each.read(max(each.start, each.end - 400), 400).data) for each in job.recordings[1:]
        )
        words = said.decode("utf-8", "replace").strip() or result.message or f"it ended with {result.status}"
        raise MountTrouble(f"the worker failed: {words}", stage="worker")
    return found
