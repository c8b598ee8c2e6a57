"""The operation on the audit log: its records, and whether their chain holds."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import BadRequest, NotFound, Unsupported
from guestd.telemetry.trail import Trail
from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.link import Outgoing
    from guestd.service.session import Session
    from guestd.telemetry.audit import Audit
    from guestd.wire.messages import Fields

#: Records read at once: what is held for one who reads slowly.
_PIECE, _PIECE_BYTES = 200, 256 * 1024


def audit(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Show records, oldest first; with `follow` also those to come. With `verify`: check the chain."""
    log = session.telemetry.audit
    if log is None:
        raise Unsupported("there is no audit log here: it is switched off (audit.enabled)")
    if fields.flag("verify"):
        channel.accept({"path": log.path})
        connection.start_soon(channel, lambda: _verify(log), only_asks=True)
        return
    start, last = fields.integer("from", None), fields.integer("last", None)
    follow = fields.flag("follow")
    channel.accept({"path": log.path})
    reading = _Reading(channel)

    async def answer() -> dict[str, Any]:
        return await reading.run(log, start, last, follow=follow)

    connection.start_soon(channel, answer)
    channel.handler = reading


async def _verify(log: Audit) -> dict[str, Any]:
    try:
        report = await log.verify()
    except OSError as error:
        raise _unreadable(log, error) from None
    return {**report.to_map(), "path": log.path}


class _Reading:
    """The handler of a channel that shows records, each a frame of its own, pulled at the client's pace."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lines: deque[bytes] = deque()
        self._changed = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self, log: Audit, start: int | None, last: int | None, *, follow: bool) -> dict[str, Any]:
        """Read until all is shown; with `follow` until nobody looks any more."""
        trail: Trail | None = None
        log.followers.append(self._tell)
        try:
            with self._scope:
                await log.settle()
                newest = 0 if log.head is None else log.head.n
                if start is None:
                    start = 1 if last is None else max(1, newest - last + 1)
                trail = Trail(log.path, start)
                while True:
                    self._changed = trio.Event()
                    self._lines.extend(await log.look(lambda: trail.more(_PIECE, _PIECE_BYTES)))
                    if not self._lines and not follow:
                        break
                    if self._lines:
                        self._channel.wake()
                    await self._changed.wait()
                    while self._lines:
                        self._changed = trio.Event()
                        await self._changed.wait()
        except OSError as error:
            raise _unreadable(log, error) from None
        finally:
            log.followers.remove(self._tell)
            if trail is not None:
                trail.leave()
        return {"next": 1 if trail is None else trail.next}

    def _tell(self) -> None:
        self._changed.set()

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        del offset, data
        raise BadRequest(f"data for stream {stream}: records are only read", field="stream")

    def on_event(self, fields: Fields) -> None: ...

    def pull(self, most: int) -> Outgoing | None:
        del most
        if not self._lines:
            return None
        line = self._lines.popleft().decode("utf-8", "replace")
        if not self._lines:
            self._tell()
        return self._channel.control(Kind.EVENT, {"event": "record", "line": line})

    def closed(self) -> None:
        self._scope.cancel()


def _unreadable(log: Audit, error: OSError) -> NotFound:
    return NotFound(f"the audit log {log.path} cannot be read: {error.strerror}")
