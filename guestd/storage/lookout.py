"""Watching over what is mounted: the kernel tells when its table changes, and a look is taken at a slow rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from guestd.storage.attempt import Attempt
from guestd.storage.keeper import TAKEN
from guestd.storage.mountinfo import visible
from guestd.storage.plan import BLOCK, FUSE
from guestd.storage.table import MountTable, read_table

if TYPE_CHECKING:
    from guestd.storage.entry import Entry
    from guestd.storage.keeper import Keeper
    from guestd.storage.mounts import Mounts

_SECTOR = 512


class Lookout:
    """See the module."""

    def __init__(self, mounts: Mounts, keeper: Keeper) -> None:
        self._mounts = mounts
        self._keeper = keeper

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_table)
            nursery.start_soon(self._look)

    async def _heed_table(self) -> None:
        table = MountTable()
        try:
            while True:
                await table.changed()
                now = read_table()
                for entry in self._mounts.entries.values():
                    # A FUSE program that ends takes its mount along: then it is the program that was lost.
                    ended = entry.wanted.type == FUSE and (entry.job is None or entry.job.result is not None)
                    if entry.is_there and not ended and visible(now, entry.path) is None:
                        entry.dead = TAKEN.format(entry.path)
                        entry.poke()
        finally:
            table.close()

    async def _look(self) -> None:
        storage = self._mounts.settings.storage
        while True:
            await trio.sleep(storage.check)
            await self._keeper.look_now(storage.patience)
            for entry in list(self._mounts.entries.values()):
                if entry.is_there and entry.wanted.type == BLOCK:
                    await self._grow(entry)

    async def _grow(self, entry: Entry) -> None:
        """With its disk, if the host has made that larger."""
        wanted, device = entry.wanted, entry.device
        if device is None or not wanted.grow or wanted.read_only:
            return
        size = _size_of(device["name"])
        if size > device["size"]:
            device["size"] = size
            await Attempt(entry, self._keeper.outside, self._mounts.resolve, self._mounts.events.say).grow()


def _size_of(name: str) -> int:
    """As the kernel knows it, without a look at the disk; 0 for one that is gone."""
    try:
        with open(f"/sys/class/block/{name}/size", encoding="ascii") as file:
            return int(file.read()) * _SECTOR
    except (OSError, ValueError):
        return 0
