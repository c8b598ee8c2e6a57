"""From the facts of a job's end to its result. Nothing is decided elsewhere, and nothing is invented here."""

from __future__ import annotations

import errno
import os
import resource
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guestd.errors import StartFailed
from guestd.wire.result import EndedBy, Outcome, Result

if TYPE_CHECKING:
    from guestd.process.members import Member
    from guestd.process.reaper import Exit
    from guestd.process.tree import Ending

#: How many processes a result names; all are counted.
_NAMED = 20


@dataclass(slots=True, kw_only=True)
class Facts:
    """What is known when the last of it has come in."""

    id: str
    kind: str
    pid: int | None
    started: tuple[float, float]
    now: tuple[float, float]
    exit: Exit | None
    ended_by: EndedBy | None
    ending: Ending | None
    out_of_memory: bool
    left: list[Member]
    peak_memory: int | None
    streams: dict[str, dict[str, int]]
    held: list[str]
    accepted_input: int


def verdict(facts: Facts) -> Result:
    """The result of a job whose program ran."""
    result = _common(facts)
    ended = facts.exit
    assert ended is not None
    result.ended_at, result.ended_mono = ended.wall, ended.mono
    if ended.status is None:
        result.message = (
            "it ended while guestd was being replaced, and its parent then, PID 1, did not tell how"
        )
    elif os.WIFEXITED(ended.status):
        result.outcome = Outcome.EXITED
        result.code = os.WEXITSTATUS(ended.status)
    else:
        result.outcome = Outcome.SIGNALED
        result.signal = os.WTERMSIG(ended.status)
    if facts.ended_by is EndedBy.TIMEOUT:
        result.outcome = Outcome.TIMED_OUT
    elif facts.out_of_memory and result.signal == signal.SIGKILL:
        result.outcome = Outcome.OOM_KILLED
    result.peak_memory = facts.peak_memory
    if ended.usage is not None:
        result.cpu_user, result.cpu_system = ended.usage.ru_utime, ended.usage.ru_stime
        result.peak_memory = facts.peak_memory or _peak_of(ended.usage)
    left = facts.left
    if facts.ending is not None:
        result.killed = _listed(facts.ending.gone)
        result.unreached = _listed(facts.ending.unreached)
        left = [member for member in left if member not in facts.ending.unreached]
    result.left = _listed(left)
    return result


def not_started(facts: Facts, failure: StartFailed) -> Result:
    """The result of a job whose program never ran."""
    result = _common(facts)
    result.outcome = Outcome.NOT_STARTED
    result.stage, result.errno, result.message = failure.stage, failure.errno, failure.message
    result.ended_at, result.ended_mono = facts.now
    result.held = []
    return result


def given_up(timeout: float | None, *, killed: bool) -> StartFailed:
    """Why a program does not run whose start was called off."""
    if killed:
        return StartFailed("could not start: it was killed before the program ran (killed)", stage="killed")
    return StartFailed(
        f"could not start: the program did not run within its timeout of {timeout} s; its file or its"
        " directory is on a file system that does not answer (exec, ETIMEDOUT)",
        stage="exec", errno=errno.ETIMEDOUT,
    )  # fmt: skip


def replaced() -> StartFailed:
    """Why a program does not run that the supervisor before this one had asked for."""
    return StartFailed(
        "could not start: guestd was replaced in the moment of the start, before the program ran"
        " (fork, ECANCELED)",
        stage="fork", errno=errno.ECANCELED,
    )  # fmt: skip


def lost(facts: Facts, reason: str) -> Result:
    """The result of a job whose end is not known, and why."""
    result = _common(facts)
    result.message = reason
    result.ended_at, result.ended_mono = facts.now
    result.left = _listed(facts.left)
    return result


def _common(facts: Facts) -> Result:
    return Result(
        facts.id, Outcome.UNKNOWN, facts.kind,
        pid=facts.pid, ended_by=facts.ended_by, started_at=facts.started[0], started_mono=facts.started[1],
        streams=facts.streams, held=facts.held, input={"bytes": facts.accepted_input},
    )  # fmt: skip


def _peak_of(usage: resource.struct_rusage) -> int | None:
    """The largest process's peak, where it can be told.

    The kernel starts the count with the memory of whoever called exec, here the supervisor: a peak
    that is not above its own says nothing about the program.
    """
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage.ru_maxrss * 1024 if usage.ru_maxrss > floor else None


def _listed(members: list[Member]) -> dict[str, Any]:
    return {
        "count": len(members),
        "processes": [{"pid": member.pid, "name": member.name} for member in members[:_NAMED]],
    }
