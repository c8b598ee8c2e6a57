"""All file systems that this session mounts: those of the settings, those asked for at run time, and the workspace.

Each is looked after by a task of its own, which mounts it, and mounts it again where it was lost and that is safe.
Nothing here touches a file system: the worker and programs do, outside of this process, and are given up when their
time is over. Work that is started waits until all required mounts are there or have failed (`wait`).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import BadRequest, Conflict, LimitReached, MountFailed, NotFound, ShuttingDown, Unsupported
from guestd.storage.entry import CONFIG, FAILED, MOUNTED, REQUEST, UNMOUNTED, WORKSPACE, Entry
from guestd.storage.home import Home
from guestd.storage.plan import Wanted, in_order, in_reverse, mistakes, needs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from guestd.config import Settings
    from guestd.lifecycle.events import Events
    from guestd.process.identity import Identity
    from guestd.session.jobs import Jobs
    from guestd.storage.keeper import Keeper
    from guestd.storage.lookout import Lookout
    from guestd.storage.unmounting import Unmounting

_log = logging.getLogger("guestd.mounts")
_CAP_SYS_ADMIN = 21
NO_RIGHT = "guestd has no right to mount here (CAP_SYS_ADMIN); give it that, or let the platform mount it"
TRIED = "`guestd init` is not PID 1: it is being tried, and mounts nothing on somebody's machine"


class Mounts:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        events: Events,
        clock: Callable[[], tuple[float, float]],
        resolve: Callable[[str], Identity],
    ) -> None:
        self.settings = settings
        self.jobs = jobs
        self.events = events
        self.clock = clock
        self.resolve = resolve
        self.entries: dict[str, Entry] = {}
        self.home = Home(settings, resolve)
        #: Why nothing is mounted here at all; empty where it can be.
        self.refused = ""
        #: Told when a required mount has failed and that is to end the session.
        self.failed: Callable[[str], None] = _nobody
        #: Told what a guestd after this one has to know.
        self.changed: Callable[[list[dict[str, Any]]], None] = _nobody
        #: Nobody need wait for any mount.
        self.is_open = True
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._keeper: Keeper | None = None
        self._lookout: Lookout | None = None
        self._unmounting: Unmounting | None = None
        self._kept: Mapping[str, bool] = {}
        self._ending = False

    # --------------------------------------------------------------------------------------------------- beginning

    def begin(self, refused: str, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        """Before anybody asks for anything. `kept`: what the guestd before this one has told. Waits for nothing."""
        self.refused = refused
        self._kept = {str(each["wanted"]["path"]): bool(each["ours"]) for each in kept}
        wanted = [(Wanted(vars(each)), CONFIG) for each in self.settings.mount]
        paths = {one.path for one, _ in wanted}
        for each in kept:
            one = Wanted(each["wanted"])
            # Of the settings before, or asked for at run time.
            if one.path not in paths and each["origin"] != WORKSPACE:
                wanted.append((one, REQUEST))
        for one, origin in wanted:
            self.entries[one.path] = Entry(one, origin)
        if self.home.path not in self.entries:
            found = self.home.begin(may_mount=not refused)
            if found is not None:
                self.entries[self.home.path] = Entry(found, WORKSPACE)
        if refused:
            for entry in self.entries.values():
                entry.state, entry.why = FAILED, refused
                entry.settled.set()
                entry.done.set()
        self.look()

    def was_ours(self, path: str) -> bool:
        """Has a guestd before this one mounted it?"""
        return bool(self._kept.get(path))

    async def run(self) -> None:
        """Until cancelled."""
        from guestd.storage.ask import Outside
        from guestd.storage.keeper import Keeper
        from guestd.storage.lookout import Lookout
        from guestd.storage.unmounting import Unmounting

        try:
            async with trio.open_nursery() as self._nursery:
                outside = Outside(self.jobs, self.settings)
                self._keeper = Keeper(self, outside)
                self._lookout = Lookout(self, outside)
                self._unmounting = Unmounting(self, outside)
                for one in in_order(entry.wanted for entry in self.entries.values()):
                    entry = self.entries[one.path]
                    if not self.refused:
                        self._nursery.start_soon(self._keeper.keep, entry)
                self._nursery.start_soon(self.home.run, self)
                self._nursery.start_soon(self._lookout.run)
                await trio.sleep_forever()
        finally:
            self._nursery = None

    # -------------------------------------------------------------------------------------------------- the gate

    def look(self) -> None:
        """Something has changed: need anybody wait still?"""
        waiting = self._waiting()
        lost = self._missing() if self.settings.storage.required != "allow" else []
        self.is_open = not waiting and not lost and self.home.settled
        self._news.set()
        self._news = trio.Event()

    def note(self) -> None:
        """What is mounted has changed: whoever comes after this guestd is to know."""
        self.changed(
            [
                {"wanted": each.wanted.to_map(secrets=True), "origin": each.origin, "ours": each.ours}
                for each in self.entries.values()
                if each.origin == REQUEST or each.ours
            ]
        )

    def _waiting(self) -> list[Entry]:
        """Those asked for at run time are waited for by whoever has asked."""
        return [
            each
            for each in self.entries.values()
            if each.wanted.required and each.origin != REQUEST and not each.settled.is_set()
        ]

    def _missing(self) -> list[Entry]:
        return [
            each
            for each in self.entries.values()
            if each.wanted.required
            and each.origin != REQUEST
            and each.settled.is_set()
            and each.state not in {MOUNTED, UNMOUNTED}
        ]

    async def wait(self) -> None:
        """Until work may be started. Raises MountFailed when it is not to be, for want of a required mount."""
        while not self.is_open:
            if self.home.settled and not self._waiting():
                raise self._refusal()
            await self._news.wait()

    async def wait_until_open(self) -> None:
        """The same for what has time: until they are there, however long that takes."""
        while not self.is_open:
            await self._news.wait()

    def _refusal(self) -> MountFailed:
        missing = self._missing()
        first = missing[0]
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        return MountFailed(
            f"{first.path} is required and is not mounted{more}: {first.why}; `guestctl mounts` shows more,"
            " `without_mounts` starts it all the same",
            path=first.path,
        )

    # --------------------------------------------------------------------------------------------------- at run time

    async def mount(self, fields: Mapping[str, object]) -> dict[str, Any]:
        """Mount something, or again what is known; answers when it is there."""
        if self.refused:
            raise Unsupported(f"nothing can be mounted: {self.refused}")
        entry = self._known(fields)
        if entry is None:
            entry = self._new(fields)
        elif entry.state == MOUNTED:
            return {**entry.to_map(self.clock()[1]), "created": False}
        else:
            entry.unsettle()
            if not entry.done.is_set() and entry.state != UNMOUNTED:
                entry.poke()
            else:
                self._start(entry)
        await entry.settled.wait()
        if entry.state != MOUNTED:
            if entry.origin == REQUEST and entry.state == FAILED:
                # Where a disk is still being checked or made, that goes on, and `mounts` has it.
                await entry.done.wait()
                self._forget(entry)
            raise MountFailed(
                f"{entry.path} could not be mounted: {entry.why or 'it was taken down again'}", path=entry.path,
                said=entry.said or None,
            )  # fmt: skip
        return {**entry.to_map(self.clock()[1]), "created": True}

    def _known(self, fields: Mapping[str, object]) -> Entry | None:
        """The mount that is meant: by its path or name alone, or asked for once more."""
        if not fields.get("type"):
            given = str(fields.get("path") or fields.get("name") or "")
            return self.find(given)
        wanted = Wanted(fields)
        entry = self.entries.get(wanted.path)
        if entry is not None and entry.wanted != wanted:
            raise Conflict(
                f"{wanted.path} is {entry.wanted.type} of {entry.wanted.source or '-'} already; unmount it first, or"
                " choose another path",
                path=wanted.path,
            )
        return entry

    def _new(self, fields: Mapping[str, object]) -> Entry:
        if self._ending or self._nursery is None:
            raise ShuttingDown("the session is stopping: nothing new is mounted")
        limit = self.settings.limits.mounts
        if len(self.entries) >= limit:
            raise LimitReached(
                f"{len(self.entries)} file systems are mounted and the limit is {limit}; unmount some, or raise"
                " limits.mounts",
                limit=limit, setting="limits.mounts",
            )  # fmt: skip
        wanted = Wanted(fields)
        others = [each.wanted for each in self.entries.values()]
        found = mistakes([*others, wanted], limit)
        if found:
            raise BadRequest(
                f"field {found[0].field!r} {found[0].what}; {found[0].fix}",
                field=found[0].field,
                expected=found[0].fix,
            )
        entry = self.entries[wanted.path] = Entry(wanted, REQUEST)
        self._start(entry)
        return entry

    def _start(self, entry: Entry) -> None:
        if self._nursery is None or self._keeper is None or self._ending:
            raise ShuttingDown("the session is stopping: nothing new is mounted")
        entry.done, entry.scope = trio.Event(), trio.CancelScope()
        self._nursery.start_soon(self._keeper.keep, entry)

    def resume(self, entry: Entry) -> None:
        """Look after it as before: it could not be taken down."""
        if self._nursery is not None and not self._ending:
            self._start(entry)

    async def unmount(self, given: str, *, force: bool) -> dict[str, Any]:
        """Take one down. What is in use is only taken away with `force`."""
        entry = self.find(given)
        above = [
            each.path for each in self.entries.values() if each.is_there and needs(each.wanted, entry.wanted)
        ]
        if above:
            raise Conflict(
                f"{' and '.join(sorted(above))} stand on {entry.path}; unmount them first", path=entry.path
            )
        if self._unmounting is None:
            raise ShuttingDown("guestd has just begun, or is at its end; ask again")
        told = await self._unmounting.take_down(entry, force=force)
        if entry.origin == REQUEST:
            self._forget(entry)
        self.note()
        self.look()
        return {"path": entry.path, "name": entry.name, **told}

    def find(self, given: str) -> Entry:
        """By path or by name."""
        for each in self.entries.values():
            if given.rstrip("/") in {each.path, each.name}:
                return each
        there = ", ".join(sorted(self.entries)) or "none"
        raise NotFound(f"no mount of guestd's is {given!r}; there are: {there}", path=given)

    def _forget(self, entry: Entry) -> None:
        if self.entries.get(entry.path) is entry:
            del self.entries[entry.path]
        self.note()
        self.look()

    # ----------------------------------------------------------------------------------------------- telling, mending

    def describe(self) -> dict[str, Any]:
        """For `mounts`."""
        now = self.clock()[1]
        return {
            "mounts": [self.entries[one.path].to_map(now) for one in self.ordered()],
            "workspace": self.workspace(),
            "refused": self.refused or None,
            "limit": self.settings.limits.mounts,
        }

    def ordered(self) -> list[Wanted]:
        """All, each behind what it needs."""
        return in_order(each.wanted for each in self.entries.values())

    def workspace(self) -> dict[str, Any]:
        """For `status`: where it is, and whether it outlives this machine."""
        return self.home.describe(self.entries.get(self.home.path))

    def summary(self) -> dict[str, Any]:
        """For `status`."""
        entries = self.entries.values()
        return {
            "mounted": sum(1 for each in entries if each.is_there),
            "wanted": len(self.entries),
            "ready": self.is_open,
            "troubles": [
                {"path": each.path, "state": each.state, "why": each.why or "; ".join(each.troubles.values())}
                for each in entries
                if each.why or each.troubles
            ],
        }

    async def mend(self) -> dict[str, Any]:
        """After a pause of the machine: what is lost is mounted again now, and not at its next turn."""
        for each in self.entries.values():
            if each.state not in {MOUNTED, UNMOUNTED} and not each.done.is_set():
                each.unsettle()
                each.poke()
        if self._lookout is not None:
            await self._lookout.look_now(self.settings.resume.patience)
            with trio.move_on_after(self.settings.resume.patience):
                for each in list(self.entries.values()):
                    await each.settled.wait()
        return {each.path: each.state for each in self.entries.values()}

    def add_workspace(self, entry: Entry) -> None:
        """It was found only now."""
        self.entries[entry.path] = entry
        self._start(entry)
        self.look()

    async def look_now(self, limit: float) -> None:
        """Have every mount looked at, for who wants to know how they do now."""
        if self._lookout is not None:
            await self._lookout.look_now(limit)

    def rest(self) -> None:
        """The session is stopping: nothing is tried any more, and what is mounted stays until the end."""
        self._ending = True
        for each in self.entries.values():
            if not each.is_there:
                each.scope.cancel()

    @property
    def is_resting(self) -> bool:
        return self._ending

    async def end(self, until: Callable[[], float], told: list[dict[str, Any]]) -> None:
        """At the end of the session: take down what is ours, in reverse, and say in the entries of `told` how."""
        self._ending = True
        if self._unmounting is not None:
            order = [self.entries[one.path] for one in in_reverse(self.ordered())]
            await self._unmounting.end([each for each in order if each.ours], until, told)


def may_mount(environ: Mapping[str, str]) -> str:
    """Why not; empty where mounts can be made."""
    if "init" in environ.get("LISTEN_FDNAMES", "").split(":") and os.getppid() != 1:
        return TRIED
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                able = int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1
                return "" if able else NO_RIGHT
    return NO_RIGHT


def _nobody(_: object) -> None:
    """Nobody is told."""
