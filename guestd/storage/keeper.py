"""One mount's life: it is mounted, tried again, watched over while it is there, and mounted anew when it was lost.

Trying again begins after a second and takes twice as long each time, until the mount's time is over. Then nobody waits
for it any more; one of the settings is tried again all the same, ever more rarely, unless nothing can come of it.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from guestd import observe
from guestd.errors import MountFailed, StartFailed
from guestd.storage.ask import MountTrouble, Outside
from guestd.storage.attempt import Attempt
from guestd.storage.entry import FAILED, LOST, MOUNTED, MOUNTING, REQUEST, UNMOUNTED, WAITING
from guestd.storage.health import DEAD, may_come_back, troubles, worth_looking
from guestd.storage.mountinfo import visible
from guestd.storage.plan import BIND, FUSE, NFS, NINEP, OVERLAY, TMPFS, VIRTIOFS, needs
from guestd.storage.table import read_table
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.storage.entry import Entry
    from guestd.storage.mounts import Mounts

_log = logging.getLogger("guestd.mounts")
_FIRST, _SLOW, _SLOWEST = 1.0, 15.0, 300.0
#: What lived so long was a good start: after it, waiting begins anew.
_LASTED = 30.0
#: To take down what is dead.
_LAZY = 5.0
#: For a FUSE program to write what it holds, after its mount was taken down on request.
_WRITING = 60.0
_LEAST = 0.2
_GONE = {"errno": errno.ENODEV}
_REMOTE = {NFS, NINEP, VIRTIOFS, FUSE}
TAKEN = "somebody has unmounted it; `guestctl mount {}` mounts it again"


class Keeper:
    """Looks after each of them."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self.outside = Outside(mounts.jobs, mounts.settings)
        self._one_look = trio.Lock()

    async def keep(self, entry: Entry) -> None:
        """Until it is taken down, or has failed for good."""
        try:
            with entry.scope:
                async with trio.open_nursery() as nursery:
                    await self._keep(entry, nursery)
                    nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  one mount's mistake is not the end of the others; the log has it
            _log.exception("guestd made a mistake with %s", entry.path)
            entry.state, entry.why = FAILED, f"guestd made a mistake: {error!r}; its log has more"
        finally:
            entry.settled.set()
            entry.done.set()
            self._mounts.look()

    async def _keep(self, entry: Entry, nursery: trio.Nursery) -> None:
        slow = _SLOW
        while True:
            if not entry.settled.is_set():
                nursery.start_soon(self._settle_in_time, entry, entry.settled)
            permanent = await self._until_mounted(entry)
            if permanent is None:
                slow, begun = _SLOW, trio.current_time()
                dead = await self._until_dead(entry)
                await self._lose(entry, dead, lasted=trio.current_time() - begun >= _LASTED)
                continue
            self._fail(entry)
            if entry.origin == REQUEST:
                return
            entry.retry_at = None if permanent else self._mounts.clock()[1] + slow
            with trio.move_on_after(float("inf") if permanent else slow):
                await entry.poked.wait()
            entry.retry_at = None
            slow = min(slow * 2, _SLOWEST)

    async def _settle_in_time(self, entry: Entry, settled: trio.Event) -> None:
        """What takes longer than it may goes on, and nobody waits for it."""
        with trio.move_on_after(entry.wanted.timeout):
            await settled.wait()
        if not settled.is_set():
            # Whoever tries it has as much time, and a better reason in a moment.
            await trio.sleep(_LEAST)
        if not settled.is_set() and entry.settled is settled:
            step = f"{entry.step or 'mounting it'} goes on"
            entry.why = f"it is not mounted after {entry.wanted.timeout:g} s: {entry.why or step}"
            self._say_failed(entry)
            settled.set()
            self._mounts.look()

    async def _until_mounted(self, entry: Entry) -> bool | None:
        """None when it is. Else whether trying again is of no use."""
        delay = _FIRST
        due = trio.current_time() + entry.wanted.timeout
        while True:
            entry.poked = trio.Event()
            try:
                await self._wait_for_others(entry)
                entry.state = MOUNTING
                entry.attempts += 1
                begun = trio.current_time()
                wanted = entry.wanted
                observe.began("mount", entry, path=entry.path, type=wanted.type, source=wanted.source)
                await Attempt(entry, self.outside, self._mounts.resolve, self._mounts.events.say).run()
            except MountTrouble as trouble:
                entry.why, entry.said = trouble.why, trouble.said
                permanent = trouble.stage in {"where", "program"}
            except StartFailed as failure:
                entry.why, entry.said, permanent = failure.message.removeprefix("could not start: "), [], True
            except trio.Cancelled:
                observe.ended("mount", entry, why="nobody wants it any more")
                raise
            else:
                observe.ended("mount", entry, adopted=entry.adopted)
                self._has_mounted(entry, trio.current_time() - begun)
                return None
            observe.ended("mount", entry, path=entry.path, why=entry.why)
            entry.step = ""
            _log.info("%s is not mounted: %s", entry.path, entry.why)
            if permanent or trio.current_time() + delay >= due or entry.settled.is_set():
                return permanent
            entry.state = WAITING
            with trio.move_on_after(delay):
                await entry.poked.wait()
            delay *= 2

    async def _wait_for_others(self, entry: Entry) -> None:
        for other in list(self._mounts.entries.values()):
            if other is not entry and needs(entry.wanted, other.wanted):
                entry.step = f"waiting for {other.path}"
                await other.settled.wait()
                if not other.is_there:
                    raise MountTrouble(f"it stands on {other.path}, which is not mounted", stage="other")

    def _has_mounted(self, entry: Entry, took: float) -> None:
        mounts, wanted = self._mounts, entry.wanted
        entry.state, entry.why, entry.said, entry.step, entry.dead = MOUNTED, None, [], "", None
        entry.troubles = {}
        entry.since = mounts.clock()[0]
        if entry.adopted:
            entry.ours = entry.ours or mounts.was_ours(entry.path)
        mounts.events.say(
            "mounted", path=entry.path, type=wanted.type, source=wanted.source, adopted=entry.adopted, took=took,
            notes="; ".join(entry.notes) or None,
        )  # fmt: skip
        _log.info("%s is mounted%s", entry.path, " already" if entry.adopted else "")
        entry.settled.set()
        mounts.note()
        mounts.look()
        for other in mounts.entries.values():
            if other.state == FAILED and needs(other.wanted, wanted):
                other.poke()

    def _fail(self, entry: Entry) -> None:
        entry.state = FAILED
        if not entry.settled.is_set():
            self._say_failed(entry)
            entry.settled.set()
        self._mounts.look()

    def _say_failed(self, entry: Entry) -> None:
        _log.warning("%s could not be mounted: %s", entry.path, entry.why)
        self._mounts.events.say(
            "mount_failed",
            path=entry.path,
            required=entry.wanted.required,
            why=entry.why,
            said=entry.said or None,
        )
        if entry.wanted.required and entry.origin != REQUEST:
            self._mounts.failed(entry.path)

    # ----------------------------------------------------------------------------------------------------- losing

    async def _until_dead(self, entry: Entry) -> str:
        """Why it is."""
        while entry.dead is None:
            entry.poked = trio.Event()
            async with trio.open_nursery() as nursery:
                if entry.job is not None:
                    nursery.start_soon(_when_ended, entry, nursery.cancel_scope)
                await entry.poked.wait()
                nursery.cancel_scope.cancel()
        return entry.dead

    async def _lose(self, entry: Entry, why: str, *, lasted: bool) -> None:
        """It is lost. Comes back when it is to be mounted anew."""
        taken = visible(read_table(), entry.path) is None and (entry.job is None or entry.job.result is None)
        entry.state, entry.dead = LOST, None
        entry.why = TAKEN.format(entry.path) if taken else why
        entry.troubles = {}
        again = not taken and may_come_back(entry.wanted)
        self._mounts.events.say("mount_lost", path=entry.path, why=entry.why, again=again)
        observe.did("mount_lost", "guestd", path=entry.path, why=entry.why, again=again)
        _log.warning("%s is lost: %s", entry.path, entry.why)
        if self._mounts.is_resting:
            await trio.sleep_forever()
        if again:
            # New work waits for it, as it did at the beginning.
            entry.unsettle()
        self._mounts.look()
        if not again:
            entry.poked = trio.Event()
            await entry.poked.wait()
            return
        with suppress(MountTrouble):
            # Whoever has files open there keeps them, dead as they are; everybody else sees what is mounted next.
            ways = ["force", "lazy"] if entry.wanted.type in _REMOTE else ["lazy"]
            await self.outside.do(
                f"mount-{entry.name}-unmount", _LAZY, do="unmount", path=entry.path, ways=ways
            )
        if not lasted:
            await trio.sleep(_FIRST)

    # -------------------------------------------------------------------------------------------------- taking down

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
        patience = min(limit, _LAZY) if force else limit
        try:
            told = await self.outside.do(name, patience, do="unmount", path=entry.path, ways=["plain"])
        except MountTrouble as trouble:
            if not force:
                raise
            ways = self._fallbacks(entry)
            told = await self.outside.do(
                name, max(_LEAST, limit - patience), do="unmount", path=entry.path, ways=ways
            )
            told["why"] = trouble.why
        return list(told["ways"])

    def _fallbacks(self, entry: Entry) -> list[str]:
        if entry.wanted.type in _REMOTE:
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
            job.end(EndedBy.STOP, grace=_FIRST)
            with trio.move_on_after(_FIRST + _LEAST):
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
        hangs = entry.wanted.type in _REMOTE and fields is not None and not fields["synced"]
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
                    await self.outside.do(name, share, do="unmount", path=entry.path, ways=["force", "lazy"])
                    return "force lazy", "it did not answer", False
                ways = await self._unmount(entry, share * 0.6, force=True)
                written = ways == ["plain"] and await self._let_write(
                    entry, share - (trio.current_time() - begun)
                )
                return " ".join(ways), None, written
        except MountTrouble as trouble:
            return None, trouble.why, False
        return None, "there was no time left", False

    # ------------------------------------------------------------------------------------------------------ looking

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
            if self.outside.running("mounts-look"):
                # The look before hangs, where it cannot be ended: no second one beside it.
                entries = [each for each in entries if "stalled" not in each.troubles]
            if not entries:
                return
            looked = await self.outside.look([each.path for each in entries], limit)
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


def _is_there(name: str) -> bool:
    """Does the kernel still have that disk?"""
    return os.path.exists(f"/sys/class/block/{name}")


async def _when_ended(entry: Entry, scope: trio.CancelScope) -> None:
    job = entry.job
    assert job is not None
    await job.ended.wait()
    result = job.result
    assert result is not None
    how = f"was ended by signal {result.signal}" if result.signal else f"ended with {result.status}"
    entry.dead = f"the program behind it {how}"
    scope.cancel()
