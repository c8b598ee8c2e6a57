"""Shells, what was typed at them, and single jobs, as text for a person. Pure."""

from __future__ import annotations

from time import localtime, strftime
from typing import Any, cast

from guestd.ctl.failures import printable
from guestd.ctl.show import show_age, show_command, show_cpu, show_end, show_size, table
from guestd.wire.result import Result

_SHELLS = ("ID", "KIND", "STATE", "PID", "USER", "AGE", "IDLE", "SIZE", "ATTACHED", "OUTPUT", "RUNNING")
_COMMANDS = ("N", "WHEN", "LONG", "EXIT", "OUTPUT", "COMMAND")
_RIGHT = frozenset({"PID", "AGE", "IDLE", "OUTPUT", "N", "LONG", "EXIT"})
_CONTROL = "\n\t"


def show_shells(jobs: list[dict[str, Any]], now: float) -> str:
    """A table. What runs in the foreground comes last and is never cut."""
    return table(_SHELLS, [_row(job, now) for job in jobs], _RIGHT)


def _row(job: dict[str, Any], now: float) -> tuple[str, ...]:
    pid, age = job.get("pid"), job.get("age")
    return (
        printable(str(job.get("id", ""))),
        str(job.get("kind", "")),
        show_end(job),
        "-" if pid is None else str(pid),
        printable(str(job.get("user") or "-")),
        "-" if age is None else show_age(float(age)),
        _idle(job, now),
        _size(job),
        _attached(job),
        show_size(_map(_map(job, "streams"), "terminal").get("end", 0)),
        _running(job),
    )


def _idle(job: dict[str, Any], now: float) -> str:
    """Since when nothing was typed or printed."""
    times = [float(time) for name in ("last_input", "last_output") if (time := job.get(name)) is not None]
    return show_age(now - max(times)) if times and job.get("result") is None else "-"


def _size(job: dict[str, Any]) -> str:
    size = _map(job, "size")
    return f"{size.get('columns', '?')}x{size.get('rows', '?')}" if size else "-"


def _attached(job: dict[str, Any]) -> str:
    """`owner`, `owner +2`, `3`, `-`."""
    others = int(job.get("attached") or 0)
    if job.get("owner") is None:
        return str(others) if others else "-"
    return f"owner +{others - 1}" if others > 1 else "owner"


def _running(job: dict[str, Any]) -> str:
    foreground = _map(job, "foreground")
    shown = foreground.get("command") or foreground.get("name")
    return printable(str(shown)) if shown else show_command(job.get("command"))


def show_commands(commands: list[dict[str, Any]], now: float) -> str:
    """What was typed, oldest first."""
    if not commands:
        return (
            "no commands: nothing was typed yet, or the shell does not mark its commands (bash and zsh do, by guestd's"
            " integration)"
        )
    return table(_COMMANDS, [_command(each, now) for each in commands], _RIGHT)


def _command(command: dict[str, Any], now: float) -> tuple[str, ...]:
    start, end = command.get("from"), command.get("to")
    began, duration = command.get("started_at"), command.get("duration")
    running = command.get("ended_at") is None
    if duration is None and running and began is not None:
        duration = now - float(began)
    exited = command.get("exit")
    text = str(command.get("text") or "")
    return (
        str(command.get("n", "")),
        "-" if began is None else strftime("%Y-%m-%d %H:%M:%S", localtime(float(began))),
        "-" if duration is None else _long(float(duration)),
        "runs" if running else "?" if exited is None else str(exited),
        "-" if start is None or end is None else show_size(end - start),
        printable(" ⏎ ".join(text.splitlines())) if text else "-",
    )


def _long(seconds: float) -> str:
    return f"{seconds:.1f}s" if 0 <= seconds < 60 else show_age(seconds)


def show_job(job: dict[str, Any], now: float) -> str:
    """Everything that is known of one job, a line each."""
    result = Result.from_map(job["result"]) if job.get("result") else None
    lines: list[tuple[str, str]] = [
        ("id", str(job.get("id", ""))),
        ("kind", str(job.get("kind", ""))),
        ("state", show_end(job)),
        ("command", show_command(job.get("command"))),
        ("pid", _plain(job.get("pid"))),
        ("user", _plain(job.get("user"))),
        ("directory", _plain(job.get("cwd"))),
        ("started", _when(job.get("started_at"), now)),
        ("cpu", show_cpu(job, result)),
    ]
    if job.get("kind") == "shell":
        lines += _shell_lines(job, now)
    for name, kept in _map(job, "streams").items():
        start, end = int(kept.get("start", 0)), int(kept.get("end", 0))
        lines.append((name, f"{end} bytes" + (f", kept from {start} on" if start else "")))
    if result is not None:
        lines.append(("ended", _when(result.ended_at, now)))
        lines += [("why", text) for text in (result.message,) if text]
    return "\n".join(f"{name:<12}{printable(text)}" for name, text in lines if text)


def _shell_lines(job: dict[str, Any], now: float) -> list[tuple[str, str]]:
    typed = _map(job, "typed")
    lines = [
        ("size", _size(job)),
        ("title", str(job.get("title") or "")),
        ("foreground", _running(job) if job.get("foreground") else ""),
        ("last typed", _when(job.get("last_input"), now)),
        ("last output", _when(job.get("last_output"), now)),
        ("commands", str(job.get("commands", 0))),
    ]
    if typed.get("waiting"):
        lines.append(("typed", f"{typed['waiting']} bytes that the program has not read"))
    viewers = cast("list[dict[str, Any]]", job.get("viewers") or [])
    return lines + [
        ("attached", f"{each.get('role')}: {each.get('peer')}, since {_when(each.get('since'), now)}")
        for each in viewers
    ]


def _when(at: object, now: float) -> str:
    if not isinstance(at, int | float):
        return "-"
    return f"{strftime('%Y-%m-%d %H:%M:%S', localtime(at))} ({show_age(now - at)} ago)"


def _plain(value: object) -> str:
    return "-" if value is None else str(value)


def _map(found: dict[str, Any], name: str) -> dict[str, Any]:
    value: object = found.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
