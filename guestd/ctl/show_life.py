"""The life of a session as text for a person. Pure."""

from __future__ import annotations

import time
from typing import Any, cast

from guestd.ctl.failures import printable
from guestd.ctl.show import show_age

#: Fields of every event, which its line shows in their own way.
_COMMON = {"event", "n", "at", "mono"}


def show_event(event: dict[str, Any]) -> str:
    """`2026-11-21 15:00:00  idle_soon  stops_in=60.0 last=…`."""
    at = event.get("at")
    when = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, (int, float)) else "-" * 19
    )
    details = " ".join(
        f"{name}={_value(value)}"
        for name, value in event.items()
        if name not in _COMMON and value is not None
    )
    return printable(f"{when}  {event.get('event', '?')}  {details}".rstrip())


def _value(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def show_activity(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of `status`: what keeps it awake, when it would end, how the workload does."""
    lines: list[tuple[str, str]] = []
    activity = _map(found, "activity")
    if found.get("stopping"):
        lines.append(("stopping", str(found["stopping"])))
    if activity:
        busy = cast("list[str]", activity.get("busy") or [])
        idle = f"idle for {show_age(activity.get('idle_for') or 0)}, since {activity.get('last')}"
        lines += [
            ("activity", f"busy: {', '.join(busy)}" if busy else idle),
            ("stops", show_timers(activity)),
        ]
    workload = _map(found, "workload")
    if workload:
        text = f"{workload.get('state')}, pid {workload.get('pid') or '-'}, started {workload.get('starts')} times"
        if workload.get("health") not in {None, "unknown"}:
            why = f" ({workload['why']})" if workload.get("why") else ""
            text += f", {workload['health']}{why}"
        lines.append(("workload", text))
    return lines


def show_glance(found: dict[str, Any]) -> str:
    """What a program of the guest is told: what keeps the session awake, until when, and its own leases."""
    you, activity = _map(found, "you"), _map(found, "activity")
    busy = cast("list[str]", activity.get("busy") or [])
    lines = [
        ("guestd", f"{found.get('version', '?')}, asked as user {you.get('uid')} from inside the guest"),
        (
            "activity",
            f"busy: {', '.join(busy)}" if busy else f"idle for {show_age(activity.get('idle_for') or 0)}",
        ),
        ("stops", show_timers(activity)),
    ]
    if found.get("stopping"):
        lines.insert(1, ("stopping", str(found["stopping"])))
    for lease in cast("list[dict[str, Any]]", found.get("leases") or []):
        left = lease.get("left")
        lines.append(
            ("your lease", f"{lease.get('by')}, {'while held' if left is None else show_age(left) + ' left'}")
        )
    return "\n".join(f"{name:<12}{printable(text)}" for name, text in lines)


#: By their names on the wire, as a person reads them.
_PHASES = {
    "init": "init", "listening": "listening", "serve": "serve started", "ready": "ready", "workload": "workload",
    "healthy": "healthy",
}  # fmt: skip


def show_timeline(found: dict[str, Any]) -> str:
    """`kernel 0.81 s, then init, +0.02 s listening, …`: how long each phase took; empty where nothing is known."""
    times = {name: at for name, at in _map(found, "timeline").items() if isinstance(at, (int, float))}
    words: list[str] = []
    before: float | None = times.pop("kernel", None)
    for name, at in sorted(times.items(), key=lambda each: each[1]):
        words.append(_PHASES.get(name, name) + ("" if before is None else f" +{max(0.0, at - before):.3f} s"))
        before = at
    if not words:
        return ""
    return f"{', '.join(words)}; {before:.3f} s after the kernel began"


def show_timers(activity: dict[str, Any]) -> str:
    """When it ends by itself."""
    idle, lifetime = activity.get("idle_timeout"), activity.get("lifetime")
    rules = [
        f"{name} {show_age(limit)}" if limit else f"{name} never"
        for name, limit in (("idle", idle), ("lifetime", lifetime))
    ]
    left = activity.get("stops_in")
    if left is None:
        return f"not by itself ({', '.join(rules)})"
    return f"in {show_age(left)} ({activity.get('stops_for')}; {', '.join(rules)})"


def show_receipt(receipt: dict[str, Any]) -> str:
    """What was ended and how, and what is on its disk."""
    ended, unreached = _map(receipt, "ended"), _map(receipt, "unreached")
    asked_by, took, grace = receipt.get("by") or "-", receipt.get("took", 0), receipt.get("grace", 0)
    lines = [f"stopped ({receipt.get('cause')}, asked by {asked_by}) in {took:.1f} s of {grace:g}"]
    jobs = cast("list[dict[str, Any]]", ended.get("jobs", []))
    lines += [f"  ended       {each['id']}: {each['outcome']}, status {each['status']}" for each in jobs]
    if int(ended.get("count", 0)) > len(jobs):
        lines.append(f"  ended       and {ended['count'] - len(jobs)} more")
    processes = cast("list[dict[str, Any]]", unreached.get("processes", []))
    lines += [f"  NOT ended   {each['id']}: pid {each['pid']} {each.get('name') or ''}" for each in processes]
    for hook in cast("list[dict[str, Any]]", receipt.get("hooks", [])):
        lines.append(f"  hook        {hook['command']}: {'done' if hook['ok'] else hook['why']}")
    for each in cast("list[dict[str, Any]]", receipt.get("filesystems", [])):
        what = "on disk    " if each["synced"] else "NOT on disk"
        how = f", unmounted ({each['unmounted']})" if each.get("unmounted") not in {None, "plain"} else ""
        lines.append(
            f"  {what} {each['path']} ({each['type']}{how}){'' if each['synced'] else ': ' + str(each['why'])}"
        )
    return "\n".join(printable(line).rstrip() for line in lines)


def show_resumed(found: dict[str, Any]) -> str:
    """What was mended."""
    clock, entropy, connections = (_map(found, name) for name in ("clock", "entropy", "connections"))
    off = clock.get("off")
    told = f"set, by {off:+.3f} s" if clock.get("set") else str(clock.get("why") or "right")
    dropped = cast("list[str]", connections.get("dropped", []))
    lines = [
        ("session", f"{found.get('session_id')}, generation {found.get('generation')}"),
        ("clock", told),
        ("random", "seeded anew" if entropy.get("reseeded") else str(entropy.get("why"))),
        ("connections", f"{connections.get('kept', 0)} kept, {len(dropped)} dropped"),
    ]
    lines += [
        ("hook", f"{hook['command']}: {'done' if hook['ok'] else hook['why']}")
        for hook in cast("list[dict[str, Any]]", found.get("hooks", []))
    ]
    return "\n".join(f"{name:<12}{printable(text)}" for name, text in lines)


def _map(found: dict[str, Any], name: str) -> dict[str, Any]:
    value: object = found.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
