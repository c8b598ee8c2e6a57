"""What a program of the guest may ask for, through the guest-local socket: to keep the session awake, what does so now,
and what is about to happen. Nothing here drives the supervisor, or tells of what others run.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import guestd
from guestd import observe
from guestd.lifecycle.idle import Hold
from guestd.service.lifecycle import Following, Holding

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.session import Session
    from guestd.wire.messages import Fields

    Operation = Callable[[Session, "Guest", Channel, Fields], None]

_NAME_MAX = 64
#: Looking at every shell of the session costs something: whoever asks more often gets the same answer.
_FRESH = 1.0
#: Leases of guests that the audit log tells of, a minute.
_RECORDED, _MINUTE = 10, 60.0
#: Of which events, and of them what, everybody may know.
_COMMON = ("event", "n", "at", "mono")
_PUBLIC: dict[str, tuple[str, ...]] = {
    "idle_soon": ("stops_in",),
    "lifetime_soon": ("stops_in",),
    "active": (),
    "stopping": ("cause", "grace"),
    "resumed": ("cause",),
    "missed": ("from", "to"),
}
_TIMES = ("idle_for", "idle_timeout", "lifetime", "lifetime_left", "stops_in", "stops_for")


class Guest(NamedTuple):
    """Who is there, by the kernel's word at the moment of the connection."""

    uid: int
    pid: int

    def __str__(self) -> str:
        return f"uid {self.uid} pid {self.pid}"


class Glance:
    """What keeps the session awake, as seen at most a second ago."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen: dict[str, Any] = {}
        self._good_until = -inf

    def look(self) -> dict[str, Any]:
        now = self._session.clock()[1]
        if now >= self._good_until:
            found = self._session.life.watch.describe()
            # By kind: which commands, and what runs in a shell, is not everybody's to know.
            kinds = dict.fromkeys(str(reason).partition(" ")[0] for reason in found["busy"])
            self._seen = {"busy": list(kinds), **{name: found[name] for name in _TIMES}}
            self._good_until = now + _FRESH
        return self._seen


class Leases:
    """Records of leases that guests take. So many a minute, of all of them together: a program of the guest is not to
    fill the audit log until what others have done is turned out of it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._room, self._at = float(_RECORDED), 0.0
        self._unrecorded = 0

    def note(self, guest: Guest, **facts: object) -> None:
        now = self._session.clock()[1]
        self._room = min(float(_RECORDED), self._room + (now - self._at) * _RECORDED / _MINUTE)
        self._at = now
        if self._room < 1.0:
            self._unrecorded += 1
            return
        self._room -= 1.0
        observe.did("busy", f"guest {guest}", **facts, unrecorded=self._unrecorded or None)
        self._unrecorded = 0


class GuestOperations:
    """The table, bound to one guest."""

    def __init__(self, session: Session, guest: Guest, glance: Glance, leases: Leases) -> None:
        self._session = session
        self._guest = guest
        self._glance = glance
        self._leases = leases
        self._table: dict[str, Callable[[Connection, Channel, Fields], None]] = {
            "busy": self._busy,
            "events": self._events,
            "status": self._status,
        }

    def find(self, name: str) -> Callable[[Connection, Channel, Fields], None] | None:
        return self._table.get(name)

    def names(self) -> list[str]:
        return sorted(self._table)

    def _busy(self, _: Connection, channel: Channel, fields: Fields) -> None:
        """Take a lease: for so many seconds, or as long as the channel is open."""
        bounds, watch = self._session.settings.agent, self._session.life.watch
        uid = self._guest.uid
        name = fields.text("by", "", most=_NAME_MAX)
        if not name.isprintable():
            raise fields.bad("by", "a name of printable characters")
        by = f"{self._guest} ({name})" if name else str(self._guest)
        if not fields.has("for"):
            channel.handler = Holding(watch, watch.hold(Hold(by, inf, uid, name), bounds.leases))
            self._leases.note(self._guest, by=name or None)
            channel.accept({"by": by})
            return
        seconds = fields.seconds("for")
        if seconds > bounds.longest_lease:
            raise fields.bad("for", f"at most {bounds.longest_lease:g} seconds (agent.longest_lease)")
        watch.hold(Hold(by, self._session.clock()[1] + seconds, uid, name), bounds.leases)
        self._leases.note(self._guest, by=name or None, seconds=seconds)
        channel.accept({})
        channel.end({"by": by, "for": seconds})

    def _status(self, _: Connection, channel: Channel, fields: Fields) -> None:
        """What keeps the session awake, and until when; and the caller's own leases."""
        del fields
        session = self._session
        now = session.clock()[1]
        stop = session.life.stop
        channel.accept({})
        channel.end({
            "version": guestd.__version__,
            "you": self._guest._asdict(),
            "activity": self._glance.look(),
            "stopping": stop.cause if stop.asked.is_set() else None,
            "leases": [
                {"by": hold.by, "left": None if hold.until == inf else hold.until - now}
                for hold in session.life.watch.holds_of(self._guest.uid)
            ],
        })  # fmt: skip

    def _events(self, _: Connection, channel: Channel, fields: Fields) -> None:
        """What is about to happen, or has: ends that are announced, stops, resumes."""
        found = self._session.life.events
        follow = fields.flag("follow")
        start = fields.integer("from", None)
        last = fields.integer("last", None)
        if start is None:
            start = found.oldest
            shown = [n for n in range(found.oldest, found.next) if _public(found.get(n)) is not None]
            if last is not None and last < len(shown):
                start = shown[-last] if last else found.next
        channel.handler = Following(channel, found, start, follow=follow, show=_public)
        channel.accept({"oldest": found.oldest, "next": found.next})
        channel.wake()


def _public(event: dict[str, Any]) -> dict[str, Any] | None:
    names = _PUBLIC.get(event["event"])
    return None if names is None else {name: event[name] for name in (*_COMMON, *names) if name in event}
