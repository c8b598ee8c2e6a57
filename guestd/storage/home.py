"""Where the session's workspace is: found, or made, and whether it outlives the machine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from guestd.errors import GuestdError
from guestd.process.mounts import is_local
from guestd.storage import workspace
from guestd.storage.directory import make_directory
from guestd.storage.entry import WORKSPACE, Entry
from guestd.storage.plan import BLOCK, TMPFS, Wanted
from guestd.storage.table import read_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.config import Settings
    from guestd.process.identity import Identity
    from guestd.storage.ask import Outside
    from guestd.storage.mounts import Mounts

_log = logging.getLogger("guestd.mounts")
#: For a look at the disks, and for a directory on a file system of somebody else's.
_PATIENCE = 10.0


class Home:
    """See the module."""

    def __init__(self, settings: Settings, resolve: Callable[[str], Identity]) -> None:
        self.path = settings.workspace.rstrip("/") or "/"
        self._resolve = resolve
        self._persistent = False
        self._what = "directory"
        self._why: str | None = None
        self._candidates: list[Wanted] = []
        #: Nobody need wait for it.
        self.settled = True

    def begin(self, *, may_mount: bool) -> Wanted | None:
        """What is to be mounted, where that is clear at once. Waits for nothing."""
        table = read_table()
        there = workspace.there_already(table, self.path)
        if there is not None:
            self._persistent, self._what = there
            return None
        if may_mount:
            self._candidates = workspace.candidates(self.path, table)
            first = self._candidates[0] if self._candidates else None
            if first is not None and first.type == BLOCK and first.source.startswith("serial="):
                self._candidates = []
                return first
        home = workspace.home(table, self.path)
        if self._candidates or (home is not None and not is_local(home.type)):
            self.settled = False
        else:
            self._make()
        return None

    async def run(self, mounts: Mounts) -> None:
        """Look where one has to look, then settle for a directory."""
        if self.settled:
            return
        # Late: most sessions know at once.
        from guestd.storage.ask import MountTrouble, Outside

        outside = Outside(mounts.jobs, mounts.settings)
        try:
            for one in self._candidates:
                if (found := await self._find(one, outside)) is not None:
                    mounts.add_workspace(found)
                    return
            identity = self._resolve("")
            owner = {"uid": identity.uid, "gid": identity.gid}
            await outside.do("mount-workspace-directory", _PATIENCE, do="directory", path=self.path, **owner)
        except MountTrouble as trouble:
            self._fail(trouble.why)
        finally:
            self.settled = True
            mounts.look()

    async def _find(self, one: Wanted, outside: Outside) -> Entry | None:
        """A disk is asked for its label; a share, whose tag this kernel does not tell, can only be tried: then it is
        mounted already, and by whom the entry says.
        """
        from guestd.storage.ask import MountTrouble
        from guestd.storage.attempt import Attempt

        entry = Entry(one, WORKSPACE)
        try:
            if one.type == BLOCK:
                await outside.do("mount-workspace-probe", _PATIENCE, do="probe", source=one.source, format="")
            else:
                await Attempt(entry, outside, self._resolve, lambda *_, **__: None, lambda: None).run()
        except MountTrouble as trouble:
            _log.info("no workspace at %s: %s", one.source, trouble.why)
            return None
        return entry

    def _make(self) -> None:
        try:
            identity = self._resolve("")
            make_directory(self.path, identity.uid, identity.gid)
        except (OSError, GuestdError) as error:
            self._fail(f"{error.strerror if isinstance(error, OSError) else error}")

    def _fail(self, why: str) -> None:
        self._why = f"it cannot be made: {why}"
        _log.warning("no workspace at %s: %s", self.path, why)

    def describe(self, entry: Entry | None) -> dict[str, Any]:
        """`persistent`: it outlives this machine. `what`: what it is, for people."""
        if entry is None:
            why = self._why or (
                None if self._persistent else "it is lost with this machine: no disk or share is there for it"
            )
            return {"path": self.path, "persistent": self._persistent, "what": self._what, "why": why}
        wanted = entry.wanted
        return {
            "path": self.path,
            "persistent": entry.is_there and wanted.type != TMPFS,
            "what": f"{entry.fs_type or wanted.type} of {wanted.source or '-'}",
            "why": entry.why if not entry.is_there else "it is in memory" if wanted.type == TMPFS else None,
        }
