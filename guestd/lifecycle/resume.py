"""After a pause: what the machine could not notice by itself is mended in one go, and what was mended is told.

A machine that was stopped and goes on, perhaps as one of many copies of a snapshot, has a clock that is late, a random
generator that others have too, an identity that is not its own any more, and connections that lead nowhere. Its jobs,
their output and its files are what they were.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Protocol

import trio

from guestd import observe
from guestd.lifecycle import clock as clocks
from guestd.lifecycle.entropy import reseed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from guestd.config import Settings
    from guestd.lifecycle.events import Events
    from guestd.lifecycle.watch import Watch
    from guestd.session.jobs import Jobs

_log = logging.getLogger("guestd.life")
#: Earlier ids of a session that are told. A client that has been away for longer takes it for another one.
_PREVIOUS_MAX = 16


class Peer(Protocol):
    """A connection, as far as a resume needs it."""

    peer: str

    async def is_there(self, patience: float) -> bool:
        """Does the other side still answer?"""
        ...

    def drop(self, why: str) -> None: ...


class Resumable(Protocol):
    """The session's identity, and who is connected."""

    session_id: str
    generation: int
    previous: list[str]
    identity_changed: Callable[[str, int, list[str]], None]

    @property
    def connections(self) -> Collection[Peer]: ...


class Resume:
    """See the module. One at a time; whoever asks meanwhile waits, and has a resume of their own."""

    def __init__(
        self, settings: Settings, session: Resumable, jobs: Jobs, events: Events, watch: Watch
    ) -> None:
        self._settings = settings
        self._session = session
        self._jobs = jobs
        self._events = events
        self._watch = watch
        self._one = trio.Lock()
        self.clock_watch: clocks.ClockWatch | None = None
        #: What others have to mend: a name, and what does it. Its answer is told under that name.
        self.menders: dict[str, Callable[[], Awaitable[object]]] = {}

    async def run(
        self, cause: str, *, now: float | None = None, entropy: bytes = b"", by: Peer | None = None
    ) -> dict[str, Any]:
        """Mend everything. `now`: the wall clock of whoever knows it. `by`: who asks, and so is there."""
        received = trio.current_time()
        async with self._one:
            if now is not None:
                # Waiting for another resume is no reason to be late.
                now += trio.current_time() - received
            observe.began("resume", self, cause=cause, before=self._session.session_id)
            found: dict[str, Any] = {}
            try:
                found = await self._run(cause, now, entropy, by)
            finally:
                session = self._session
                observe.ended(
                    "resume", self, cause=cause, session=session.session_id, generation=session.generation,
                    off=found.get("clock", {}).get("off"), why=None if found else "it was not done to its end",
                    dropped=len(found.get("connections", {}).get("dropped", ())),
                )  # fmt: skip
            return found

    async def _run(self, cause: str, now: float | None, entropy: bytes, by: Peer | None) -> dict[str, Any]:
        found: dict[str, Any] = {"cause": cause, "clock": self._set_clock(now), "entropy": reseed(entropy)}
        self._draw_anew()
        self._watch.begin_anew()
        found["connections"] = await self._drop_dead(by)
        for name, mend in self.menders.items():
            try:
                found[name] = await mend()
            except Exception as error:  # noqa: BLE001  what one cannot mend, the others still do; the log has it
                _log.exception("resume: %s could not be mended", name)
                found[name] = {"why": repr(error)}
        from guestd.lifecycle.hooks import run_hooks

        resume = self._settings.resume
        found["hooks"] = hooks = list[dict[str, Any]]()
        await run_hooks(self._jobs, self._settings, "resume", resume.hooks, hooks, limit=resume.hook_timeout)
        session = self._session
        found.update(
            session_id=session.session_id, generation=session.generation, previous=session.previous[-1]
        )
        self._events.say(
            "resumed", cause=cause, session_id=session.session_id, generation=session.generation,
            clock=found["clock"]["off"], dropped=len(found["connections"]["dropped"]),
        )  # fmt: skip
        _log.info("resumed (%s): session %s, generation %d", cause, session.session_id, session.generation)
        return found

    def _set_clock(self, now: float | None) -> dict[str, Any]:
        source = "asked"
        if now is None:
            now, source = clocks.host_wall(), "host"
        found: dict[str, Any] = {
            "off": None,
            "set": False,
            "source": None if now is None else source,
            "why": None,
        }
        if now is None:
            found["why"] = "nobody told the time"
            return found
        try:
            off = found["off"] = clocks.set_wall(now)
            found["set"] = abs(off) > clocks.TOLERANCE
        except OSError as error:
            found["why"] = f"the clock cannot be set: {error.strerror}"
        if self.clock_watch is not None:
            # This jump is ours.
            self.clock_watch.forget()
        return found

    def _draw_anew(self) -> None:
        session = self._session
        session.previous = [*session.previous, session.session_id][-_PREVIOUS_MAX:]
        session.session_id = os.urandom(16).hex()
        session.generation += 1
        session.identity_changed(session.session_id, session.generation, session.previous)

    async def _drop_dead(self, by: Peer | None) -> dict[str, Any]:
        kept = 0
        dropped: list[str] = []

        async def ask(peer: Peer) -> None:
            nonlocal kept
            if peer is by or await peer.is_there(self._settings.resume.patience):
                kept += 1
            elif peer in self._session.connections:  # one that has ended by itself meanwhile is neither
                dropped.append(peer.peer)
                peer.drop("it did not answer after a resume")

        async with trio.open_nursery() as nursery:
            for peer in list(self._session.connections):
                nursery.start_soon(ask, peer)
        return {"kept": kept, "dropped": dropped}
