"""Spans as OpenTelemetry has them, of what serve tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from guestd.telemetry.redact import mask_text, mask_value, shown_command
from guestd.wire.result import signal_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

_SAMPLED = 1
_TEXT_MAX = 4096
#: Who asks for these is somewhere else.
_SERVERS = {"connection", "attachment"}
#: What went wrong with a job whose exit is not just its own affair.
_BAD = {"not_started", "oom_killed", "timed_out", "unknown"}


def is_sampled(told: Mapping[str, Any]) -> bool:
    return bool(int(told["trace"][2]) & _SAMPLED)


def span_of(
    told: Mapping[str, Any], session: str, resource: Resource, scope: InstrumentationScope, rule: str
) -> ReadableSpan:
    """The span. `rule`: `telemetry.arguments`."""
    trace_id, parent_id, flags, state = told["trace"]
    kind = str(told["kind"])
    attributes: dict[str, Any] = {"session.id": session, "guestd.kind": kind}
    for name, value in cast("dict[str, Any]", told["facts"]).items():
        if name not in {"why", "job"}:
            attributes[f"guestd.{kind}.{name}"] = mask_value(name, value) if isinstance(value, str) else value
        elif name == "job":
            attributes["guestd.job.id"] = value
    why = told["facts"].get("why")
    name = kind.replace("_", " ")
    job = told.get("job")
    if job is not None:
        name, why = _add_job(attributes, job, rule)
    return ReadableSpan(
        name=name,
        context=_context(trace_id, told["id"], flags, state, remote=False),
        parent=_context(trace_id, parent_id, flags, state, remote=job is not None) if parent_id else None,
        resource=resource,
        attributes={key: clean(value) for key, value in attributes.items() if value is not None},
        kind=SpanKind.SERVER if kind in _SERVERS else SpanKind.INTERNAL,
        status=Status(StatusCode.UNSET)
        if why is None
        else Status(StatusCode.ERROR, text_of(mask_text(str(why)))),
        start_time=int(told["start"]),
        end_time=int(told["end"]),
        instrumentation_scope=scope,
    )


def _context(trace_id: str, span_id: str, flags: int, state: str, *, remote: bool) -> SpanContext:
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=remote, trace_flags=TraceFlags(int(flags)),
        trace_state=TraceState.from_header([state]) if state else TraceState(),
    )  # fmt: skip


def _add_job(attributes: dict[str, Any], job: Mapping[str, Any], rule: str) -> tuple[str, str | None]:
    """Put a job's facts among the attributes; the span's name, and what went wrong."""
    command = job.get("command") or ""
    shown = shown_command(command, rule)
    program = "" if isinstance(command, str) else str(command[0]).rpartition("/")[2]
    attributes.update({
        "guestd.job.id": job["id"],
        "guestd.job.kind": job["kind"],
        "process.pid": job.get("pid"),
        "process.owner": job.get("user"),
        "process.working_directory": job.get("cwd"),
        "process.executable.name": program or None if rule != "none" else None,
        "process.command_args": shown if isinstance(shown, list) else None,
        "process.command_line": shown if isinstance(shown, str) else None,
    })  # fmt: skip
    for name, value in cast("dict[str, str]", job.get("env") or {}).items():
        attributes[f"process.environment_variable.{name}"] = mask_value(name, value)
    kind = str(job["kind"])
    name = f"{kind} {program}" if program and rule != "none" else kind
    result = job.get("result")
    if result is None:
        return name, None
    outcome = result["outcome"]
    attributes.update({
        "guestd.job.outcome": outcome,
        "guestd.job.status": result["status"],
        "guestd.job.ended_by": result["ended_by"],
        "guestd.job.stage": result["stage"],
        "guestd.job.killed": result["killed"] or None,
        "guestd.job.left": result["left"] or None,
        "guestd.job.cpu.user": result["cpu_user"],
        "guestd.job.cpu.system": result["cpu_system"],
        "guestd.job.memory.peak": result["peak_memory"],
        "guestd.job.input.bytes": result["input"] or None,
        "process.exit.code": result["code"],
        "guestd.job.signal": None if result["signal"] is None else signal_name(result["signal"]),
    })  # fmt: skip
    for stream, found in result["streams"].items():
        attributes[f"guestd.job.{stream}.bytes"] = found["bytes"]
        attributes[f"guestd.job.{stream}.kept_from"] = found["kept_from"] or None
    # A shell ends with what was typed into it last, or with its window: neither went wrong.
    failed = outcome in _BAD or (kind == "command" and result["status"] != 0)
    if not failed:
        return name, None
    attributes["error.type"] = outcome if outcome in _BAD else f"status {result['status']}"
    return name, result["message"] or f"{outcome}, status {result['status']}"


def clean(value: object) -> Any:  # noqa: ANN401  what attributes may be
    """A value that can be an attribute: text is whole UTF-8 and not endless."""
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [text_of(str(each)) for each in cast("list[object]", value)]
    return text_of(str(value))


def text_of(text: str) -> str:
    return text[:_TEXT_MAX].encode("utf-8", "replace").decode()
