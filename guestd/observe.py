"""What happens, said as it happens, to whoever listens: the seam between what guestd does and those who watch it.

Whoever does something says so with a call of one of these, and knows nothing of spans, metrics, records or files. The
observers are called at once, in the loop's own thread: they note what they need, never wait and never raise. With
nobody listening a call costs as much as looking into an empty list.

    began("mount", mount, path=…, driver=…)     something that lasts has begun; `thing` is its identity: any hashable
    ended("mount", mount, why=None)             the same has ended; `why` says what went wrong, if anything did
    did("upgrade", peer, result="accepted")     something was done, by whom

A fact is a number, a text, a flag, or a list of texts; None is no fact. Facts of `began` and `ended` are put together.
"""

from __future__ import annotations

# Imported before READY: not even typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import Protocol

    class Observer(Protocol):
        """Hears of everything."""

        def began(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None: ...
        def ended(self, kind: str, thing: Hashable, facts: Mapping[str, object]) -> None: ...
        def did(self, deed: str, who: str, facts: Mapping[str, object]) -> None: ...


observers: list[Observer] = []


def began(kind: str, thing: Hashable, /, **facts: object) -> None:
    """It has begun."""
    for each in observers:
        each.began(kind, thing, facts)


def ended(kind: str, thing: Hashable, /, **facts: object) -> None:
    """It has ended. One that nobody has heard the beginning of is told all the same."""
    for each in observers:
        each.ended(kind, thing, facts)


def did(deed: str, who: str, /, **facts: object) -> None:
    """It was done. `who`: the peer, or "guestd"."""
    for each in observers:
        each.did(deed, who, facts)
