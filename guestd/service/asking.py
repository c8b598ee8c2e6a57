"""What a connection needs to know of operations: how one is found, and the channel of one that only asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.link import Outgoing
    from guestd.wire.messages import Fields


class Operations(Protocol):
    """What can be asked for: by name, a function that begins it. It may raise what is wrong with the request."""

    def find(self, name: str) -> Callable[[Connection, Channel, Fields], None] | None: ...

    def names(self) -> list[str]: ...


class Asking:
    """The handler of a channel that waits for an answer. When nobody wants it any more, nothing waits for it."""

    def __init__(self, channel: Channel, scope: trio.CancelScope) -> None:
        self._channel = channel
        self._scope = scope

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        del stream, offset
        self._channel.consumed(len(data))

    def on_event(self, fields: Fields) -> None: ...

    def pull(self, most: int) -> Outgoing | None: ...

    def closed(self) -> None:
        self._scope.cancel()
