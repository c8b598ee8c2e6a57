"""One relay: it listens in the guest, and leads each connection to its target.

A program that connects when there is nobody to lead to, or when there are too many already, is told at once: in HTTP
where that is what passes, else by a reset. A connection that breaks on one side is broken on the other.
"""

from __future__ import annotations

import errno
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from guestd.errors import Refused
from guestd.relay import answers, book
from guestd.relay.ends import End, connect
from guestd.relay.plan import HTTP, OTLP, STREAM
from guestd.relay.preface import preface
from guestd.relay.pump import pump

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from guestd.relay.book import Entry
    from guestd.relay.otlp import Budget
    from guestd.relay.plan import Plan
    from guestd.relay.preface import Identity

_log = logging.getLogger("guestd.relay")
#: When this process has no descriptor left for one more connection.
_OUT_OF_FDS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BREATHER = 0.1
#: How often it is looked for connections that do nothing, within the time after which they are ended.
_LOOKS = 4
#: How long, and how much, a program may still say that was answered with a refusal.
#: So many at once; more are reset.
_FAREWELL, _FAREWELL_READS, _FAREWELL_SIZE = 5.0, 16, 64 * 1024
_PARTING_MAX = 64


class Relay:
    """See the module. `identity` is asked for each connection: a session that was resumed is another one."""

    def __init__(
        self,
        plan: Plan,
        identity: Callable[[], Identity],
        say: Callable[..., None],
    ) -> None:
        self.plan = plan
        self.book = book.Book("relay", plan.name)
        #: Why it does not listen; "" when it does.
        self.why = ""
        #: Why its target could not be reached the last time; "" when it could.
        self.unreachable = ""
        self.edited = 0
        self._identity = identity
        self._say = say
        # Connections that are led, those that are told why they are not, and those that were introduced so far.
        self._led = self._parting = self._introduced = 0
        self._budget: Budget | None = None
        self._scopes: dict[Entry, trio.CancelScope] = {}
        # How a connection is over whose scope was cancelled from here.
        self._ends: dict[Entry, tuple[str, str]] = {}

    async def accept(self, listener: socket.socket) -> None:
        """Accept until cancelled."""
        async with trio.open_nursery() as connections:
            if self.plan.idle:
                connections.start_soon(self._end_idle)
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno in _OUT_OF_FDS:
                        _log.warning(
                            "relay %s: cannot accept: %s; trying again", self.plan.name, error.strerror
                        )
                        await trio.sleep(_BREATHER)
                    continue
                connections.start_soon(self._serve, End(sock))

    def break_off(self, why: str) -> int:
        """End all connections, so that both sides see it. Returns how many there were."""
        living = list(self._scopes.items())
        for entry, scope in living:
            self._ends[entry] = (book.BROKEN, why)
            scope.cancel()
        return len(living)

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        plan = self.plan
        found: dict[str, Any] = {
            "name": plan.name,
            "listen": str(plan.listen),
            "to": str(plan.to),
            "kind": plan.kind,
            "state": "failed" if self.why else "listening",
            "why": self.why or None,
            "unreachable": self.unreachable or None,
            "limit": plan.connections,
            **self.book.describe(),
        }
        if plan.kind == OTLP:
            found["edited"] = self.edited
        return found

    # ------------------------------------------------------------------------------------------ one connection

    async def _serve(self, near: End) -> None:
        entry = self.book.begin(str(self.plan.to))
        how, why = book.STOPPED, ""
        try:
            with trio.CancelScope() as scope:
                self._scopes[entry] = scope
                how, why = await self._lead(near, entry)
            if scope.cancelled_caught:
                how, why = self._ends.pop(entry, (book.STOPPED, ""))
        except OSError as error:
            how, why = book.BROKEN, error.strerror or str(error)
        except Exception:  # noqa: BLE001  a mistake of guestd's costs this connection; the log has it
            _log.exception("relay %s: a connection was dropped, by a mistake of guestd's own", self.plan.name)
            how, why = book.BROKEN, "a mistake of guestd's own"
        finally:
            del self._scopes[entry]
            self._ends.pop(entry, None)
            near.close()
            self.book.end(entry, how, why)

    async def _lead(self, near: End, entry: Entry) -> tuple[str, str]:
        plan = self.plan
        if self._led >= plan.connections:
            how, why = (
                book.REFUSED,
                f"{plan.connections} connections are open (relay.{plan.name}.connections)",
            )
        else:
            self._led += 1
            try:
                how, why = await (self._read_along if plan.kind == OTLP else self._pass_on)(near, entry)
            finally:
                self._led -= 1
        # Who is told why counts no more: those who come in the meantime find room.
        await self._part(near, entry, how, why)
        return how, why

    async def _pass_on(self, near: End, entry: Entry) -> tuple[str, str]:
        try:
            far = await self._dial(near)
        except Refused as error:
            return book.UNREACHABLE, f"nobody takes this; {error.message}"
        try:
            if not await pump(near, far, entry.flow):
                return book.BROKEN, ""
            near.settle()
            far.settle()
            return book.ENDED, ""
        finally:
            far.close()

    async def _read_along(self, near: End, entry: Entry) -> tuple[str, str]:
        # Late: HTTP costs 3 MB, which only this kind of relay needs.
        from guestd.relay.otlp import Budget, OtlpRelay

        if self._budget is None:
            self._budget = Budget()
        relay = OtlpRelay(
            near, self.plan, entry.flow.up, entry.flow.down,
            dial=lambda: self._dial(near), attributes=self.attributes, edited=self._count_edited, budget=self._budget,
        )  # fmt: skip
        await relay.run()
        return (book.UNREACHABLE if relay.unreached else book.ENDED), relay.why

    async def _part(self, near: End, entry: Entry, how: str, why: str) -> None:
        """The last words, where there are any: closed as it is, a connection is reset."""
        kind = self.plan.kind
        turned_away = how == book.REFUSED or (how == book.UNREACHABLE and kind == HTTP)
        if kind == STREAM or self._parting >= _PARTING_MAX or not (turned_away or kind == OTLP):
            return
        self._parting += 1
        try:
            if turned_away:
                entry.flow.down.bytes += near.send(memoryview(answers.answer(503, self.plan.name, why)))
            await _say_farewell(near)
        except OSError:
            pass  # gone already
        finally:
            self._parting -= 1

    def _count_edited(self) -> None:
        self.edited += 1

    def attributes(self) -> Mapping[str, str | int]:
        """What resources get: the session's identity, and what the settings say; an empty value leaves one out."""
        identity = self._identity()
        found: dict[str, str | int] = {
            "session.id": identity.session_id,
            "guestd.session.generation": identity.generation,
            "host.boot.id": identity.boot_id,
            **self.plan.attributes,
        }
        return {name: value for name, value in found.items() if value != ""}

    async def _dial(self, near: End) -> End:
        plan = self.plan
        try:
            far = await connect(plan.to, plan.connect_timeout)
        except Refused as error:
            if not self.unreachable:
                self._say("relay_unreachable", relay=plan.name, to=str(plan.to), why=error.message)
            self.unreachable = error.message
            raise
        if self.unreachable:
            self.unreachable = ""
            self._say("relay_reachable", relay=plan.name, to=str(plan.to))
        if plan.preface != "none":
            try:
                self._introduce(near, far)
            except OSError as error:
                far.close()
                raise Refused(f"{plan.to} took the connection and broke it off: {error.strerror}") from None
            except BaseException:
                far.close()
                raise
        return far

    def _introduce(self, near: End, far: End) -> None:
        """A new connection has room for a few hundred bytes."""
        self._introduced += 1
        source, target = near.places()
        said = preface(self._identity(), self.plan.name, self._introduced, source, target)
        sent = far.send(memoryview(said))
        if sent < len(said):
            raise OSError(errno.ENOBUFS, "there was no room for the preface")

    async def _end_idle(self) -> None:
        idle = self.plan.idle
        while True:
            await trio.sleep(idle / _LOOKS)
            for entry in self.book.idle(idle):
                scope = self._scopes.get(entry)
                if scope is not None:
                    self._ends[entry] = (
                        book.IDLE,
                        f"nothing moved for {idle:g} s (relay.{self.plan.name}.idle)",
                    )
                    scope.cancel()


async def _say_farewell(near: End) -> None:
    """Close so that what was said last arrives: closed with something unread, a socket is reset, and it is lost."""
    with suppress(OSError), trio.move_on_after(_FAREWELL):
        near.finish()
        for _ in range(_FAREWELL_READS):
            await near.readable()
            with suppress(BlockingIOError):
                if not near.receive(_FAREWELL_SIZE):
                    break
    near.settle()
