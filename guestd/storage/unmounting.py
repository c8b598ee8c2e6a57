"""Mounts are taken down: one on request, or all of them, in order, at the end of the session.

Promises. What is written is on its disk or server first, where that can still be. What hangs is given up when its time
is over, and taken out of sight. A FUSE program has time to write what it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from guestd import observe
from guestd.errors import MountFailed
from guestd.storage.ask import MountTrouble
from guestd.storage.entry import LOST, MOUNTED, UNMOUNTED
from guestd.storage.mountinfo import visible
from guestd.storage.plan import BIND, FUSE, NFS, NINEP, OVERLAY, TMPFS, VIRTIOFS
from guestd.storage.table import read_table
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.storage.ask import Outside
    from guestd.storage.entry import Entry
    from guestd.storage.mounts import Mounts

#: Behind these is somebody who may not answer.
REMOTE = {NFS, NINEP, VIRTIOFS, FUSE}
#: To unmount in order what is then taken out of sight.
_ORDERLY = 5.0
#: For a FUSE program to write what it holds, after its mount was taken down on request.
_WRITING = 60.0
#: For one that has not ended by itself.
_GRACE = 1.0
_LEAST = 0.2


class Unmounting:
    """See the module."""

    def __init__(self, mounts: Mounts, outside: Outside) -> None:
        self._mounts = mounts
        self._outside = outside

    async def take_down(self, entry: Entry, *, force: bool) -> dict[str, Any]:
        """On request. Raises MountFailed, and then it is kept as before."""
        entry.scope.cancel()
        await entry.done.wait()
        ways: list[str] = []
        if entry.state in {MOUNTED, LOST} and visible(read_table(), entry.path) is not None:
            unmounting = ("unmount", entry)
            observe.began("unmount", unmounting, path=entry.path, force=force)
            try:
                ways = await self._unmount(entry, entry.wanted.timeout, force=force)
                observe.ended("unmount", unmounting)
            except MountTrouble as trouble:
                observe.ended("unmount", unmounting, why=trouble.why)
                self._mounts.resume(entry)
                raise MountFailed(trouble.why, path=entry.path, said=trouble.said or None) from None
        await self._let_write(entry, _WRITING)
        entry.state, entry.why, entry.ours, entry.job = UNMOUNTED, None, False, None
        self._mounts.events.say("unmounted", path=entry.path, ways=" ".join(ways) or None)
        return {"ways": ways}

    async def _unmount(self, entry: Entry, limit: float, *, force: bool) -> list[str]:
        """In order, or with fallbacks. What hangs is given up, and taken out of sight."""
        name = f"mount-{entry.name}-unmount"
        patience = min(limit, _ORDERLY) if force else limit
        try:
            told = await self._outside.do(name, patience, do="unmount", path=entry.path, ways=["plain"])
        except MountTrouble as trouble:
            if not force:
                raise
            ways = self._fallbacks(entry)
            told = await self._outside.do(
                name, max(_LEAST, limit - patience), do="unmount", path=entry.path, ways=ways
            )
            told["why"] = trouble.why
        return list(told["ways"])

    def _fallbacks(self, entry: Entry) -> list[str]:
        if entry.wanted.type in REMOTE:
            return ["force", "lazy"]
        # A file system that others have mounted too, or that is a part of another, is not to become read-only for them.
        table = read_table()
        mine = visible(table, entry.path)
        shared = mine is None or sum(1 for each in table if each.device == mine.device) > 1
        if shared or entry.wanted.type in {BIND, OVERLAY, TMPFS}:
            return ["lazy"]
        return ["read-only", "lazy"]

    async def _let_write(self, entry: Entry, limit: float) -> bool:
        """A FUSE program writes what it still holds, and ends by itself, once its mount is down. Did it?"""
        job = entry.job
        if job is None:
            return True
        with trio.move_on_after(limit):
            await job.ended.wait()
        by_itself = job.result is not None and job.result.status == 0
        if job.result is None:
            job.end(EndedBy.STOP, grace=_GRACE)
            with trio.move_on_after(_GRACE + _LEAST):
                await job.ended.wait()
        self._mounts.jobs.last.discard(job.id)
        self._mounts.jobs.reserved.discard(job.id)
        return by_itself

    async def end(
        self, entries: Sequence[Entry], until: Callable[[], float], told: list[dict[str, Any]]
    ) -> None:
        """At the end of the session: all of these, in this order, each with its share of the time."""
        for entry in entries:
            entry.scope.cancel()
        ours = {each.path for each in entries}
        for fields in told:
            if fields["path"] in ours:
                # Until it is down; also of those that all this ends before.
                fields["unmounted"] = None
        try:
            for at, entry in enumerate(entries):
                share = max(_LEAST, (until() - trio.current_time()) / (len(entries) - at))
                await self._end_and_tell(entry, share, told)
        finally:
            # A program that was not through by now has had its time; its mount goes with it.
            for entry in entries:
                if entry.job is not None:
                    entry.job.end(EndedBy.STOP, grace=0)

    async def _end_and_tell(self, entry: Entry, share: float, told: list[dict[str, Any]]) -> None:
        mounted = visible(read_table(), entry.path)
        if mounted is None:
            return
        fields = next((each for each in told if each["path"] == entry.path), None)
        # What did not answer a moment ago is not asked politely.
        hangs = entry.wanted.type in REMOTE and fields is not None and not fields["synced"]
        how, why, written = await self._end_one(entry, share, hangs=hangs)
        if fields is None:
            if entry.wanted.type in {TMPFS, BIND}:
                return
            fields = {
                "path": entry.path, "type": mounted.type, "source": mounted.source, "synced": False, "took": None,
                "why": None,
            }  # fmt: skip
            told.append(fields)
        fields["unmounted"] = how
        if entry.wanted.type == FUSE:
            # The kernel has no way to flush these: what counts is that the program has ended well.
            fields["synced"] = written
            fields["why"] = (
                None if written else why or "its program did not end by itself after it was unmounted"
            )
        elif not fields["synced"]:
            fields["why"] = fields["why"] or why

    async def _end_one(
        self, entry: Entry, share: float, *, hangs: bool
    ) -> tuple[str | None, str | None, bool]:
        """How it was unmounted, what was in the way, and whether its program has written all."""
        begun = trio.current_time()
        try:
            with trio.move_on_after(share):
                if hangs:
                    name = f"mount-{entry.name}-unmount"
                    await self._outside.do(name, share, do="unmount", path=entry.path, ways=["force", "lazy"])
                    return "force lazy", "it did not answer", False
                ways = await self._unmount(entry, share * 0.6, force=True)
                written = ways == ["plain"] and await self._let_write(
                    entry, share - (trio.current_time() - begun)
                )
                return " ".join(ways), None, written
        except MountTrouble as trouble:
            return None, trouble.why, False
        return None, "there was no time left", False
