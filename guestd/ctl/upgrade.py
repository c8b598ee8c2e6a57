"""upgrade: another version of guestd takes the place of the one that runs, and nothing else notices."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Any

import trio

from guestd.ctl.dialing import dialer
from guestd.errors import Conflict, ConnectionLost, ShuttingDown, Unavailable

if TYPE_CHECKING:
    import argparse

#: The next one is there after a quarter of a second; one that never becomes ready is given up after half a minute, and
#: the one before comes back.
_PATIENCE = 60.0
_BETWEEN = 0.1


def upgrade(options: argparse.Namespace) -> int:
    """Replace it, and wait for the one that comes of it. Fails when that is the one before."""
    found = trio.run(_upgrade, options)
    if options.json:
        print(json_text.dumps(found))
    elif found["before"] == found["version"]:
        print(f"guestd {found['version']} was started anew; {found['running']} jobs go on")
    else:
        print(f"guestd {found['before']} is now {found['version']}; {found['running']} jobs go on")
    return 0


async def _upgrade(options: argparse.Namespace) -> dict[str, Any]:
    dial = dialer(options)
    async with dial() as client:
        answer = await client.upgrade(options.argv or None)
    due = trio.current_time() + _PATIENCE
    while True:
        try:
            async with dial() as client:
                status = await client.status()
            if status["generation"] > answer["generation"]:
                if status.get("fell_back"):
                    raise Conflict(
                        f"{' '.join(options.argv)!r} did not become ready in time (init.ready_timeout), and guestd"
                        f" {status['version']} goes on, with {status['jobs']['running']} jobs; the guest's console says"
                        " more"
                    )
                return {
                    "before": answer["from"], "version": status["version"], "generation": status["generation"],
                    "running": status["jobs"]["running"],
                }  # fmt: skip
        except (ConnectionLost, ShuttingDown, Unavailable):
            if trio.current_time() > due:
                raise
        if trio.current_time() > due:
            raise Unavailable(
                f"guestd {answer['from']} has made room, and no other came within {_PATIENCE:.0f} s; the guest's"
                " console says why"
            )
        await trio.sleep(_BETWEEN)
