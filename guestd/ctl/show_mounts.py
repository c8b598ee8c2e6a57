"""File systems as text for a person. Pure."""

from __future__ import annotations

from typing import Any, cast

from guestd.ctl.failures import printable
from guestd.ctl.show import show_age, show_size

_HEAD = ("PATH", "TYPE", "SOURCE", "STATE", "SIZE", "FREE")
_WIDEST = 40


def show_mounts(found: dict[str, Any]) -> str:
    """A table, and below it what is to be known of some."""
    mounts = cast("list[dict[str, Any]]", found.get("mounts") or [])
    lines: list[str] = []
    if mounts:
        rows = [_HEAD, *(_row(each) for each in mounts)]
        widths = [min(_WIDEST, max(len(row[at]) for row in rows)) for at in range(len(_HEAD))]
        lines += [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [line for each in mounts for line in _more(each)]
    else:
        lines.append("guestd mounts nothing")
    if found.get("refused"):
        lines.append(f"nothing can be mounted: {found['refused']}")
    lines.append(f"workspace: {show_workspace(_map(found, 'workspace'))}")
    return "\n".join(printable(line) for line in lines)


def show_mount(found: dict[str, Any]) -> str:
    """What has been mounted."""
    what = f"{found.get('file_system') or found.get('type')} of {found.get('source') or '-'}"
    how = "" if found.get("created", True) else " already"
    return "\n".join(
        printable(each) for each in (f"{found.get('path')}: mounted{how}, {what}", *_more(found))
    )


def show_workspace(workspace: dict[str, Any]) -> str:
    """`/mnt/workspace, ext4 of serial=workspace`, and what is the matter with it."""
    text = f"{workspace.get('path', '?')}"
    if workspace.get("there") is False:
        text += " (not there)"
    if workspace.get("what"):
        text += f", {workspace['what']}"
    if workspace.get("persistent") is False:
        text += ", NOT persistent"
    return text + (f": {workspace['why']}" if workspace.get("why") else "")


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    total, free = each.get("total"), each.get("free")
    sizes = [show_size(size) if isinstance(size, (int, float)) else "-" for size in (total, free)]
    state = str(each.get("state"))
    if each.get("troubles"):
        state += f", {', '.join(_map(each, 'troubles'))}"
    kind = str(each.get("file_system") or each.get("type"))
    return (str(each.get("path")), kind, str(each.get("source") or "-"), state, *sizes)


def _more(each: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if each.get("why"):
        again = each.get("retry_in")
        lines.append(f"{each['why']}{'' if again is None else f' (tried again in {show_age(again)})'}")
    lines += [str(why) for why in _map(each, "troubles").values()]
    lines += [str(note) for note in each.get("notes") or ()]
    lines += [f"the kernel: {line}" for line in each.get("said") or ()]
    return [f"  {each.get('path')}: {line}" for line in lines]


def _map(found: dict[str, Any], name: str) -> dict[str, Any]:
    value: object = found.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
