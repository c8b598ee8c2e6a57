"""Watching over what is mounted: the kernel tells when its table changes, and a look is taken at a slow rate.

What a look finds is told when it begins and when it is over; a mount that is dead is given back to its keeper. A disk
that the host has made larger takes its file system along.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import trio

from guestd.storage.attempt import Attempt
from guestd.storage.health import DEAD, troubles, worth_looking
from guestd.storage.keeper import TAKEN
from guestd.storage.mountinfo import visible
from guestd.storage.plan import BLOCK, FUSE
from guestd.storage.table import MountTable, read_table

if TYPE_CHECKING:
    from guestd.storage.ask import Outside
    from guestd.storage.entry import Entry
    from guestd.storage.mounts import Mounts

_log = logging.getLogger("guestd.mounts")
_SECTOR = 512
_GONE = {"errno": errno.ENODEV}


class Lookout:
    """See the module."""

    def __init__(self, mounts: Mounts, outside: Outside) -> None:
        self._mounts = mounts
        self._outside = outside
        self._one_look = trio.Lock()

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
            await self.look_now(storage.patience)
            for entry in list(self._mounts.entries.values()):
                if entry.is_there and entry.wanted.type == BLOCK:
                    await self._grow(entry)

    async def look_now(self, limit: float) -> None:
        """Look at all that are mounted, from outside of this process; tell what has changed. To be called stalled one
        has to be silent for longer than a person waits for the answer.
        """
        async with self._one_look:
            entries = [
                each for each in self._mounts.entries.values() if each.is_there and worth_looking(each.wanted)
            ]
            if self._mounts.is_resting:
                return
            if self._outside.running("mounts-look"):
                # The look before hangs, where it cannot be ended: no second one beside it.
                entries = [each for each in entries if "stalled" not in each.troubles]
            if not entries:
                return
            looked = await self._outside.look([each.path for each in entries], limit)
            table = read_table()
            for each in entries:
                if each.is_there:
                    found = (
                        _GONE if each.device and not _is_there(each.device["name"]) else looked.get(each.path)
                    )
                    each.looked = found or each.looked
                    least = float(self._mounts.settings.storage.space)
                    if found is not None or limit >= self._mounts.settings.storage.patience:
                        now = troubles(each.wanted, visible(table, each.path), found, least, each.troubles)
                        self._tell(each, now)

    def _tell(self, entry: Entry, now: dict[str, str]) -> None:
        before, entry.troubles = entry.troubles, now
        say = self._mounts.events.say
        if DEAD in now:
            entry.dead = now[DEAD]
            entry.poke()
            return
        for name, why in now.items():
            if name not in before:
                say("mount_trouble", path=entry.path, trouble=name, why=why)
                _log.warning("%s: %s", entry.path, why)
        for name in before:
            if name not in now:
                say("mount_recovered", path=entry.path, trouble=name)

    async def _grow(self, entry: Entry) -> None:
        """With its disk, if the host has made that larger."""
        wanted, device = entry.wanted, entry.device
        if device is None or not wanted.grow or wanted.read_only:
            return
        size = _size_of(device["name"])
        if size > device["size"]:
            device["size"] = size
            mounts = self._mounts
            await Attempt(entry, self._outside, mounts.resolve, mounts.events.say, mounts.note).grow()


def _is_there(name: str) -> bool:
    """Does the kernel still have that disk?"""
    return os.path.exists(f"/sys/class/block/{name}")


def _size_of(name: str) -> int:
    """As the kernel knows it, without a look at the disk; 0 for one that is gone."""
    try:
        with open(f"/sys/class/block/{name}/size", encoding="ascii") as file:
            return int(file.read()) * _SECTOR
    except (OSError, ValueError):
        return 0
