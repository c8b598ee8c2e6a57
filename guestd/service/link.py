"""A link: a connected peer that sends and takes whole frames. Several kinds, one shape; nothing above knows
which it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestd.wire.frames import Frame


class Outgoing(NamedTuple):
    """One frame to send: its head, length included, and bulk data that is sent from where it lies."""

    head: bytes
    data: memoryview | None = None


class Link(Protocol):
    """One task receives, one task sends."""

    #: Who is there, for logs.
    peer: str

    def allow(self, limit: int) -> None:
        """The peer has said who it is: frames up to `limit` from now on."""
        ...

    async def receive(self) -> Frame | None:
        """The next frame; None when the peer has closed. Its payload is good until the next call."""
        ...

    def send_now(self, frames: Sequence[Outgoing]) -> bool:
        """Send these frames. False when not all has left yet: then `flush` before the next call.

        What has not left is copied, so that the memory behind the frames may change as soon as this returns.
        """
        ...

    async def flush(self) -> bool:
        """Wait until some of what was given to `send_now` has left; True when all has. Cancelled, the link is
        no longer of use.
        """
        ...

    @property
    def unsent(self) -> int:
        """Bytes given to `send_now` that the peer has not taken, as far as the kernel tells."""
        ...

    async def close(self) -> None: ...
