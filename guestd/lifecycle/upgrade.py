"""Replacing this supervisor by another version while the work goes on.

The new one is asked first whether it can use the settings of this one (`guestd check`). Then whoever keeps our
descriptors is told, and this process ends without ending anything else: what survives a crash survives this. With
`guestd init` another program may be named; it is started in place of this one, and this one again when the other does
not become ready.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from guestd.errors import Conflict, Unsupported
from guestd.init.reap import HAND_OVER, UPGRADE
from guestd.process.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.errors import GuestdError
    from guestd.process.identity import Identity
    from guestd.process.reaper import Exit
    from guestd.process.spawn import Spawner
    from guestd.process.statuses import Statuses
    from guestd.process.store import FdStore

__all__ = ["HAND_OVER", "Upgrade"]

#: What is told of a check that went wrong.
_SAID_MAX = 4096
#: A check takes a tenth of a second.
_PATIENCE = 30.0
_FELL_BACK = "GUESTD_FELL_BACK"


class Upgrade:
    """See the module. `leave` ends this process in the way described."""

    def __init__(
        self, store: FdStore, statuses: Statuses, spawner: Spawner, own: Identity, leave: Callable[[], None]
    ) -> None:
        self._store = store
        self._statuses = statuses
        self._spawner = spawner
        self._own = own
        self._leave = leave
        self._busy = False
        #: The last one came to nothing: PID 1 has gone back to the program before it.
        self.fell_back = _FELL_BACK in os.environ
        #: What is in the way of any replacement now.
        self.hindrance: Callable[[], GuestdError | None] = _nothing

    def check_possible(self, program: Sequence[str] | None) -> None:
        """Raises Unsupported where nobody would start the next one."""
        if not self._store.there:
            raise Unsupported(
                "nobody keeps this guestd's descriptors, so its jobs would not survive an upgrade: run it under"
                " `guestd init`, or a systemd with a FileDescriptorStoreMax; here, stop the session and start the new"
                " version"
            )
        if program is not None and not self._statuses.are_told:
            raise Unsupported(
                "only `guestd init` starts another program in place of this one; here, install the new version where"
                " this one is, and leave the program out",
                field="program",
            )

    async def prepare(self, program: Sequence[str] | None) -> None:
        """Ask the new one whether it would start. Raises Conflict with what it says if not."""
        self.check_possible(program)
        if self._busy:
            raise Conflict(
                "an upgrade is under way already; ask `guestctl status` for the version that came of it"
            )
        self._check_hindrance()
        self._busy = True
        try:
            # As this one was started, with `check` in place of `serve`: the settings it sees are those.
            words = [*(program or [sys.executable, "-m", "guestd"]), "check", *_config_of(sys.argv)]
            status, said = await self._run(words)
            if status != 0:
                raise Conflict(
                    f"the new version cannot use this one's settings, and this one goes on: {' '.join(words)!r} ended"
                    f" with status {status}{': ' if said.strip() else ', without a word'}{said.strip()}"
                )
            # Meanwhile somebody may have asked for the end, which goes on to its own end.
            self._check_hindrance()
        except BaseException:
            self._busy = False
            raise

    def _check_hindrance(self) -> None:
        error = self.hindrance()
        if error is not None:
            raise error

    def go(self, program: Sequence[str] | None) -> None:
        """Make room for it."""
        words = b"\0".join(os.fsencode(word) for word in program or ())
        self._statuses.tell(UPGRADE + words)
        self._leave()

    async def _run(self, words: Sequence[str]) -> tuple[int, str]:
        read, write = os.pipe2(os.O_CLOEXEC)
        ended = trio.Event()
        pid = 0
        status: list[int | None] = []

        def told(exit: Exit) -> None:  # noqa: A002  it is what the reaper calls it
            status.append(exit.status)
            ended.set()

        plan = Plan(
            program=words[0], argv=[os.fsencode(word) for word in words], env=dict(os.environb), cwd=["/"],
            identity=self._own, fds={0: None, 1: write, 2: write},
        )  # fmt: skip
        try:
            with trio.fail_after(_PATIENCE):
                try:
                    pid = await self._spawner.start(plan, told)
                finally:
                    os.close(write)
                os.set_blocking(read, False)
                said = bytearray()
                while True:
                    await trio.lowlevel.wait_readable(read)
                    piece = os.read(read, _SAID_MAX)
                    if not piece:
                        break
                    said = (said + piece)[-_SAID_MAX:]
                await ended.wait()
        except trio.TooSlowError:
            raise Conflict(
                f"the new version cannot be asked, and this one goes on: {' '.join(words)!r} did not end within"
                f" {_PATIENCE:.0f} s"
            ) from None
        finally:
            os.close(read)
            if pid and not ended.is_set():
                # It leads a session of its own. Nobody else has reaped it, so the number is still its own.
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        code = status[0] if status[0] is not None else -1
        return os.waitstatus_to_exitcode(code) if code >= 0 else code, said.decode(errors="replace")


def _config_of(arguments: Sequence[str]) -> list[str]:
    """The switches of this process that say where its settings are."""
    found: list[str] = []
    words = iter(arguments[1:])
    for word in words:
        if word == "--":
            break
        if word == "--config":
            found += [word, next(words, "")]
        elif word.startswith("--config="):
            found.append(word)
    return found


def _nothing() -> None:
    return None
