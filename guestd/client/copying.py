"""What all copies between here and the guest share: their terms, their count, and how they outlast a connection.

`persist` dials again after each connection that was lost, until the copy is done, `give_up` has passed without a
connection, or another connection would cure nothing. What is copied, and where it goes on, is the attempt's own
matter: a file is in guestd.client.copying_files, a tree in guestd.client.copying_trees.

What reads and writes on this side does so in a thread (`in_thread`): a slow disk does not keep the connection from its
heartbeat.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import trio

from guestd.client.backoff import Backoff, Notice
from guestd.client.keeper import is_passing
from guestd.errors import GuestdError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from guestd.client.client import Client
    from guestd.client.files import Digest, Where

    Dial = Callable[[], AbstractAsyncContextManager[Client]]

#: Read here, or gathered for a write here, in one go.
STEP = 1024 * 1024
_ZEROS = bytes(256 * 1024)


@dataclass
class Terms:
    """How copies are made."""

    dial: Dial
    where: Where = field(default_factory=dict)  # type: ignore[assignment]
    digest: Digest = "sha256"
    #: Owners, and set-uid and set-gid bits, are kept too.
    archive: bool = False
    #: Seconds without a connection after which it is given up; None never.
    give_up: float | None = None
    backoff: Backoff = field(default_factory=Backoff)
    notice: Callable[[Notice], None] = lambda _: None
    #: What another connection may cure.
    passing: Callable[[GuestdError], bool] = is_passing
    #: Hears of bytes that have come through.
    moved: Callable[[int], None] = lambda _: None


@dataclass
class Copied:
    """What was copied. `named` are the first of those that failed or were skipped."""

    entries: int = 0
    bytes: int = 0
    skipped: int = 0
    failed: int = 0
    named: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    digest: str | None = None
    #: The file changed while it was read.
    changed: bool = False

    def add(self, counts: dict[str, Any]) -> None:
        self.skipped += int(counts.get("skipped", 0))
        self.failed += int(counts.get("failed", 0))
        self.named += counts.get("named", [])


class Attempt(Protocol):
    """What is tried over one connection after another."""

    @property
    def progress(self) -> object:
        """Another value when a connection has brought anything."""
        ...

    async def over(self, client: Client) -> None: ...


async def persist(terms: Terms, attempt: Attempt) -> None:
    """Try until it is done, or what is wrong is nothing that another connection would cure."""
    lost_at: float | None = None
    tries, reached = 0, False
    while True:
        before, connected = attempt.progress, False
        try:
            async with terms.dial() as client:
                connected = reached = True
                if lost_at is not None:
                    terms.notice(Notice("again"))
                await attempt.over(client)
                return
        except GuestdError as error:
            now = trio.current_time()
            if attempt.progress != before:
                lost_at, tries = None, 0
            lost_at = now if lost_at is None else lost_at
            left = None if terms.give_up is None else lost_at + terms.give_up - now
            if not reached or not terms.passing(error) or (left is not None and left <= 0):
                raise
            delay = terms.backoff.delay(tries)
            if left is not None:
                delay = min(delay, left)
            terms.notice(Notice("lost" if connected else "failed", error, delay))
            tries += 1
        await trio.sleep(delay)


async def in_thread(step: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever the step gives
    """Waited for also when cancelled: what it writes to is closed by whoever comes next."""
    return await trio.to_thread.run_sync(step)


class Hash:
    """The digest of what is copied, of the whole; `text` is None where none was asked for."""

    def __init__(self, name: Digest) -> None:
        self._hash = None if name == "none" else hashlib.new(name)

    def add(self, data: bytes | memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def add_zeros(self, size: int) -> None:
        while self._hash is not None and size > 0:
            self._hash.update(_ZEROS[: min(size, len(_ZEROS))])
            size -= len(_ZEROS)

    @property
    def text(self) -> str | None:
        return None if self._hash is None else self._hash.hexdigest()
