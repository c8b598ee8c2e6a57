"""Many changes become few events. Pure.

What happens to one path in quick succession is told once: a file that is written ten thousand times has changed.
Events wait until it has been quiet for QUIET, and never longer than LATEST. Promises, whatever comes in whatever
order: who plays the events back ends with the same set of paths as who plays all changes back; the events of one path
keep their order; a path that is there at the end and was written to is told; and nothing waits above `most` paths:
then it is said that too much has happened (`overflow`), and the waiting ones are forgotten.
"""

from __future__ import annotations

QUIET = 0.05
LATEST = 0.5

CREATED, CHANGED, REMOVED, MOVED, ATTRIBUTES = "created", "changed", "removed", "moved", "attributes"


class Event:
    """One change: of a path; `to` where it was moved."""

    __slots__ = ("fresh", "is_folder", "kind", "path", "to")

    def __init__(
        self, kind: str, path: bytes, *, to: bytes | None = None, is_folder: bool = False, fresh: bool = False
    ) -> None:
        self.kind = kind
        #: What was created was not there before: it has replaced nothing.
        self.fresh = fresh
        self.path = path
        self.to = to
        self.is_folder = is_folder

    def to_map(self) -> dict[str, object]:
        found: dict[str, object] = {
            "event": self.kind,
            "path": self.path.decode("utf-8", "surrogateescape"),
            "dir": self.is_folder,
        }
        if self.to is not None:
            found["to"] = self.to.decode("utf-8", "surrogateescape")
        return found


class Coalescing:
    """`add` what happens; `due` says when to `take`."""

    def __init__(self, most: int = 8192) -> None:
        self._most = most
        self._events: list[Event | None] = []
        # Where among them the last one about each path is, which may still absorb what comes.
        self._last: dict[bytes, int] = {}
        self._first_at = self._newest_at = 0.0
        self.overflow = False

    @property
    def due(self) -> float | None:
        """When the waiting ones are to be told; None when there are none."""
        if not self._events:
            return None
        return min(self._newest_at + QUIET, self._first_at + LATEST)

    def add(self, event: Event, now: float) -> None:
        if self.overflow:
            return
        if not self._events:
            self._first_at = now
        self._newest_at = now
        if event.is_folder and event.kind in {MOVED, REMOVED}:
            # Paths below it mean something else from here on: nothing of before takes up what comes.
            self._last.clear()
        if event.kind == MOVED:
            self._move(event)
        else:
            self._merge(event)
        if len(self._events) > self._most:
            self.forget()
            self.overflow = True

    def take(self) -> list[Event]:
        """The waiting ones, in order."""
        found = [event for event in self._events if event is not None]
        self._events.clear()
        self._last.clear()
        return found

    def forget(self) -> None:
        self._events.clear()
        self._last.clear()

    def _push(self, event: Event) -> None:
        self._last[event.path] = len(self._events)
        self._events.append(event)

    def _merge(self, event: Event) -> None:
        at = self._last.get(event.path)
        before = None if at is None else self._events[at]
        if before is None or at is None or before.kind == MOVED:
            self._push(event)
            return
        match before.kind, event.kind:
            case "created", "removed" if before.fresh and not event.is_folder and not before.is_folder:
                # It came and went: nobody has to know.
                self._events[at] = None
                del self._last[event.path]
            case "removed", "created" if not event.is_folder and not before.is_folder:
                self._events[at] = Event(CHANGED, event.path)
            case ("created", "changed" | "attributes" | "created") | ("changed", "changed" | "attributes"):
                pass
            case "attributes", "attributes":
                pass
            case "attributes", "changed":
                self._events[at] = event
            case "changed", "created":
                pass  # it was told while its folder was read
            case _:
                self._push(event)

    def _move(self, event: Event) -> None:
        assert event.to is not None
        at = self._last.get(event.path)
        before = None if at is None else self._events[at]
        if (
            at is not None
            and before is not None
            and before.kind == CREATED
            and before.fresh
            and not event.is_folder
        ):
            # Made under one name, then given another: as who writes a file beside its name does.
            self._events[at] = None
            del self._last[event.path]
            self._merge(Event(CREATED, event.to))
            return
        index = len(self._events)
        self._events.append(event)
        # Neither name's events of before may take up what comes behind the move.
        self._last[event.path] = self._last[event.to] = index
