"""What a job prints, copied to this process's own stdout and stderr, by a viewer that never holds.

Whoever reads those may be slow, or not read at all: each piece is written by a thread, and what the job's tape no
longer has by then is left out, with a word about how much.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.session.attachment import Gap

if TYPE_CHECKING:
    from guestd.session.job import Job

_log = logging.getLogger("guestd.workload")
_PIECE = 64 * 1024


async def copy_output(job: Job, all_of_it: bool) -> None:  # noqa: FBT001  start_soon takes no keywords
    """Until the job has ended and all is written: everything, or only what comes from now on."""
    await _until_started(job)
    news = trio.Event()

    def wake() -> None:
        news.set()

    attachment = job.attach(
        {each.stream: 0 if all_of_it else each.end for each in job.recordings}, wake, holds=False
    )
    try:
        while not attachment.finished:
            piece = attachment.take(_PIECE)
            if piece is None:
                await news.wait()
                news = trio.Event()
            elif isinstance(piece, Gap):
                _log.warning(
                    "%d bytes of the workload's output were not copied here", piece.end - piece.start
                )
            else:
                await trio.to_thread.run_sync(
                    _write, piece.stream, bytes(piece.data), abandon_on_cancel=True, limiter=_writers
                )
    except OSError as error:
        _log.warning("the workload's output is not copied here any more: %s", error.strerror)
    finally:
        with suppress(KeyError):
            attachment.detach()


async def _until_started(job: Job) -> None:
    started = trio.Event()
    job.start_settled.then(started.set)
    await started.wait()


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


_writers = trio.CapacityLimiter(4)
