"""What an audit record says of a deed: only what somebody who reads it later needs, masked, and never the output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from guestd.telemetry.redact import mask_value, shown_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.session.job import Job

#: Of one text.
_TEXT_MAX = 1024
#: Of a list of texts.
_LIST_MAX = 64
#: guestd's own words, and ids, which have nothing to hide.
_OWN_WORDS = frozenset({"job", "result", "generation", "session", "cause", "requests", "took"})
#: What is for spans: which trace it belongs to, and the job whose it is.
_NO_FACTS = frozenset({"trace", "job_of"})


def record_of(
    at: float, event: str, who: str, facts: Mapping[str, object], job: Job | None, rule: str
) -> dict[str, object]:
    """The record. `rule`: `telemetry.arguments`."""
    record: dict[str, object] = {"at": round(at, 6), "event": event, "who": who}
    if job is not None:
        record.update(_of_job(job, rule))
    for name, value in facts.items():
        if value is None or name in record or name in _NO_FACTS:
            continue
        if name in _OWN_WORDS:
            record[name] = value
            continue
        is_command = name in {"command", "argv"}
        record[name] = shown_command(cast("Any", value), rule) if is_command else _plain(name, value)
    return record


def _of_job(job: Job, rule: str) -> dict[str, object]:
    about, result = job.about, job.result
    found: dict[str, object] = {
        "job": job.id,
        "kind": job.kind,
        "command": shown_command(about.get("command") or "", rule),
        "user": about.get("user"),
        "pid": job.pid,
        "started_at": job.started_at,
    }
    if result is not None:
        found.update(
            outcome=result.outcome.value, status=result.status, signal=result.signal,
            ended_by=None if result.ended_by is None else result.ended_by.value, why=result.message,
            duration=result.duration, cpu_user=result.cpu_user, cpu_system=result.cpu_system,
            peak_memory=result.peak_memory, bytes={name: each["bytes"] for name, each in result.streams.items()},
            killed=result.killed["count"] or None, left=result.left["count"] or None,
        )  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _plain(name: str, value: object) -> object:
    if isinstance(value, str):
        return mask_value(name, value[:_TEXT_MAX])
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(str(key), each) for key, each in cast("dict[object, object]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = list(cast("list[object]", value))
        return [_plain(name, each) for each in items[:_LIST_MAX]]
    return str(value)[:_TEXT_MAX]
