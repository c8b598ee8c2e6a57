"""Hooks: the image's own commands at a turn of the session's life, one after another, each with a time limit.

One that fails, or takes too long, is told and does not keep the next from its turn.
"""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import GuestdError
from guestd.lifecycle.own import own_request, run_own

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.config import Settings
    from guestd.session.jobs import Jobs

_log = logging.getLogger("guestd.life")


async def run_hooks(
    jobs: Jobs,
    settings: Settings,
    kind: str,
    commands: Sequence[str | tuple[str, ...]],
    found: list[dict[str, Any]],
    *,
    limit: float,
    until: Callable[[], float] = lambda: inf,
) -> None:
    """Run them as jobs `KIND-hook-N`, in `/`, each for at most `limit`, and all of them no longer than `until` says.
    `found` gets an entry for each, which is right at any time.
    """
    for command in commands:
        shown = command if isinstance(command, str) else list(command)
        found.append({"command": shown, "ok": False, "took": None, "why": "no time was left for it"})
    for number, command in enumerate(commands, 1):
        fields = found[number - 1]
        if until() <= trio.current_time():
            continue
        fields["why"] = "it did not end, and could not be ended"
        request = own_request(settings, command, cwd="/", retain=settings.command.retain)
        try:
            done = await run_own(jobs, f"{kind}-hook-{number}", request, limit, until)
        except GuestdError as error:
            fields.update(ok=False, took=0.0, why=error.message)
        else:
            fields.update(ok=done.went_well, took=done.took, why=done.why)
        if not fields["ok"]:
            _log.warning("the %s hook %r failed: %s", kind, fields["command"], fields["why"])
