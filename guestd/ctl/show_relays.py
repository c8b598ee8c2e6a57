"""Relays and forwards as lines of `status`. Pure."""

from __future__ import annotations

from typing import Any, cast


def show_relays(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each relay, and one for forwards where there were any."""
    from guestd.ctl.show import show_size

    def counted(each: dict[str, Any]) -> str:
        up, down = (show_size(each.get(name) or 0) for name in ("bytes_up", "bytes_down"))
        return f"{each.get('open', 0)} open, {each.get('began', 0)} so far, {up} up, {down} down"

    lines: list[tuple[str, str]] = []
    for relay in cast("list[dict[str, Any]]", found.get("relays") or []):
        text = f"{relay.get('name')}: {relay.get('listen')} -> {relay.get('to')}, "
        if relay.get("why"):
            text += f"does not listen: {relay['why']}"
        else:
            text += counted(relay)
        if relay.get("unreachable"):
            text += f"; {relay['unreachable']}"
        lines.append(("relay", text))
    forwards = cast("dict[str, Any]", found.get("forwards") or {})
    if forwards.get("began"):
        lines.append(("forwards", counted(forwards)))
    return lines
