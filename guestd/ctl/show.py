"""Answers as text for a person. Pure."""

from __future__ import annotations

import shlex
from typing import Any, cast

from guestd.ctl.failures import printable
from guestd.wire.result import Outcome, Result, signal_name

_COLUMNS = ("ID", "KIND", "STATE", "PID", "USER", "AGE", "CPU", "STDOUT", "STDERR", "COMMAND")
_RIGHT = frozenset({"PID", "AGE", "CPU", "STDOUT", "STDERR"})
_UNITS = ("", "K", "M", "G", "T", "P")


def show_jobs(jobs: list[dict[str, Any]], now: float = 0.0) -> str:
    """Commands and shells, a table each, oldest first. `now`: seconds since 1970."""
    if not jobs:
        return "no jobs"
    from guestd.ctl.show_shells import show_shells

    shells = [job for job in jobs if job.get("kind") == "shell"]
    commands = [job for job in jobs if job.get("kind") != "shell"]
    tables = [
        table(_COLUMNS, [_row(job) for job in commands], _RIGHT) if commands else "",
        show_shells(shells, now) if shells else "",
    ]
    return "\n\n".join(each for each in tables if each)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]], right: frozenset[str]) -> str:
    """What comes last is never cut: a terminal wraps, a pipe wants it all."""
    rows = [columns, *rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns) - 1)]
    lines: list[str] = []
    for row in rows:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns[:-1], row[:-1], widths, strict=True)
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    result = Result.from_map(job["result"]) if job.get("result") else None
    streams: dict[str, dict[str, int]] = job.get("streams") or {}
    pid, age = job.get("pid"), job.get("age")
    return (
        printable(str(job.get("id", ""))),
        str(job.get("kind", "")),
        show_end(job),
        "-" if pid is None else str(pid),
        printable(str(job.get("user") or "-")),
        "-" if age is None else show_age(float(age)),
        show_cpu(job, result),
        *(show_size(streams.get(name, {}).get("end", 0)) for name in ("stdout", "stderr")),
        show_command(job.get("command")),
    )


def show_cpu(job: dict[str, Any], result: Result | None) -> str:
    """Seconds of all processors."""
    user, system = (
        (result.cpu_user, result.cpu_system) if result else (job.get("cpu_user"), job.get("cpu_system"))
    )
    if user is None or system is None:
        return "-"
    return f"{user + system:.2f}s"


def show_command(command: object) -> str:
    """As one would type it."""
    if isinstance(command, list):
        return printable(shlex.join(_text(word) for word in cast("list[object]", command)))
    return printable(_text(command or "-"))


def _text(word: object) -> str:
    return word.decode("utf-8", "backslashreplace") if isinstance(word, bytes) else str(word)


def show_end(job: dict[str, Any]) -> str:
    """How it ended, or that it has not."""
    return show_outcome(Result.from_map(job["result"])) if job.get("result") else str(job.get("state", ""))


def show_outcome(result: Result) -> str:
    """The end of a job in a word or two."""
    match result.outcome:
        case Outcome.EXITED:
            return f"exited {result.code}"
        case Outcome.SIGNALED:
            return signal_name(result.signal or 0)
        case outcome:
            return outcome.value.replace("_", " ")


def show_age(seconds: float) -> str:
    """`7s`, `3m20s`, `5h02m`, `2d07h`."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes == 0:
        return f"{whole}s"
    if hours == 0:
        return f"{minutes}m{whole % 60:02}s"
    if days == 0:
        return f"{hours}h{minutes % 60:02}m"
    return f"{days}d{hours % 24:02}h"


def show_size(size: float) -> str:
    """`17`, `4.0K`, `1.5M`."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f}" if not unit else f"{size:.1f}{unit}"
        size /= 1024
    raise AssertionError


def show_status(found: dict[str, Any]) -> str:
    """The state of a guest: what a person asks first, then whatever else it says."""
    from guestd.ctl.show_life import show_activity, show_timeline
    from guestd.ctl.show_mounts import show_workspace
    from guestd.ctl.show_relays import show_relays
    from guestd.ctl.show_telemetry import show_watchers

    jobs, tapes = _map(found, "jobs"), _map(found, "tapes")
    workspace, memory, mounts = (_map(found, name) for name in ("workspace", "memory", "mounts"))
    running, kept, started = (jobs.get(name, 0) for name in ("running", "kept", "started"))
    up = show_age(found.get("uptime") or 0)
    lines = [
        ("guestd", f"{found.get('version', '?')}, pid {found.get('pid', '?')}, up {up}"),
        ("jobs", f"{running} running, {kept} kept, {started} started so far, limit {jobs.get('limit', '?')}"),
        ("output", f"{show_size(tapes.get('bytes', 0))} kept, limit {show_size(tapes.get('limit', 0))}"),
        ("memory", show_size(memory.get("rss", 0))),
        *show_activity(found),
        *show_watchers(found),
        ("workspace", show_workspace(workspace)),
        *(
            ("mount", f"{each['path']}: {each['state']}, {each['why']}")
            for each in mounts.get("troubles") or ()
        ),
        *show_relays(found),
        ("listening", ", ".join(str(each) for each in found.get("listening") or ())),
        ("connections", _connections(found)),
        ("boot", str(found.get("boot_id", "?"))),
        *([("started", timeline)] if (timeline := show_timeline(found)) else []),
        ("session", f"{found.get('session_id', '?')}, generation {found.get('generation', '?')}"),
    ]
    return "\n".join(f"{name:<12}{printable(text)}" for name, text in lines)


def _connections(found: dict[str, Any]) -> str:
    guests = found.get("guests")
    return f"{found.get('connections', '?')}{f', and {guests} of programs of the guest' if guests else ''}"


def _map(found: dict[str, Any], name: str) -> dict[str, Any]:
    value: object = found.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
