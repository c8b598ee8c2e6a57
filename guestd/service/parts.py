"""Parts of uploads: what has arrived of a file whose connection was lost, kept for the client to come back.

Promises. Each is taken away when `files.keep_partial` is over, also by the guestd after this one where somebody keeps
its descriptors, and at the end of the session. They are bounded: the oldest give way.
"""

from __future__ import annotations

import logging
import marshal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from guestd.errors import GuestdError, StartFailed
from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guestd.process.identity import Identity
    from guestd.service.files import Files
    from guestd.service.session import Session

    Ask = dict[str, Any]
    Key = tuple[object, ...]

_log = logging.getLogger("guestd.files")
#: So many are kept.
_MOST = 256
#: So many are taken away side by side when the session ends.
_AT_ONCE = 4
#: Of a request, what it takes to find its part again.
_NOTED = ("path", "root", "bases", "uid", "upload")


def key_of(ask: Ask) -> Key:
    """What makes two requests one upload."""
    return (ask["uid"], ask["root"], ask["path"], ask["upload"])


class _Waiting(NamedTuple):
    identity: Identity
    ask: Ask
    #: Of the wait for its time to be over.
    scope: trio.CancelScope


class Parts:
    """See the module."""

    def __init__(self, files: Files, session: Session) -> None:
        self._files = files
        self._session = session
        # Those that nobody sends at the moment.
        self._waiting: dict[Key, _Waiting] = {}
        # All that there are, or may be: whoever comes after this guestd has to know.
        self._noted: dict[Key, dict[str, Any]] = {}
        self._ending = False

    # ------------------------------------------------------------------------------------------------ what happens

    def begin(self, identity: Identity, ask: Ask) -> None:
        """Somebody sends it, for the first time or again."""
        key = key_of(ask)
        self._forget(key)
        self._note(key, identity, ask)

    def leave(self, identity: Identity, ask: Ask) -> None:
        """Nobody sends it any more, and somebody may come back for it."""
        key = key_of(ask)
        self._forget(key)
        if len(self._waiting) >= _MOST:
            # The oldest one's time is over now.
            self._waiting[next(iter(self._waiting))].scope.cancel()
        self._note(key, identity, ask)
        part = _Waiting(identity, {**ask, "op": "discard"}, trio.CancelScope())
        if self._ending:
            part.scope.cancel()
        self._waiting[key] = part
        self._session.nursery.start_soon(self._discard_later, key, part)

    def end(self, ask: Ask) -> None:
        """One who sent it has ended. If nothing was left there is nothing to know."""
        key = key_of(ask)
        if key not in self._waiting and not self._files.sending(key) and self._noted.pop(key, None):
            self._tell()

    def take_over(self, noted: Sequence[Mapping[str, Any]]) -> None:
        """What the guestd before this one has left. Their time begins anew."""
        for each in noted:
            ask = {name: each[name] for name in _NOTED}
            if key_of(ask) in self._noted:
                continue  # somebody was quicker, and goes on with it
            try:
                identity = self._files.users.resolve(each["user"], None, None, self._files.own)
            except StartFailed as error:
                _log.info("a part of %s stays: %s", self._files.shown(ask), error.message)
                continue
            self.leave(identity, ask)

    async def discard_all(self) -> None:
        """Nobody will come back any more."""
        self._ending = True
        few = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for key in list(self._waiting):
                part = self._waiting[key]
                self._forget(key)
                nursery.start_soon(self._discard, part, few)

    # --------------------------------------------------------------------------------------------------- underneath

    def _note(self, key: Key, identity: Identity, ask: Ask) -> None:
        if key not in self._noted:
            self._noted[key] = {**{name: ask[name] for name in _NOTED}, "user": identity.name}
            self._tell()

    def _tell(self) -> None:
        self._session.uploads_changed(list(self._noted.values()))

    def _forget(self, key: Key) -> None:
        """It does not wait any longer."""
        part = self._waiting.pop(key, None)
        if part is not None:
            part.scope.cancel()

    async def _discard_later(self, key: Key, part: _Waiting) -> None:
        with part.scope:
            await trio.sleep(self._session.settings.files.keep_partial)
        if self._waiting.get(key) is not part:
            return
        del self._waiting[key]
        if not self._files.sending(key):
            await self._discard(part)
            self.end(part.ask)

    async def _discard(self, part: _Waiting, limiter: trio.CapacityLimiter | None = None) -> None:
        files, where = self._files, self._files.shown(part.ask)
        async with limiter or nullcontext():
            try:
                agent = await files.agents.get(part.identity, watches=False)
            except (GuestdError, OSError) as error:
                _log.info("a part of %s stays, for want of a process: %s", where, error)
                return
            try:
                agent.line.send(bytes((Kind.OPEN,)) + marshal.dumps(part.ask))
                with trio.move_on_after(files.timeout):
                    await trio.lowlevel.wait_readable(agent.line)
            except OSError as error:
                _log.info("a part of %s stays: %s", where, error)
            finally:
                files.agents.put_away(agent, where)
