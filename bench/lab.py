"""What a run has: a private directory, how much to measure, and the peers that came up."""

from __future__ import annotations

import compileall
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import bench
import guestd
from bench.measure import SubjectFailed
from bench.peers import Peer, every_peer
from bench.peers.multiplexers import Multiplexer, every_multiplexer

if TYPE_CHECKING:
    from types import ModuleType

#: Where peers are installed to. They are a cache: removing the directory loses nothing.
CACHE_VARIABLE = "BENCH_CACHE"


@dataclass(frozen=True)
class Amounts:
    """How much is measured. The usual amounts make medians that repeat within a few per cent."""

    rtt_rounds: int = 100
    rtt_block: int = 10
    loaded_rounds: int = 50
    loaded_block: int = 20
    echo_rounds: int = 50
    echo_block: int = 10
    bulk_rounds: int = 15
    bulk_bytes: int = 256 * 1024 * 1024
    term_rounds: int = 9
    term_bytes: int = 64 * 1024 * 1024
    attach_rounds: int = 100
    restore_rounds: int = 15
    boot_rounds: int = 15
    idle_rounds: int = 3
    memory_shells: int = 1000
    soak_warm: int = 2000
    soak_commands: int = 10_000
    soak_shells: int = 1000


#: Enough to see that everything works; the figures mean nothing.
QUICK = Amounts(
    rtt_rounds=2,
    rtt_block=2,
    loaded_rounds=2,
    loaded_block=2,
    echo_rounds=2,
    echo_block=2,
    bulk_rounds=1,
    bulk_bytes=4 * 1024 * 1024,
    term_rounds=1,
    term_bytes=4 * 1024 * 1024,
    attach_rounds=2,
    restore_rounds=1,
    boot_rounds=1,
    idle_rounds=1,
    memory_shells=10,
    soak_warm=10,
    soak_commands=20,
    soak_shells=5,
)


def _home(package: ModuleType) -> str:
    """The directory that a package was imported from."""
    return os.path.dirname(os.path.dirname(os.path.abspath(cast("str", package.__file__))))


def cache_directory() -> str:
    """Where installed peers are kept between runs."""
    chosen = os.environ.get(CACHE_VARIABLE)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return chosen or os.path.join(caches, "guestd-bench")


class Lab:
    """Owns the directory and every peer of a run; leaving it ends them."""

    def __init__(self, amounts: Amounts, *, with_peers: bool) -> None:
        self.amounts = amounts
        self.cache = cache_directory()
        #: For every Python that is started here: it finds the same guestd and bench as this one.
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sorted({_home(guestd), _home(bench)})),
        }
        self.with_peers = with_peers
        self._stack = ExitStack()
        self._peers: tuple[list[Peer], dict[str, str]] | None = None

    def __enter__(self) -> Self:
        # Not under TMPDIR's own idea of long names: a Unix socket's path has 107 bytes.
        self._directory = tempfile.mkdtemp(prefix="guestd-bench-")
        self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        # As in an image, where guestd is compiled like everything that pip installs; a checkout may not be.
        compileall.compile_dir(os.path.dirname(guestd.__file__), quiet=2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def directory(self, name: str) -> str:
        made = self.path(name)
        os.mkdir(made, 0o700)
        return made

    def fresh_directory(self, prefix: str) -> str:
        """One that nobody has had before."""
        return tempfile.mkdtemp(prefix=f"{prefix}-", dir=self._directory)

    def multiplexers(self) -> tuple[list[Multiplexer], dict[str, str]]:
        """Those that are installed, and why each of the others is not there. A row starts what it needs of them."""
        every = every_multiplexer(self) if self.with_peers else []
        absent = {each.name: reason for each in every if (reason := each.missing()) is not None}
        return [each for each in every if each.name not in absent], absent

    def peers(self) -> tuple[list[Peer], dict[str, str]]:
        """Those that are up, and why each of the others is not. Started at the first call, kept for the
        run.
        """
        if self._peers is None:
            up: list[Peer] = []
            absent: dict[str, str] = {}
            for peer in every_peer(self) if self.with_peers else []:
                reason = peer.missing() or self._start(peer)
                if reason is None:
                    up.append(peer)
                else:
                    absent[peer.name] = reason
            self._peers = up, absent
        up, absent = self._peers
        return up, dict(absent)

    def _start(self, peer: Peer) -> str | None:
        self._stack.callback(_stop, peer)
        try:
            peer.start()
        except (SubjectFailed, OSError, ValueError, LookupError) as error:
            return f"did not start: {error}"
        return None


def _stop(peer: Peer) -> None:
    """What goes wrong at a peer's end must not cost the figures that were measured."""
    try:
        peer.stop()
    except (SubjectFailed, OSError, ValueError) as error:
        print(f"bench: {peer.name} did not end as it should: {error}", file=sys.stderr)
