"""What a supervisor finds of the session before it: whatever that is, it begins."""

from __future__ import annotations

import os

import msgpack
import pytest

from guestd.process.store import FdStore
from guestd.session.memory import LedgerMemory
from guestd.session.sessionpage import SESSION_GROUP, SessionPage


def _kept(*entries: bytes) -> int:
    memory = LedgerMemory(4096)
    for entry in entries:
        memory.ledger.write(entry)
    return memory.fd


def test_a_session_goes_on_one_generation_further() -> None:
    entry = {"session_id": "it", "generation": 4, "previous": ["before"], "use": None}
    page = SessionPage.find({SESSION_GROUP: [_kept(msgpack.packb(entry))]}, FdStore({}))
    assert (page.session_id, page.generation, page.previous) == ("it", 5, ["before"])
    page.close()


def test_restarts_are_counted_however_often_it_was_resumed() -> None:
    """They were guessed from the generation and the ids before, of which only so many are kept."""
    entry = {"session_id": "it", "generation": 4, "previous": ["before"], "use": None}
    memory = LedgerMemory(4096)
    memory.ledger.write(msgpack.packb(entry))
    fd = memory.fd
    for restarts in (4, 5):
        page = SessionPage.find({SESSION_GROUP: [os.dup(fd)]}, FdStore({}))
        assert page.restarts == restarts
        for number in range(20):
            page.write(f"resumed {number}", page.generation + 1, ["a", "b"])
        page.close()
    memory.close()


@pytest.mark.logs("not understood")
@pytest.mark.parametrize(
    "entries",
    [[], [b"\xc1"], [msgpack.packb([1, 2])], [msgpack.packb({"session_id": "it"})]],
    ids=["nothing was written yet", "no MessagePack", "no map", "another version's"],
)
def test_what_is_not_understood_is_a_session_that_begins_anew(entries: list[bytes]) -> None:
    """A serve that was killed between having it kept and writing to it left one that no other could begin with."""
    fd = _kept(*entries)
    page = SessionPage.find({SESSION_GROUP: [fd]}, FdStore({}))
    assert (page.generation, page.previous) == (0, [])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    page.close()
