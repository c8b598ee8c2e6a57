"""What a connection needs to know of operations: how one is found, and the channel of one that only asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from guestd.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from guestd.service.channel import Channel, Handler
    from guestd.service.connection import Connection
    from guestd.service.link import Outgoing
    from guestd.wire.messages import Fields


_WAITING_MAX = 1024


class Operations(Protocol):
    """What can be asked for: by name, a function that begins it. It may raise what is wrong with the request."""

    def find(self, name: str) -> Callable[[Connection, Channel, Fields], None] | None: ...

    def names(self) -> list[str]: ...


class Waiting:
    """The handler of a channel whose operation has not begun: what comes for it meanwhile is kept."""

    def __init__(self, channel: Channel, scope: trio.CancelScope) -> None:
        self._channel = channel
        self._scope = scope
        self._kept: list[Callable[[Handler], None]] = []

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        copied = bytes(data)
        self._keep(lambda handler: handler.on_data(stream, offset, memoryview(copied)))

    def on_event(self, fields: Fields) -> None:
        self._keep(lambda handler: handler.on_event(fields))

    def _keep(self, again: Callable[[Handler], None]) -> None:
        if len(self._kept) >= _WAITING_MAX:
            raise BadRequest(
                f"more than {_WAITING_MAX} frames came before the operation had begun; wait for ACCEPT"
            )
        self._kept.append(again)

    def pull(self, most: int) -> Outgoing | None: ...

    def closed(self) -> None:
        self._scope.cancel()

    def hand_over(self) -> None:
        """To whoever has the channel now, all that came."""
        for again in self._kept:
            if self._channel.handler is not None:
                again(self._channel.handler)


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
