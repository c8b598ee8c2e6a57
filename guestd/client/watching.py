"""A watch of the guest's files across lost connections.

Promises. Nothing that happened while there was no connection is passed over in silence: over each new one the watch
begins with `rescan` and a listing of all there is, taken when everything was watched again. What was watched and is
not there any more is `gone`.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from guestd.client.copying import Terms, persist
from guestd.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.client.client import Client


class _Watch:
    def __init__(
        self,
        terms: Terms,
        path: str | bytes,
        tell: Callable[[dict[str, Any]], None],
        *,
        recursive: bool,
        ignore: Sequence[str] | None,
    ) -> None:
        self._terms = terms
        self._path = path
        self._tell = tell
        self._recursive = recursive
        self._ignore = ignore
        self._told = 0

    @property
    def progress(self) -> object:
        return self._told

    async def over(self, client: Client) -> None:
        events = client.files.watch(
            self._path,
            recursive=self._recursive,
            ignore=self._ignore,
            listing=self._told > 0,
            **self._terms.where,
        )
        try:
            async with aclosing(events):
                async for event in events:
                    self._tell(event)
                    self._told += 1
        except NotFound:
            if not self._told:
                raise
            self._tell({"event": "gone"})


async def watch(
    terms: Terms,
    path: str | bytes,
    tell: Callable[[dict[str, Any]], None],
    *,
    recursive: bool = True,
    ignore: Sequence[str] | None = None,
) -> None:
    """Tell what happens below a folder of the guest's, until that is gone; over each connection `watching` comes first.

    Of `terms`, it is `dial`, `where`, `give_up`, `backoff` and `notice` that count.
    """
    await persist(terms, _Watch(terms, path, tell, recursive=recursive, ignore=ignore))
