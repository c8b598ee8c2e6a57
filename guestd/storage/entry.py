"""One mount and how it does: what is known of it, and what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from guestd.session.job import Job
    from guestd.storage.plan import Wanted

#: Not begun; being mounted; there; could not be mounted; was there and is not, or is dead; was taken down on request.
WAITING, MOUNTING, MOUNTED, FAILED, LOST, UNMOUNTED = (
    "waiting", "mounting", "mounted", "failed", "lost", "unmounted",
)  # fmt: skip
#: Where it comes from.
CONFIG, REQUEST, WORKSPACE = "config", "request", "workspace"


class Entry:
    """See the module."""

    def __init__(self, wanted: Wanted, origin: str) -> None:
        self.wanted = wanted
        self.origin = origin
        self.state = WAITING
        #: Why it is not as it should be, for a person; and what the kernel, or a program, had to say.
        self.why: str | None = None
        self.said: list[str] = []
        #: What it is good to know although nothing is wrong: it was formatted, mended, grown.
        self.notes: list[str] = []
        #: It was there before this session's guestd looked; then it is not taken down at the end.
        self.ours = False
        self.adopted = False
        self.attempts = 0
        self.since: float | None = None
        self.retry_at: float | None = None
        #: What is being done for it now.
        self.step = ""
        #: The disk, as the probe has told of it; the type of its file system.
        self.device: dict[str, Any] | None = None
        self.fs_type = ""
        #: The program of a FUSE mount.
        self.job: Job | None = None
        #: As the last look has found it.
        self.looked: dict[str, Any] | None = None
        #: What is wrong with it although it is mounted: `stalled`, `read_only`, `space`, `inodes`.
        self.troubles: dict[str, str] = {}
        #: It is there, or is not and everybody need wait for it no longer.
        self.settled = trio.Event()
        #: Set to have it tried again, or looked at, at once.
        self.poked = trio.Event()
        #: Set when whoever watches it has found it dead; the reason.
        self.dead: str | None = None
        self.scope = trio.CancelScope()
        self.done = trio.Event()

    @property
    def name(self) -> str:
        return self.wanted.name

    @property
    def path(self) -> str:
        return self.wanted.path

    @property
    def is_there(self) -> bool:
        return self.state == MOUNTED

    def unsettle(self) -> None:
        """Whoever needs it waits again. Those who wait already go on waiting for the same moment."""
        if self.settled.is_set():
            self.settled = trio.Event()

    def poke(self) -> None:
        """Something has happened: look at it now."""
        self.poked.set()

    def to_map(self, now: float) -> dict[str, Any]:
        """For `mounts`."""
        wanted = self.wanted
        looked = self.looked or {}
        return {
            "name": wanted.name,
            "path": wanted.path,
            "type": wanted.type,
            "source": wanted.source,
            "state": self.state,
            "why": self.why,
            "said": list(self.said),
            "notes": list(self.notes),
            "troubles": dict(self.troubles),
            "origin": self.origin,
            "required": wanted.required,
            "read_only": wanted.read_only,
            "adopted": self.adopted,
            "since": self.since,
            "attempts": self.attempts,
            "retry_in": None if self.retry_at is None else max(0.0, self.retry_at - now),
            "file_system": self.fs_type or None,
            "device": None if self.device is None else self.device["path"],
            "job": None if self.job is None else self.job.id,
            **{name: looked.get(name) for name in ("total", "free", "files", "files_free")},
        }
