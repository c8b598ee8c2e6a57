"""One mount's life: it is mounted, tried again, and mounted anew when it was lost.

Trying again begins after a second and takes twice as long each time, until the mount's time is over. Then nobody waits
for it any more; one of the settings is tried again all the same, ever more rarely, unless nothing can come of it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd import observe
from guestd.errors import StartFailed
from guestd.storage.ask import MountTrouble, Outside
from guestd.storage.attempt import Attempt
from guestd.storage.entry import FAILED, LOST, MOUNTED, MOUNTING, REQUEST, WAITING
from guestd.storage.health import may_come_back
from guestd.storage.mountinfo import visible
from guestd.storage.plan import needs
from guestd.storage.table import read_table
from guestd.storage.unmounting import REMOTE

if TYPE_CHECKING:
    from guestd.storage.entry import Entry
    from guestd.storage.mounts import Mounts

_log = logging.getLogger("guestd.mounts")
_FIRST, _SLOW, _SLOWEST = 1.0, 15.0, 300.0
#: What lived so long was a good start: after it, waiting begins anew.
_LASTED = 30.0
#: To take down what is dead.
_LAZY = 5.0
_LEAST = 0.2
TAKEN = "somebody has unmounted it; `guestctl mount {}` mounts it again"


class Keeper:
    """Looks after each of them."""

    def __init__(self, mounts: Mounts, outside: Outside) -> None:
        self._mounts = mounts
        self._outside = outside

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
            ours = entry.ours
            try:
                await self._wait_for_others(entry)
                entry.state = MOUNTING
                entry.attempts += 1
                begun = trio.current_time()
                wanted = entry.wanted
                observe.began("mount", entry, path=entry.path, type=wanted.type, source=wanted.source)
                mounts = self._mounts
                await Attempt(entry, self._outside, mounts.resolve, mounts.events.say, mounts.note).run()
            except MountTrouble as trouble:
                entry.why, entry.said = trouble.why, trouble.said
                if trouble.stage != "time":
                    # What was given up the kernel may still mount; what it has refused is not there.
                    entry.ours = ours
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
            ways = ["force", "lazy"] if entry.wanted.type in REMOTE else ["lazy"]
            await self._outside.do(
                f"mount-{entry.name}-unmount", _LAZY, do="unmount", path=entry.path, ways=ways
            )
        if not lasted:
            await trio.sleep(_FIRST)


async def _when_ended(entry: Entry, scope: trio.CancelScope) -> None:
    job = entry.job
    assert job is not None
    await job.ended.wait()
    result = job.result
    assert result is not None
    how = f"was ended by signal {result.signal}" if result.signal else f"ended with {result.status}"
    entry.dead = f"the program behind it {how}"
    scope.cancel()
