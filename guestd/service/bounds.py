"""What one connection may take of the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from guestd.errors import LimitReached, PeerTooSlow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guestd._config_table import Limits

#: Control frames that wait to be sent. Above it nothing more is read: who asks must also listen.
_QUEUE_BYTES = 1024 * 1024


class Bounds(NamedTuple):
    """`limits` by the same names, for a connection that has others."""

    handshake: float
    frame: int
    window: int
    channels: int
    write_stall: float
    queue: int = _QUEUE_BYTES
    #: Settings of these names raise them. Otherwise they are fixed.
    are_settings: bool = True
    #: It is worth no line of the log, and no record: anybody could make as many as they like.
    quiet: bool = False
    #: Waited for before each frame of the peer's is heeded.
    pace: Callable[[], Awaitable[object]] | None = None

    def too_slow(self, what: str, name: str) -> PeerTooSlow:
        """One of the times was not kept."""
        return PeerTooSlow(
            f"{what} {getattr(self, name)} s{f' (limits.{name})' if self.are_settings else ''}"
        )

    def too_many_channels(self) -> LimitReached:
        """One more than there may be."""
        text = f"{self.channels} channels are open on this connection; close some"
        if not self.are_settings:
            return LimitReached(text, limit=self.channels)
        return LimitReached(
            f"{text}, or raise limits.channels", limit=self.channels, setting="limits.channels"
        )


def of_limits(limits: Limits) -> Bounds:
    """Those of who may do everything."""
    return Bounds(limits.handshake, limits.frame, limits.window, limits.channels, limits.write_stall)
