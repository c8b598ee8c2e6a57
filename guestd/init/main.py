"""PID 1, in order: what a kernel leaves out, the listening sockets, the machine's own settings, then `serve`, and after
its end everything else's.

One thread, one poll(2). It never ends by accident: what goes wrong in a step of the boot or in a turn of the loop is
said on the console, and the next one follows. Standard library only, and little of that: every import here is time
before anybody can connect.
"""

from __future__ import annotations

import os
import select
import sys
import time

from guestd.init import end, life, signals, world
from guestd.init.boot import Boot
from guestd.init.console import Console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.init.keeper import Keeper

#: How long a loop that fails at every turn waits, so as not to do only that.
_AFTER_FAILURE = 0.1
#: For the host to take the last word of all.
_LAST_WORD = 1.0


def run(
    *,
    program: Sequence[str],
    listen_to: Sequence[str],
    config: str | None,
    workload: Sequence[str] | None,
    problem: str = "",
) -> int:
    """Be PID 1 until the end. `program` is what `serve` is an argument of; `problem` is wrong with the command line.

    Returns the exit status where this is no machine; on a machine it does not return.
    """
    init = _Init(program, listen_to, config, workload)
    if problem:
        init.console.say(problem)
    while True:
        try:
            status = init.turn()
            if status is not None:
                return status
        except Exception as error:  # noqa: BLE001  PID 1 that ends takes everything with it
            init.console.fail("something went wrong here", error)
            time.sleep(_AFTER_FAILURE)


