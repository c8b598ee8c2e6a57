"""The others: programs that run commands for somebody far away, each behind the same small interface.

Fairness. Every peer is warm when it is measured: connected, authenticated, with one command behind it. The
client is as small as the peer's protocol allows and lives in this process, as guestd's does, so nobody pays
for a client program, a library or a new connection. What a peer's protocol needs (polling, JSON, base64) is
its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.lab import Lab


class Peer(ABC):
    """One peer. `start` needs `missing` to be None; `stop` may follow `start` even when that failed."""

    name: str
    #: The most output of one command that it hands back, in bytes; 0 when it is not made for bulk, and then
    #: why.
    bulk_limit: int = 0
    bulk_absent: str = ""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    @abstractmethod
    def start(self) -> None:
        """Bring it up on a private address and connect."""

    @abstractmethod
    def run(self, argv: Sequence[str]) -> int:
        """Run one command to its exact end with status 0, output captured. Returns how many bytes of
        stdout came.
        """

    @abstractmethod
    def stop(self) -> None:
        """End what `start` started."""


def every_peer(lab: Lab) -> list[Peer]:
    """All that are known, installed or not."""
    from bench.peers.docker_exec import DockerExec
    from bench.peers.openssh import OpenSsh
    from bench.peers.qemu_ga import QemuGa
    from bench.peers.sandbox_agent import SandboxAgent
    from bench.peers.swe_rex import SweRex

    return [SandboxAgent(lab), QemuGa(lab), SweRex(lab), OpenSsh(lab), DockerExec(lab)]
