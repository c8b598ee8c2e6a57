"""All relays of the session, and the forwards: begun after READY, before the first program can be started.

A relay that cannot listen is tried again. When a supervisor is replaced, the sockets stay where descriptors are kept,
and whoever connects in the meantime waits in the backlog. Connections that were being passed on break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from guestd.relay.forwards import Forwards

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from guestd.config import Settings
    from guestd.relay.listening import Listening
    from guestd.relay.relay import Relay

    class Owner(Protocol):
        """The session, as far as it is needed here."""

        settings: Settings
        session_id: str
        boot_id: str
        generation: int


#: Before it is tried again to listen where somebody else does.
_AGAIN, _AGAIN_MAX = 1.0, 30.0


class Relays:
    """See the module. `used` is told of what counts as use of the session, `say` of what has happened. `listening`:
    None where there is no relay.
    """

    def __init__(
        self,
        session: Owner,
        used: Callable[[str], None],
        say: Callable[..., None],
        listening: Listening | None,
    ) -> None:
        self.forwards = Forwards(session.settings, used)
        self.relays: list[Relay] = []
        self._session = session
        self._listening = listening
        if listening is not None:
            # Late: few have any.
            from guestd.relay.relay import Relay

            self.relays = [Relay(plan, self._identity, say) for plan in listening.plans]

    async def run(self) -> None:
        """Pass on until cancelled."""
        listening = self._listening
        if listening is None:
            await trio.sleep_forever()
            return
        try:
            async with trio.open_nursery() as nursery:
                for relay in self.relays:
                    nursery.start_soon(self._keep, relay, listening)
                await trio.sleep_forever()
        finally:
            listening.close()

    async def _keep(self, relay: Relay, listening: Listening) -> None:
        delay = _AGAIN
        while not listening.open(relay.plan):
            relay.why = listening.why[relay.plan.name]
            await trio.sleep(delay)
            delay = min(2 * delay, _AGAIN_MAX)
        relay.why = ""
        await relay.accept(listening.sockets[relay.plan.name])

    def end(self) -> None:
        """The session is over: nobody is to come after this one."""
        if self._listening is not None:
            self._listening.end()

    async def mend(self) -> dict[str, int]:
        """The session was resumed and is another one: connections that have said the old one are ended."""
        told = [relay for relay in self.relays if relay.plan.preface != "none"]
        return {"broken_off": sum(relay.break_off("the session was resumed") for relay in told)}

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "relays": [relay.describe() for relay in self.relays],
            "forwards": self.forwards.describe(),
        }

    def _identity(self) -> Any:  # noqa: ANN401  typed where relays are: without any, nothing of them is imported
        from guestd.relay.preface import Identity

        session = self._session
        return Identity(session.session_id, session.boot_id, session.generation)
