"""PID 1, in order: what a kernel leaves out, the listening sockets, the machine's own settings, then `serve`, and after
its end everything else's.

One thread, one poll(2). It never ends by accident: what goes wrong in a step of the boot or in a turn of the loop is
said on the console, and the next one follows. Standard library only, and little of that: every import here is time
before anybody can connect.
"""

from __future__ import annotations

import os
import resource
import select
import sys
import time

from guestd.init import end, life, listen, machine, mounts, signals, world
from guestd.init.console import Console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.config import Settings
    from guestd.init.keeper import Keeper
    from guestd.init.network import Wanted

#: How long a loop that fails at every turn waits, so as not to do only that.
_AFTER_FAILURE = 0.1
#: Of a file that does not have one of these words in it, PID 1 needs nothing, and does not import a reader of TOML.
_OURS = (b"init", b"listen", b"token_file", b"runtime_dir", b"unix_uids", b"grace")
#: Where descriptors may be many: those that are stored, twice while they are handed over, and some for ourselves.
_FILES_WANTED = 16384
_FILES_RESERVED = 256


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
            init.say_failure("something went wrong here", error)
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
        self._program = program
        self._listen_to = listen_to
        self._config = config
        self._workload = workload
        self._environ = dict(os.environ)
        self._signals = signals.Signals()
        self._poll = select.poll()
        self._poll.register(self._signals.wake, select.POLLIN)
        self._polled: dict[int, int] = {}
        self._world = world.MACHINE
        self._settings: Settings | None = None
        self._doors: listen.Doors | None = None
        self._keeper: Keeper | None = None
        self._at_boot: frozenset[int] = frozenset()
        self._oom_score_adj = ""
        #: Asked to stop: how a machine is to end, the status a container ends with, and until when serve may take.
        self._how: str | None = None
        self._status: int | None = None
        self._stop_due = life.NEVER
        self._stops = 0
        self._failed = False

    def say_failure(self, what: str, error: BaseException) -> None:
        # Late: it is never needed.
        import traceback

        self._say(f"{what}: {error!r}")
        for line in traceback.format_exception(error)[-4:-1]:
            self._say(" ".join(line.split()))

    def _try(self, what: str, act: Callable[..., object], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001  a boot that lacks a step is better than none
            self.say_failure(what, error)

    # --------------------------------------------------------------------------------------------------------- the boot

    def _boot(self) -> Keeper:
        first = os.getpid() == 1
        if first:
            self._try("the first mounts", mounts.mount_first, self._say)
        self._settings = settings = self._read_settings()
        self._world, why = world.find(settings.init.kind)
        if self._world == world.MACHINE:
            self._try("the console", self._take_console)
            self._environ.setdefault("PATH", machine.PATH)
            os.environ.setdefault("PATH", machine.PATH)
        if first:
            self._try("mounts", mounts.mount_rest, self._world, self._say)
        given = listen.take_given(self._environ)
        listen.forget_given(self._environ)
        listening = [fd for fd, _ in given if listen.is_listening(fd)]
        self._doors = doors = self._doors or listen.Doors(settings, self._listen_to, listening)
        self._try("listening", doors.open, self._say)
        # Here everybody who connects can wait; from here on nobody waits for us.
        self._say(f"this is a {self._world} ({why})")
        if first:
            self._try("links in /dev", mounts.link_devices, self._say)
        if self._world == world.CONTAINER:
            self._oom_score_adj = _protect()
        if self._world == world.MACHINE:
            self._set_up_machine(settings)
        elif self._world == world.PROCESS:
            from guestd.init import libc

            self._try("becoming the parent of orphans", libc.adopt_orphans)
        self._at_boot = frozenset(each.id for each in mounts.table())
        return self._make_keeper(settings, doors, [each for each in given if each[0] not in listening])

    def _make_keeper(self, settings: Settings, doors: listen.Doors, stored: list[tuple[int, str]]) -> Keeper:
        from guestd.init.keeper import Keeper

        arguments = ["serve"]
        for each in self._listen_to:
            arguments += ["--listen", each]
        if self._config is not None:
            arguments += ["--config", self._config]
        if self._workload is not None:
            arguments += ["--", *self._workload]
        files, now_files = _raise_file_limit()
        keeper = Keeper(
            self._program,
            arguments,
            self._environ,
            settings,
            doors,
            self._say,
            world=self._world,
            files=files,
            oom_score_adj=self._oom_score_adj,
            store_max=min(settings.init.fd_store, max(0, now_files - _FILES_RESERVED) // 2),
        )
        for fd, name in stored:
            keeper.store.add(name, [fd], watch=False)
        return keeper

    def _read_settings(self) -> Settings:
        """What is wrong with them is for serve to say, which reads all of them."""
        from guestd.config import DEFAULT_FILE, resolve

        name = self._config or DEFAULT_FILE
        try:
            with open(name, "rb") as file:
                data: bytes | None = file.read()
        except OSError:
            data = None
        if data is not None and not any(word in data for word in _OURS):
            data = None
        environ, cmdline = self._environ, _read("/proc/cmdline")
        try:
            return resolve(file=data, file_name=name, cmdline=cmdline, environ=environ).settings
        except Exception as error:  # noqa: BLE001  there is always a way to go on: with none
            self.say_failure("the settings could not be read", error)
            return resolve().settings

    def _take_console(self) -> None:
        self.console.move("/dev/console")
        for fd in (0, 1, 2):
            # Only where the kernel found no console: what it has opened is right.
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                other = os.open("/dev/console" if fd else os.devnull, os.O_RDWR | os.O_NOCTTY)
                os.dup2(other, fd)
                os.close(other)
        os.chdir("/")

    def _set_up_machine(self, settings: Settings) -> None:
        from guestd.init import libc, network

        init = settings.init
        wanted = network.Wanted(
            interface=init.interface, addresses=init.address, gateways=init.gateway, dns=init.dns
        )
        self._try("ip=", _fill_from_kernel, wanted)
        self._try("the hostname", machine.name_it, init.hostname or wanted.hostname, self._say)
        # Before the network, whose settings may depend on them, and after the modules, which bring their own.
        self._try("modules", machine.load_modules, init.modules, self._say)
        self._try("sysctl", machine.set_kernel, init.sysctl, self._say)
        self._try("the network", network.set_up, wanted, self._say)
        try:
            # Ctrl-Alt-Del, and a hypervisor's way of saying it, is SIGINT from now on, and no sudden end.
            libc.reboot(libc.RB_DISABLE_CAD)
        except OSError as error:
            self._say(f"ctrl-alt-del stays with the kernel: {error.strerror}")

    # --------------------------------------------------------------------------------------------------------- the loop

    def turn(self) -> int | None:
        """One turn of the loop; the exit status when there is nothing left to do."""
        if self._keeper is None:
            self._keeper = self._boot()
            self._keeper.start(time.monotonic())
        keeper = self._keeper
        self._register(keeper)
        asked_at = time.monotonic()
        due = min(keeper.due, self._stop_due)
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
        self._do("hearing serve", keeper.hear)
        self._do("the stored descriptors", self._drop_hung, keeper, events)
        self._do("reaping", self._reap, keeper)
        self._do("telling serve", keeper.flush)
        self._do("what serve asks for", self._answer, keeper)
        self._do("what is due", keeper.act, now)
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
            self.say_failure(f"failed at {what}", error)

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

    def _stop(self, keeper: Keeper, number: int) -> None:
        now = time.monotonic()
        self._stops += 1
        if self._stops == 1:
            self._say(f"{signals.name(number)}: stopping, within {keeper.stop_seconds:g} s")
            self._how = self._how or self._meaning(number)
            self._stop_due = min(self._stop_due, now + keeper.stop_seconds)
        elif self._stops == 2:
            self._say(f"{signals.name(number)} again: stopping sooner")
            self._stop_due = min(self._stop_due, now + keeper.stop_seconds - keeper.settings.stop.grace)
        else:
            self._say(f"{signals.name(number)} again: stopping now")
            self._stop_due = now
        keeper.stop()

    def _meaning(self, number: int) -> str:
        """Of a signal, for a machine; elsewhere only a reboot has a status of its own."""
        assert self._settings is not None
        if number == signals.REBOOT or (number == signals.INT and self._world == world.MACHINE):
            return end.REBOOT
        return end.HALT if number == signals.HALT else self._settings.init.power_off

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
        keeper.settings = self._settings = self._read_settings()

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
            self._try(what, act)
        self._try("ending processes", end.end_processes, self._world, self._say, self._signals)
        self._try("storage", end.end_storage, self._world, self._say, self._signals, self._at_boot)
        return end.leave(self._world, how, status, self._say)


def _fill_standard_fds() -> None:
    """Where there is no console, the first files opened would be taken for input and output. /dev may not be there."""
    while (fd := os.open("/", os.O_RDONLY | os.O_DIRECTORY)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _raise_file_limit() -> tuple[tuple[int, int], int]:
    """RLIMIT_NOFILE as it was, which is what `serve` gets, and the soft limit that is in force here now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    for most in (_FILES_WANTED, hard):
        if hard != resource.RLIM_INFINITY and hard < most:
            wanted = (most, most)
        else:
            wanted = (_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED), hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
            break
        except (ValueError, OSError):
            # No right to raise the hard one.
            continue
    return before, resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _protect() -> str:
    """PID 1 of a container can be chosen when memory is short, and everything would go with it. (A machine's cannot.)

    Returns what was there, which is what `serve` gets; nothing when it is as before.
    """
    before = _read("/proc/self/oom_score_adj").strip()
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-1000")
    except OSError:
        # No right to. Then it is as likely as others.
        return ""
    return before


def _fill_from_kernel(wanted: Wanted) -> None:
    from guestd._config_sources import kernel_words

    for word, value in kernel_words(_read("/proc/cmdline")):
        if word == "ip" and value:
            wanted.fill(value)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def program_of(arguments: Sequence[str]) -> list[str]:
    """How this very program was started, without its arguments: the same interpreter, flags and file for `serve`."""
    words = sys.orig_argv
    if list(arguments) == words[len(words) - len(arguments) :]:
        words = words[: len(words) - len(arguments)]
        return [sys.executable or words[0], *words[1:]]
    return [sys.executable, "-m", "guestd"]
