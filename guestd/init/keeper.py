"""Keeps a `serve` running: starts it, hears it, watches it, starts the next one when it has died.

What a serve has put aside, and what it has not read yet, the next one is given at its start, behind the listening
sockets: LISTEN_FDNAMES says `listen` for each of those, then the names under which descriptors were stored, then `init`
for the socket of guestd/init/reap.py, one of its own for each serve.
"""

from __future__ import annotations

import os
import time

from guestd.init import child, life, notify, reap, signals
from guestd.init.store import Refused, Store
from guestd.init.world import MACHINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from guestd.config import Settings
    from guestd.init.console import Say
    from guestd.init.host import Host
    from guestd.init.listen import Doors

#: Settings that cannot be used (EX_CONFIG).
BAD_SETTINGS = 78
_BAD_SETTINGS_RETRY = 5.0
#: What a serve that was asked to stop may take beyond its grace.
_LAST_STEPS = 5.0
#: What serve tells of its own phases is for the host.
_OURS = "X_GUESTD_"


class Keeper:
    """One at a time. `exit_status` is set when there is no point in going on: the only end that serve's end can be."""

    def __init__(
        self,
        program: Sequence[str],
        arguments: Sequence[str],
        environ: dict[str, str],
        settings: Settings,
        doors: Doors,
        say: Say,
        *,
        world: str,
        files: tuple[int, int],
        oom_score_adj: str,
        store_max: int,
        host: Host | None,
        times: dict[str, float],
    ) -> None:
        self.settings = settings
        self.doors = doors
        self.store = Store(store_max)
        self.statuses = reap.Statuses()
        self.notify = notify.Notify(settings.runtime_dir)
        self.pid = 0
        self.sock: _socket.socket | None = None
        #: Set by serve's commands: (what is to happen to the machine, or "" for the usual; a container's exit status).
        self.asked_end: tuple[str, int] | None = None
        self.asked_reload = False
        self.exit_status: int | None = None
        #: Asked to stop: the next death is the end.
        self.stopping = False
        self.last_status = 0
        self._program = list(program)
        self._before: list[str] | None = None
        # The last upgrade came to nothing: whoever asked for it is to know.
        self._fell_back = False
        self._arguments = list(arguments)
        self._environ = environ
        self._say = say
        self._world = world
        self._files = files
        self._oom_score_adj = oom_score_adj
        self._theirs: _socket.socket | None = None
        self._watch: life.Watch | None = None
        self._backoff = life.Backoff()
        self._start_at = 0.0
        self._started_at = 0.0
        self._status_text = ""
        self._ever_ready = False
        #: SIGHUP came before the serve that runs was ready.
        self._hang_up_waits = False
        self._strangers = 0
        #: A service manager above us: where it listens, if there is one.
        self._above = environ.pop("NOTIFY_SOCKET", "")
        self._host = host
        self._times = times

    # ------------------------------------------------------------------------------------------------------- starting

    def start(self, now: float) -> None:
        """Start a serve. When the kernel has no room for one, it is tried again later."""
        self.doors.open(self._say)
        try:
            ours, theirs = reap.pair()
        except OSError as error:
            self._not_started(error, now)
            return
        init = self.settings.init
        environ = dict(self._environ)
        environ["NOTIFY_SOCKET"] = self.notify.address
        environ["FDSTORE"] = str(self.store.most)
        times = {**self._times, "serve": now}
        environ["GUESTD_BOOT_TIMES"] = " ".join(f"{name}={at:.6f}" for name, at in times.items())
        if self._fell_back:
            environ["GUESTD_FELL_BACK"] = "1"
        if init.watchdog:
            environ["WATCHDOG_USEC"] = str(int(init.watchdog * 1_000_000))
        fds = [
            *self.doors.fds,
            *self.store.items(),
            (theirs.fileno(), reap.SOCKET_NAME),
        ]
        argv = [*self._program, *self._arguments]
        try:
            self.pid = child.start(
                argv,
                environ,
                fds,
                files=self._files,
                oom_score_adj=self._oom_score_adj,
            )
        except OSError as error:
            ours.close()
            theirs.close()
            self._not_started(error, now)
            return
        self.sock, self._theirs = ours, theirs
        self._started_at = now
        self._hang_up_waits = False
        self._status_text = ""
        self._watch = life.Watch(ready_timeout=init.ready_timeout, watchdog=init.watchdog, now=now)
        stored = f" with {len(self.store)} stored descriptors" if len(self.store) else ""
        self._say(f"started serve, pid {self.pid}{stored}")
        self.flush()

    def _not_started(self, error: OSError, now: float) -> None:
        delay = self._delay(None)
        self._start_at = now + max(delay, self.settings.init.restart_delay)
        self._say(f"serve could not be started: {error.strerror}; trying again")

    def _delay(self, ready_for: float | None) -> float:
        init = self.settings.init
        return self._backoff.after(
            ready_for, least=init.restart_delay, most=init.restart_delay_max, reset=init.restart_reset
        )

    # -------------------------------------------------------------------------------------------------------- hearing

    def hear(self, *, everything: bool = False) -> None:
        """What serve says to its service manager, and what it asks of PID 1."""
        for message in self.notify.read(everything=everything):
            try:
                if message.pid == self.pid != 0:
                    self._heed(message)
                else:
                    self._refuse(message)
            finally:
                message.close()
        if self.sock is not None:
            self._commands(self.sock)

    def _refuse(self, message: notify.Message) -> None:
        self._strangers += 1
        if self._strangers == 1:
            self._say(f"process {message.pid} speaks as if it were serve; it and its like are not heard")

    def _heed(self, message: notify.Message) -> None:
        now = time.monotonic()
        watch = self._watch
        assert watch is not None
        words = message.words
        name = words.get("FDNAME", "")
        if message.cut:
            self._say("serve sent descriptors for which there was no room here; they are lost")
        if words.get("FDSTORE") == "1":
            fds, message.fds = message.fds, []
            try:
                self.store.add(name, fds, watch=words.get("FDPOLL") == "1")
            except Refused as refused:
                self._say(str(refused))
        if words.get("FDSTOREREMOVE") == "1":
            self.store.remove(name)
        if "STATUS" in words:
            self._status_text = words["STATUS"]
        if words.get("READY") == "1" and watch.ready(now):
            self._is_ready(now)
            if self._host is not None:
                self._tell_host_of_ready(self._host, now)
        if words.get("WATCHDOG") == "1":
            watch.beat(now)
        elif words.get("WATCHDOG") == "trigger":
            watch.trigger(now)
        if (more := words.get("EXTEND_TIMEOUT_USEC", "")).isdecimal():
            watch.extend(now, int(more) / 1_000_000)
        if words.get("STOPPING") == "1":
            self._tell_above("STOPPING=1")
            if self._host is not None:
                self._host.tell("STOPPING=1\n")
        if self._host is not None and (ours := [each for each in words.items() if each[0].startswith(_OURS)]):
            self._host.tell("".join(f"{name}={value}\n" for name, value in ours))
        # BARRIER=1: its descriptor is closed with the message, when all that came before it has been heeded.

    def _tell_host_of_ready(self, host: Host, now: float) -> None:
        from guestd.init.host import phase

        host.tell(f"READY=1\n{phase('SERVE', self._started_at)}\n{phase('READY', now)}\n")

    def _is_ready(self, now: float) -> None:
        self._ever_ready = True
        self._before = None
        self._say(f"serve is ready after {(now - self._started_at) * 1000:.0f} ms")
        self._tell_above("READY=1")
        if self._hang_up_waits and not self.stopping:
            os.kill(self.pid, signals.HUP)
        if self.stopping:
            os.kill(self.pid, signals.TERM)

    def _tell_above(self, state: str) -> None:
        if self._above:
            notify.tell(self._above, state)

    def _commands(self, sock: _socket.socket) -> None:
        while True:
            try:
                command = sock.recv(reap.COMMAND_MAX)
            except (BlockingIOError, ConnectionResetError):
                return
            if not command:
                return
            self._command(command[:1], command[1:])

    def _command(self, verb: bytes, rest: bytes) -> None:
        if verb == reap.RELOAD:
            self.asked_reload = True
        elif verb == reap.UPGRADE:
            self._fell_back = False
            if rest:
                self._before = self._program
                self._program = [os.fsdecode(word) for word in rest.split(b"\0")]
        elif verb == reap.POWER_OFF:
            self.asked_end = "", 0
        elif verb == reap.REBOOT:
            self.asked_end = "reboot", reap.RESTART_STATUS
        elif verb == reap.EXIT and len(rest) == 1:
            self.asked_end = "", rest[0]
        else:
            self._say(f"serve asked for something unknown: {(verb + rest)[:20]!r}")

    # ---------------------------------------------------------------------------------------------------- handing over

    def ended(self, record: bytes) -> None:
        """A process that is not our own has been reaped; `flush` tells serve."""
        self.statuses.add(record)

    def flush(self) -> None:
        """Send what serve's socket takes. What it does not take goes when it is writable: see `pressed`."""
        if self.sock is not None and self.statuses.waiting:
            self.statuses.send(self.sock)
        if news := self.statuses.news():
            self._say(news)

    @property
    def pressed(self) -> bool:
        return bool(self.statuses.waiting)

    # ------------------------------------------------------------------------------------------------------- the death

    def died(self, status: int) -> None:
        """This serve has been reaped; everything that it said has been heard."""
        now = time.monotonic()
        watch = self._watch
        assert watch is not None
        assert self.sock is not None
        assert self._theirs is not None
        pid, self.pid, self._watch = self.pid, 0, None
        self.statuses.take_back(self._theirs)
        self.sock.close()
        self._theirs.close()
        self.sock = self._theirs = None
        self.last_status = status
        ready_for = watch.ready_for(now)
        words = f"serve (pid {pid}) ended: {reap.in_words(status)}"
        if ready_for is None:
            words += ", before it was ready"
            if self.stopping and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signals.TERM:
                # It was told before it could listen, and there was nothing yet to end: the stop went as was asked.
                self.last_status = 0
        if self._status_text and status:
            words += f'; it last said "{self._status_text}"'
        if self.stopping and ready_for is not None and os.waitstatus_to_exitcode(status) == reap.HAND_OVER:
            # It had begun to make room before it heard of the stop. The next one ends in order what it has left.
            self._say(f"{words}: it had made room; the next one stops")
            self.start(now)
            self.rest()
            return
        if self.stopping or self.asked_end is not None:
            self._say(words)
            return
        if self._before is not None and ready_for is None:
            self._program, self._before = self._before, None
            self._fell_back = True
            self._start_at = now
            self._say(f"{words}; going back to the program before it")
            return
        code = os.waitstatus_to_exitcode(status)
        if code == BAD_SETTINGS:
            if self._world != MACHINE and not self._ever_ready:
                self.exit_status = BAD_SETTINGS
            self._start_at = now + _BAD_SETTINGS_RETRY
            end = "" if self.exit_status else f"; trying again every {_BAD_SETTINGS_RETRY:.0f} s"
            self._say(f"{words}: the settings cannot be used; `guestd check` explains them{end}")
            return
        if code == reap.HAND_OVER and ready_for is not None:
            self._start_at = now
            self._say(f"{words}: it makes room for the next one")
            return
        delay = self._delay(ready_for)
        self._start_at = now + delay
        self._say(f"{words}; starting again {f'in {delay:.1f} s' if delay else 'at once'}")

    # ---------------------------------------------------------------------------------------------------------- in time

    @property
    def due(self) -> float:
        if self._watch is not None:
            return self._watch.due
        return life.NEVER if self.stopping else self._start_at

    def act(self, now: float) -> None:
        """Do what is due."""
        if self._watch is None:
            if not self.stopping and now >= self._start_at:
                self.start(now)
            return
        was_ready = self._watch.ready_at is not None
        verdict = self._watch.act(now)
        said = f'; it last said "{self._status_text}"' if self._status_text else ""
        if verdict == life.ABORT:
            self._say(f"serve has not beaten for {self.settings.init.watchdog:g} s: SIGABRT{said}")
            os.kill(self.pid, signals.ABRT)
        elif verdict == life.KILL:
            why = (
                "it did not end by SIGABRT"
                if was_ready
                else f"it is not ready after {now - self._started_at:.0f} s"
            )
            self._say(f"SIGKILL to serve: {why}{said}")
            os.kill(self.pid, signals.KILL)

    def stood_still(self, seconds: float) -> None:
        if self._watch is not None:
            self._watch.stood_still(seconds)

    # ------------------------------------------------------------------------------------------------------ stopping it

    @property
    def stop_seconds(self) -> float:
        return self.settings.stop.grace + _LAST_STEPS

    def stop(self) -> None:
        """Ask it to stop, again if need be; the caller bounds how long that takes.

        One that is not ready may not listen yet, and would die of being asked. Where another one has left it something
        to end in order, it hears of the stop when it is ready.
        """
        self.rest()
        if self._is_up or (self.pid and not len(self.store)):
            os.kill(self.pid, signals.TERM)

    @property
    def _is_up(self) -> bool:
        return self._watch is not None and self._watch.ready_at is not None

    def rest(self) -> None:
        """Start no other one, and leave this one's time to the caller."""
        self.stopping = True
        if self._watch is not None:
            self._watch.rest()

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signals.KILL)

    def reload(self) -> None:
        """One that is not ready would die of it, and hears of it when it is."""
        if self._is_up:
            os.kill(self.pid, signals.HUP)
        else:
            self._hang_up_waits = bool(self.pid)