class _Init:
    def __init__(
        self,
        program: Sequence[str],
        listen_to: Sequence[str],
        config: str | None,
        workload: Sequence[str] | None,
    ) -> None:
        begun = time.monotonic()
        _fill_standard_fds()
        self.console = Console(begun)
        self._say = self.console.say
        self._boot = Boot(program, listen_to, config, workload, self.console)
        self._signals = signals.Signals()
        self._poll = select.poll()
        self._poll.register(self._signals.wake, select.POLLIN)
        self._polled: dict[int, int] = {}
        self._keeper: Keeper | None = None
        #: Asked to stop: how a machine is to end, the status a container ends with, and until when serve may take.
        self._how: str | None = None
        self._status: int | None = None
        self._stop_due = life.NEVER
        self._stops = 0
        self._failed = False

    # --------------------------------------------------------------------------------------------------------- the loop

    def turn(self) -> int | None:
        """One turn of the loop; the exit status when there is nothing left to do."""
        if self._keeper is None:
            self._keeper = self._boot.run()
            self._keeper.start(time.monotonic())
        keeper = self._keeper
        self._register(keeper)
        asked_at = time.monotonic()
        host = self._boot.host
        due = min(keeper.due, self._stop_due, life.NEVER if host is None else host.due)
        # After a failure what woke us may be half done: look again at once, and not only when something new happens.
        wait, self._failed = 0 if self._failed else life.poll_milliseconds(asked_at, due), False
        events = dict(self._poll.poll(wait))
        now = time.monotonic()
        late = now - max(due, asked_at)
        if late > life.STANDSTILL_SECONDS:
            self._say(f"stood still for {late:.1f} s")
            keeper.stood_still(late)
            self._stop_due += late
        # Each on its own: one that fails keeps none of the others from being done.
        for number in self._signals.take():
            self._do("a signal", self._signal, keeper, number)
        for fd in [each for each in self._boot.buttons if events.get(each)]:
            self._do("the power button", self._look_at_button, keeper, fd)
        self._do("hearing serve", keeper.hear)
        self._do("the stored descriptors", self._drop_hung, keeper, events)
        self._do("reaping", self._reap, keeper)
        self._do("telling serve", keeper.flush)
        self._do("what serve asks for", self._answer, keeper)
        self._do("what is due", keeper.act, now)
        if host is not None:
            self._do("telling the host", host.go, now)
        self._do("the stop", self._end_stop, keeper, now)
        if self._failed:
            time.sleep(_AFTER_FAILURE)
        if keeper.exit_status is not None or (self._how is not None and not keeper.pid):
            return self._end(keeper)
        return None

    def _do(self, what: str, act: Callable[..., object], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001  see the module's promise
            self._failed = True
            self.console.fail(f"failed at {what}", error)

    def _end_stop(self, keeper: Keeper, now: float) -> None:
        if now >= self._stop_due and keeper.pid:
            self._say("serve has not ended within its time: SIGKILL")
            self._stop_due = life.NEVER
            keeper.kill()

    def _register(self, keeper: Keeper) -> None:
        """What poll(2) is to look at."""
        wanted = {keeper.notify.sock.fileno(): select.POLLIN}
        if keeper.sock is not None:
            wanted[keeper.sock.fileno()] = select.POLLIN | (select.POLLOUT if keeper.pressed else 0)
        for fd in keeper.store.watched:
            wanted[fd] = 0  # POLLHUP and POLLERR come unasked
        for fd in self._boot.buttons:
            wanted[fd] = select.POLLIN
        if self._boot.host is not None and self._boot.host.fd >= 0:
            wanted[self._boot.host.fd] = select.POLLOUT
        for fd in self._polled.keys() - wanted.keys():
            self._poll.unregister(fd)
        for fd, mask in wanted.items():
            if self._polled.get(fd) != mask:
                self._poll.register(fd, mask)
        self._polled = wanted

    def _drop_hung(self, keeper: Keeper, events: dict[int, int]) -> None:
        for fd in keeper.store.watched & events.keys():
            if events[fd] & (select.POLLHUP | select.POLLERR):
                keeper.store.drop(fd)

    def _reap(self, keeper: Keeper) -> None:
        def before(pid: int) -> None:
            # Until it is reaped, the kernel knows who has sent what it said last.
            if pid == keeper.pid:
                self._do("the last words of serve", lambda: keeper.hear(everything=True))

        from guestd.init import reap

        try:
            for ended in reap.reap(before):
                if ended.pid == keeper.pid:
                    keeper.died(ended.status)
                else:
                    keeper.ended(ended.record)
        except ChildProcessError:
            return

    def _signal(self, keeper: Keeper, number: int) -> None:
        if number == signals.HUP:
            self._say("SIGHUP: reloading")
            self._reload(keeper)
            keeper.reload()
        elif number in signals.STOPS:
            self._stop(keeper, number)
        else:
            self._say(f"{signals.name(number)} means nothing here")

    def _look_at_button(self, keeper: Keeper, fd: int) -> None:
        from guestd.init import button

        try:
            if button.pressed(fd):
                self._say("the power button")
                self._stop(keeper, signals.PWR)
        except OSError:
            self._boot.buttons.remove(fd)
            os.close(fd)

    def _stop(self, keeper: Keeper, number: int) -> None:
        now = time.monotonic()
        self._stops += 1
        if self._stops == 1:
            self._say(f"{signals.name(number)}: stopping, within {keeper.stop_seconds:g} s")
            self._how = self._how or self._meaning(keeper, number)
            self._stop_due = min(self._stop_due, now + keeper.stop_seconds)
        elif self._stops == 2:
            self._say(f"{signals.name(number)} again: stopping sooner")
            self._stop_due = min(self._stop_due, now + keeper.stop_seconds - keeper.settings.stop.grace)
        else:
            self._say(f"{signals.name(number)} again: stopping now")
            self._stop_due = now
        keeper.stop()

    def _meaning(self, keeper: Keeper, number: int) -> str:
        """Of a signal, for a machine; elsewhere only a reboot has a status of its own."""
        if number == signals.REBOOT or (number == signals.INT and self._boot.world == world.MACHINE):
            return end.REBOOT
        return end.HALT if number == signals.HALT else keeper.settings.init.power_off

    def _answer(self, keeper: Keeper) -> None:
        """What serve has asked for."""
        if keeper.asked_reload:
            keeper.asked_reload = False
            self._reload(keeper)
        if keeper.asked_end is not None:
            how, self._status = keeper.asked_end
            if self._how is None:
                self._how = how or keeper.settings.init.power_off
                self._stop_due = time.monotonic() + keeper.stop_seconds
                keeper.rest()
                self._say(f"serve asks for the end ({how or 'stop'}, status {self._status})")
            keeper.asked_end = None

    def _reload(self, keeper: Keeper) -> None:
        """Times and limits from now on; where it listens and what the machine is like stays."""
        keeper.settings = self._boot.read_settings()

    # ---------------------------------------------------------------------------------------------------------- the end

    def _end(self, keeper: Keeper) -> int:
        from guestd.init import reap

        how = self._how or end.POWER_OFF
        status = keeper.exit_status if keeper.exit_status is not None else self._status
        if status is None:
            status = reap.RESTART_STATUS if how == end.REBOOT else reap.as_exit_status(keeper.last_status)
        # Terminals hang up, and pipes end: many a program goes by that.
        for what, act in (
            ("closing", keeper.doors.close),
            ("closing", keeper.notify.close),
            ("closing", keeper.store.close),
        ):
            self._do(what, act)
        self._do("ending processes", end.end_processes, self._boot.world, self._say, self._signals)
        self._do("storage", end.end_storage, self._boot.world, self._say, self._signals, self._boot.at_boot)
        if self._boot.host is not None:
            # Whoever hears this knows that everything is on its disks.
            self._do(
                "telling the host",
                self._boot.host.finish,
                f"EXIT_STATUS={status}\nX_GUESTD_END={how}\n",
                _LAST_WORD,
            )
        return end.leave(self._boot.world, how, status, self._say)


def _fill_standard_fds() -> None:
    """Where there is no console, the first files opened would be taken for input and output. /dev may not be there."""
    while (fd := os.open("/", os.O_RDONLY | os.O_DIRECTORY)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def program_of(arguments: Sequence[str]) -> list[str]:
    """How this very program was started, without its arguments: the same interpreter, flags and file for `serve`."""
    words = sys.orig_argv
    if list(arguments) == words[len(words) - len(arguments) :]:
        words = words[: len(words) - len(arguments)]
        return [sys.executable or words[0], *words[1:]]
    return [sys.executable, "-m", "guestd"]
