"""Operations on the session's life: busy, events, timers, stop, resume."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from guestd.errors import BadRequest
from guestd.lifecycle.entropy import ENTROPY_MAX
from guestd.lifecycle.idle import Hold
from guestd.lifecycle.machine import ACTIONS, POWEROFF
from guestd.wire.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.lifecycle.events import Events
    from guestd.lifecycle.watch import Watch
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.link import Outgoing
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

_NAME_MAX = 256
_MOST_GRACE = 3600.0


def busy(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Keep the session awake: for so many seconds, or as long as the channel is open."""
    watch = session.life.watch
    by = fields.text("by", None, most=_NAME_MAX) or connection.peer
    if fields.has("for"):
        seconds = fields.seconds("for")
        watch.hold(Hold(by, session.clock()[1] + seconds))
        channel.accept({})
        channel.end({"by": by, "for": seconds})
        return
    channel.handler = Holding(watch, watch.hold(Hold(by, inf)))
    channel.accept({"by": by})


class Holding:
    """The handler of a channel whose being open keeps the session awake."""

    def __init__(self, watch: Watch, number: int) -> None:
        self._watch = watch
        self._number = number

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        del offset, data
        raise BadRequest(f"data for stream {stream}: a hold takes none", field="stream")

    def on_event(self, fields: Fields) -> None: ...

    def pull(self, most: int) -> Outgoing | None: ...

    def closed(self) -> None:
        self._watch.release(self._number)


def events(session: Session, _: Connection, channel: Channel, fields: Fields) -> None:
    """What has happened, and with `follow` what will."""
    found = session.life.events
    start = fields.integer("from", None)
    last = fields.integer("last", None)
    if start is None:
        start = found.oldest if last is None else max(found.oldest, found.next - last)
    follower = Following(channel, found, start, follow=fields.flag("follow"))
    channel.handler = follower
    channel.accept({"oldest": found.oldest, "next": found.next})
    channel.wake()


class Following:
    """The handler of a channel that shows events, each a frame of its own, pulled at the client's pace. `show`: what of
    an event this client is to see, if anything.
    """

    def __init__(
        self, channel: Channel, events: Events, start: int, *, follow: bool,
        show: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda event: event,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._events = events
        self._at = start
        self._follow = follow
        self._show = show
        events.followers.append(channel.wake)

    def on_data(self, stream: int, offset: int, data: memoryview) -> None:
        del offset, data
        raise BadRequest(f"data for stream {stream}: events are only read", field="stream")

    def on_event(self, fields: Fields) -> None: ...

    def pull(self, most: int) -> Outgoing | None:
        events = self._events
        if self._at >= events.next:
            return None if self._follow else self._channel.control(Kind.END, {"next": events.next})
        if self._at < events.oldest:
            missed = {"event": "missed", "from": self._at, "to": events.oldest}
            self._at = events.oldest
            return self._channel.control(Kind.EVENT, missed)
        while self._at < events.next:
            self._at += 1
            shown = self._show(events.get(self._at - 1))
            if shown is not None:
                return self._channel.control(Kind.EVENT, shown)
        return self.pull(most)

    def closed(self) -> None:
        self._events.followers.remove(self._channel.wake)


def timers(session: Session, _: Connection, channel: Channel, fields: Fields) -> None:
    """Change when the session ends by itself; answers with what is in force."""
    session.life.change(idle=fields.seconds("idle_timeout", None), lifetime=fields.seconds("lifetime", None))
    channel.accept({})
    channel.end(session.life.watch.describe())


def stop(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """End the session; the receipt is the answer. Asked for again, it is only ever shortened."""
    order = session.life.stop
    left = order.ask(
        "asked",
        grace=fields.seconds("grace", None, most=_MOST_GRACE),
        action=fields.choice("action", ACTIONS, POWEROFF),
        by=fields.text("by", None, most=_NAME_MAX) or connection.peer,
    )
    channel.accept({"cause": order.cause, "within": left})
    if order.receipt is not None:
        channel.end(order.receipt)
    else:
        order.listeners.append(channel.end)


def resume(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Mend what a pause has broken."""
    now = fields.raw("now")
    if now is not None and (isinstance(now, bool) or not isinstance(now, int | float) or not 0 < now < 2**33):
        raise fields.bad("now", "seconds since 1970")
    entropy = fields.raw("entropy") or b""
    if not isinstance(entropy, bytes) or len(entropy) > ENTROPY_MAX:
        raise fields.bad("entropy", f"at most {ENTROPY_MAX} bytes, as bin")
    channel.accept({})

    async def answer() -> dict[str, Any]:
        return await session.life.resume.run(
            "asked", now=None if now is None else float(now), entropy=entropy
        )

    connection.start_soon(channel, answer)
