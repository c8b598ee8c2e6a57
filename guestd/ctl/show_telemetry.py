"""How telemetry and the audit log do, as text for a person. Pure."""

from __future__ import annotations

from typing import Any, cast

from guestd.ctl.show import show_age


def show_watchers(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of `status`: how telemetry gets to its collector, and the audit log to its file."""
    lines: list[tuple[str, str]] = []
    telemetry, audit = _map(found, "telemetry"), _map(found, "audit")
    if telemetry.get("failure"):
        lines.append(("telemetry", f"FAILING: {telemetry['failure']}"))
    elif telemetry.get("on"):
        told: list[str] = []
        for signal in ("traces", "metrics", "logs"):
            each = _map(telemetry, signal)
            if each:
                dropped = f", {each['dropped']} dropped" if each.get("dropped") else ""
                why = (
                    f", FAILING for {_since(found, each.get('error_at'))}: {each['error']}"
                    if each.get("error")
                    else ""
                )
                told.append(f"{signal} {each.get('sent', 0)} sent{dropped}{why}")
        if untold := (telemetry.get("dropped") or 0) + (telemetry.get("lost") or 0):
            told.append(f"{untold} facts dropped before they were any of these")
        lines.append(("telemetry", "; ".join(told) or "starting"))
    if audit:
        text = f"{audit.get('path')}, {audit.get('written', 0)} records"
        if audit.get("dropped"):
            text += f", {audit['dropped']} dropped"
        if audit.get("failure"):
            text += f", FAILING for {_since(found, audit.get('failing_since'))}: {audit['failure']}"
        lines.append(("audit", text))
    return lines


def _since(found: dict[str, Any], at: object) -> str:
    now = found.get("now")
    return show_age(now - at) if isinstance(now, int | float) and isinstance(at, int | float) else "a while"


def _map(found: dict[str, Any], name: str) -> dict[str, Any]:
    value: object = found.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
