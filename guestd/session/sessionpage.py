"""What is written down of the session itself, so that the next supervisor goes on with the same one.

One ledger of its own beside the jobs' pages: the session's id and generation, the ids that it had before, how it was
used, what it had mounted, and what uploads have left. The descriptors' keeper holds it until the session is over.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, cast

import msgpack

from guestd.session.memory import LedgerMemory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.process.store import FdStore

_log = logging.getLogger("guestd.chronicle")
SESSION_GROUP = "session"
_SESSION_MAX = 4 * 1024 * 1024


class SessionPage:
    """Who this session is: the same under the next supervisor, one generation further."""

    def __init__(
        self,
        store: FdStore,
        memory: LedgerMemory | None,
        session_id: str,
        generation: int,
        previous: list[str],
    ) -> None:
        self._store = store
        self._memory = memory
        self.session_id = session_id
        self.generation = generation
        #: Ids that it had before it was resumed.
        self.previous = previous
        #: How many supervisors it has had before this one.
        self.restarts = 0
        #: What the supervisor before this one knew of its use, and of what it is to end by.
        self.use: dict[str, Any] | None = None
        #: What it had mounted.
        self.mounts: list[dict[str, Any]] = []
        #: What was left of uploads whose clients may come back.
        self.uploads: list[dict[str, Any]] = []

    @classmethod
    def find(cls, handed: Mapping[str, list[int]], store: FdStore) -> SessionPage:
        """The one that was handed over; a new one where there is none."""
        page: SessionPage | None = None
        for fd in handed.get(SESSION_GROUP, ()):
            try:
                page = cls._read(LedgerMemory.adopt(fd), store)
                break
            except (KeyError, TypeError, ValueError) as error:
                # Of another version, or of one that died before it had written a word. A session that begins anew is
                # better than a supervisor that cannot begin.
                _log.warning("what was known of the session is not understood: %s", repr(error))
                os.close(fd)
                store.forget(SESSION_GROUP)
        if page is not None:
            page.write(page.session_id, page.generation, page.previous)
            return page
        memory = LedgerMemory(_SESSION_MAX) if store.there else None
        page = cls(store, memory, os.urandom(16).hex(), 0, [])
        # First written, then kept: whoever finds it can read it.
        page.write(page.session_id, page.generation, page.previous)
        if memory is not None:
            store.keep(SESSION_GROUP, [memory.fd])
        return page

    @classmethod
    def _read(cls, memory: LedgerMemory, store: FdStore) -> SessionPage:
        found = cast("dict[str, Any]", msgpack.unpackb(memory.ledger.read()))
        page = cls(store, memory, found["session_id"], found["generation"] + 1, found["previous"])
        # One of a version that did not count them: each generation was a restart, or left an id behind.
        page.restarts = found.get("restarts", found["generation"] - len(found["previous"])) + 1
        page.use = found["use"]
        page.mounts = found.get("mounts") or []
        page.uploads = found.get("uploads") or []
        return page

    def write(self, session_id: str, generation: int, previous: list[str]) -> None:
        """It is that from now on."""
        self.session_id, self.generation, self.previous = session_id, generation, previous
        self.note_use(self.use)

    def note_mounts(self, mounts: list[dict[str, Any]]) -> None:
        """It has these file systems mounted."""
        self.mounts = mounts
        self.note_use(self.use)

    def note_uploads(self, uploads: list[dict[str, Any]]) -> None:
        """These parts of files lie about."""
        self.uploads = uploads
        self.note_use(self.use)

    def note_use(self, use: dict[str, Any] | None) -> None:
        """It is used like that."""
        self.use = use
        if self._memory is not None:
            entry = {
                "session_id": self.session_id, "generation": self.generation, "previous": self.previous, "use": use,
                "mounts": self.mounts, "restarts": self.restarts, "uploads": self.uploads,
            }  # fmt: skip
            try:
                self._memory.ledger.write(msgpack.packb(entry))
            except ValueError as error:
                # What was written before stands: a little less is known of the session's use.
                _log.warning("the session's use could not be written down: %s", error)

    def close(self) -> None:
        """The session is over."""
        if self._memory is not None:
            self._store.forget(SESSION_GROUP)
            self._memory.close()
            self._memory = None
