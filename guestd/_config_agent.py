"""Settings of the guest-local socket."""

from __future__ import annotations

from guestd._config_declare import key, number, seconds
from guestd._config_kinds import Boolean
from guestd._config_section import Section


class Agent(Section):
    """The socket runtime_dir/agent.sock: any program of the guest may keep the session awake through it."""

    socket: bool = key(
        "Whether there is runtime_dir/agent.sock, by which any program of the guest may keep the session awake.",
        Boolean(),
        default=True,
    )
    connections: int = number("Connections to it at once, of all users together.", 64, 1, 4096)
    user_connections: int = number("Connections to it at once of one user.", 16, 1, 4096)
    leases: int = number("Leases at once of one user.", 64, 1, 256)
    longest_lease: float = seconds("The longest time that a lease may ask for.", "24h", "1s", "3650d")
