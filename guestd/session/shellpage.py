"""What is written down of a shell besides what every job has, and what becomes of it under the next supervisor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from guestd.process.identity import Identity
from guestd.process.terminal import Size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.session.shell import ShellJob, ShellRequest
    from guestd.session.terminal import Terminal
    from guestd.session.terms import Terms

#: Of the commands that were typed, the newest. Each costs some hundred bytes at every change of the page.
_COMMANDS = 100


def facts_of(job: ShellJob) -> dict[str, Any]:
    """For its page."""
    request = asdict(job.request)
    del request["terms"]
    terminal = job.terminal
    facts: dict[str, Any] = {"request": request, "identity": job.identity, "typists": {}}
    if terminal is None:
        return facts
    marks = terminal.marks
    facts.update(
        size=terminal.size, last_input=terminal.last_input, last_output=terminal.last_output,
        title=marks.title, directory=marks.directory,
        commands=[
            {**command.to_map(), "started_mono": command.started_monotonic} for command in marks.commands[-_COMMANDS:]
        ],
        typists={} if terminal.keyboard is None else terminal.keyboard.slots,
    )  # fmt: skip
    return facts


def request_of(entry: Mapping[str, Any], terms: Terms) -> ShellRequest:
    """What was asked for."""
    from guestd.session.shell import ShellRequest

    request: dict[str, Any] = {**entry["request"], "terms": terms}
    request["size"] = Size(*entry["size"])
    request["given"] = tuple(request["given"])
    request["rlimits"] = {name: tuple(limits) for name, limits in request["rlimits"].items()}
    return ShellRequest(**request)


def identity_of(entry: Mapping[str, Any]) -> Identity | None:
    found = entry["identity"]
    if found is None:
        return None
    uid, gid, groups, *rest = found
    return Identity(uid, gid, tuple(groups), *rest)


def recall(terminal: Terminal, entry: Mapping[str, Any]) -> None:
    """What its terminal knew."""
    terminal.last_input, terminal.last_output = entry["last_input"], entry["last_output"]
    terminal.marks.recall(entry["commands"], entry["title"], entry["directory"])
