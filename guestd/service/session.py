"""What operations work on: the session as one value, with its identity and its counters."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import guestd
from guestd.wire.hello import Hello

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from guestd.config import Settings
    from guestd.lifecycle.life import Life, Peer
    from guestd.lifecycle.upgrade import Upgrade
    from guestd.process.reaper import Reaper
    from guestd.process.spawn import Spawner
    from guestd.relay.relays import Relays
    from guestd.service.agentcore.surface import Surface
    from guestd.service.bounds import Bounds
    from guestd.service.files import Files
    from guestd.session.jobs import Jobs
    from guestd.telemetry.telemetry import Telemetry


@dataclass(slots=True, kw_only=True)
class Session:
    """One boot of one supervisor. `session_id` is drawn for each, and anew by a resume; `boot_id` is the kernel's."""

    settings: Settings
    jobs: Jobs
    reaper: Reaper
    spawner: Spawner
    clock: Callable[[], tuple[float, float]]
    has_cgroups: bool
    upgrade: Upgrade
    boot_id: str
    connections: set[Peer] = field(default_factory=set["Peer"])
    listening: list[str] = field(default_factory=list[str])
    session_id: str = field(default_factory=lambda: os.urandom(16).hex())
    generation: int = 0
    #: Told of another identity.
    identity_changed: Callable[[str, int, list[str]], None]
    #: Told of the parts of uploads that are there, for whoever comes after this guestd.
    uploads_changed: Callable[[list[dict[str, Any]]], None]
    started: tuple[float, float] = (0.0, 0.0)
    served: int = 0
    #: Of those connections, how many are of the guest's own programs.
    guests: int = 0
    #: Another guestd takes over in a moment: what would begin now is for that one.
    leaving: bool = False
    #: What HTTP requests are for, once there was one.
    surface: Surface | None = None
    #: Ids this session had before it was resumed, oldest first: who knew it by one of them finds its jobs here.
    previous: list[str] = field(default_factory=list[str])
    #: How many supervisors it has had before this one.
    restarts: int = 0
    #: The last request that counts as use, and when, by the monotonic clock.
    requested: tuple[str, float] = ("", 0.0)
    #: There from the first moment on in which anybody can ask for anything.
    life: Life = field(init=False)
    telemetry: Telemetry = field(init=False)
    #: So are these.
    relays: Relays = field(init=False)
    #: For what outlives connections and is no job. Ends when the session has stopped.
    nursery: trio.Nursery = field(init=False)
    #: There from the first request about files on.
    files: Files | None = None

    def hello(self, features: list[str], bounds: Bounds) -> Hello:
        return Hello(
            agent=f"guestd {guestd.__version__}", features=tuple(features), frame=bounds.frame, window=bounds.window,
            channels=bounds.channels, identity=self.identity(),
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "boot_id": self.boot_id,
            "session_id": self.session_id,
            "generation": self.generation,
        }
        if self.previous:
            found["previous"] = list(self.previous)
        return found


def read_boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
