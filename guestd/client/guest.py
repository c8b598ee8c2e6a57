"""Which guest this is, and whether what was known of it before is still so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping


def has_same_jobs(known: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Are jobs and offsets that were known there still known here? A session that was resumed has another id, and tells
    those that it had before.
    """
    if known.get("boot_id") != now.get("boot_id"):
        return False
    before = known.get("session_id")
    earlier = now.get("previous")
    return before == now.get("session_id") or (
        isinstance(earlier, list) and before is not None and before in cast("list[object]", earlier)
    )
