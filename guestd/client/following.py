"""The session's events, or its audit log, followed across lost connections.

Promises. Each is told once, in order. What is no longer kept when the connection is there again is told as `missed`,
where the guest tells so. Another guestd, which counts its events anew, is told of from the oldest that it keeps.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from guestd.client.copying import persist
from guestd.client.keeper import is_passing
from guestd.errors import ShuttingDown, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from guestd.client.backoff import Notice
    from guestd.client.client import Client
    from guestd.client.copying import Terms
    from guestd.errors import GuestdError

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Ask(Protocol[Item_co]):
    """`Client.events` or `Client.audit`."""

    def __call__(
        self, client: Client, /, *, follow: bool = ..., last: int | None = ..., start: int | None = ...
    ) -> AsyncGenerator[Item_co]: ...


class _Follow(Generic[Item]):
    def __init__(
        self, ask: Ask[Item], number: Callable[[Item], int | None], is_farewell: Callable[[Item], bool],
        tell: Callable[[Item], None], last: int | None,
    ) -> None:  # fmt: skip
        self._ask = ask
        self._number = number
        self._is_farewell = is_farewell
        self._tell = tell
        self._last = last
        self._newest: tuple[int, Item] | None = None
        #: The guest has said that it goes, in one of these or as its last words.
        self.parting = False
        #: And it is gone.
        self.is_over = False

    @property
    def progress(self) -> object:
        return self._newest

    async def over(self, client: Client) -> None:
        start = await self._behind(client, *self._newest) if self._newest else None
        last = None if self._newest else self._last
        async with aclosing(self._ask(client, follow=True, last=last, start=start)) as items:
            async for item in items:
                self._tell(item)
                number = self._number(item)
                if number is not None:
                    self._newest = number, item

    def passing(self, error: GuestdError) -> bool:
        """May it go on? A session that stops says so; so does a guestd that is replaced, but that is there again."""
        self.is_over = self.parting and isinstance(error, Unavailable)
        told = self._newest is not None and self._is_farewell(self._newest[1])
        self.parting = told or error.details.get("reason") == ShuttingDown.code
        return is_passing(error) and not self.is_over

    async def _behind(self, client: Client, number: int, newest: Item) -> int | None:
        """Where to go on; None where that number is another's, or nobody's."""
        async with aclosing(self._ask(client, start=number)) as items:
            async for item in items:
                # One without a number says that it is no longer kept.
                same = item == newest or self._number(item) is None
                return number + 1 if same else None
        return None


async def follow(
    terms: Terms, ask: Ask[Item], number: Callable[[Item], int | None], is_farewell: Callable[[Item], bool],
    tell: Callable[[Item], None], *, last: int | None = None,
) -> None:  # fmt: skip
    """Tell them until the session has stopped; at first the `last` so many. `number` says which one it is, and None for
    what is not counted; `is_farewell`, whether it says that the session stops.

    Of `terms`, it is `dial`, `give_up`, `backoff` and `notice` that count.
    """
    attempt = _Follow(ask, number, is_farewell, tell, last)

    def tell_notice(notice: Notice) -> None:
        # A connection that is lost to a guest that goes is no trouble: it is the end, or the next guestd's beginning.
        if not (attempt.parting and notice.what == "lost"):
            terms.notice(notice)

    try:
        await persist(replace(terms, passing=attempt.passing, notice=tell_notice), attempt)
    except Unavailable:
        if not attempt.is_over:
            raise
