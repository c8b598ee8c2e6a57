"""The boot, in order: what a kernel leaves out, the listening sockets, the machine's own settings.

What fails is said, and the next step follows: a machine that lacks something is better than none.
"""

from __future__ import annotations

import os
import resource
import time

from guestd.init import listen, machine, mounts, world

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestd.config import Settings
    from guestd.init.console import Console
    from guestd.init.host import Host
    from guestd.init.keeper import Keeper
    from guestd.init.network import Wanted

#: Of a file that does not have one of these words in it, PID 1 needs nothing, and does not import a reader of TOML.
_OURS = (b"init", b"listen", b"token_file", b"runtime_dir", b"unix_uids", b"grace", b"socket")
#: Where descriptors may be many: those that are stored, twice while they are handed over, and some for ourselves.
_FILES_WANTED = 16384
_FILES_RESERVED = 256


class Boot:
    """Where this runs, with which settings, and what was mounted before anything was started."""

    def __init__(
        self,
        program: Sequence[str],
        listen_to: Sequence[str],
        config: str | None,
        workload: Sequence[str] | None,
        console: Console,
    ) -> None:
        self.world = world.MACHINE
        self.at_boot: frozenset[int] = frozenset()
        self._console = console
        self._say = console.say
        self._program = program
        self._listen_to = listen_to
        self._config = config
        self._workload = workload
        self._environ = dict(os.environ)
        self._doors: listen.Doors | None = None
        self._oom_score_adj = ""
        #: Phases of the boot, in seconds of the clock that begins with the kernel.
        self.times = {"init": console.since}
        #: Whoever made this machine, where it wants to be told.
        self.host: Host | None = None
        #: Descriptors of a machine's power buttons.
        self.buttons: list[int] = []

    def _try(self, what: str, act: Callable[..., object], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001  a boot that lacks a step is better than none
            self._console.fail(what, error)

    def run(self) -> Keeper:
        first = os.getpid() == 1
        if first:
            self._try("the first mounts", mounts.mount_first, self._say)
        settings = self.read_settings()
        self.world, why = world.find(settings.init.kind)
        if self.world == world.MACHINE:
            self._try("the console", self._take_console)
            self._environ.setdefault("PATH", machine.PATH)
            os.environ.setdefault("PATH", machine.PATH)
        if first:
            self._try("mounts", mounts.mount_rest, self.world, self._say)
        given = listen.take_given(self._environ)
        listen.forget_given(self._environ)
        listening = [each for each in given if listen.is_listening(each[0])]
        self._doors = doors = self._doors or listen.Doors(settings, self._listen_to, listening)
        self._try("listening", doors.open, self._say)
        # Here everybody who connects can wait; from here on nobody waits for us.
        self.times.setdefault("listening", time.monotonic())
        self._say(f"this is a {self.world} ({why})")
        if first:
            self._try("links in /dev", mounts.link_devices, self._say)
        if self.world == world.CONTAINER:
            self._oom_score_adj = _protect()
        if self.world == world.MACHINE:
            self.times["kernel"] = 0.0
            self._try("telling the host", self._tell_host)
            self._set_up_machine(settings)
        elif self.world == world.PROCESS:
            from guestd.init import libc

            self._try("becoming the parent of orphans", libc.adopt_orphans)
        self.at_boot = frozenset(each.id for each in mounts.table())
        return self._make_keeper(settings, doors, [each for each in given if each not in listening])

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
            world=self.world,
            files=files,
            oom_score_adj=self._oom_score_adj,
            store_max=min(settings.init.fd_store, max(0, now_files - _FILES_RESERVED) // 2),
            host=self.host,
            times=self.times,
        )
        for fd, name in stored:
            keeper.store.add(name, [fd], watch=False)
        return keeper

    def read_settings(self) -> Settings:
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
            self._console.fail("the settings could not be read", error)
            return resolve().settings

    def _take_console(self) -> None:
        self._console.move("/dev/console")
        for fd in (0, 1, 2):
            # Only where the kernel found no console: what it has opened is right.
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                other = os.open("/dev/console" if fd else os.devnull, os.O_RDWR | os.O_NOCTTY)
                os.dup2(other, fd)
                os.close(other)
        os.chdir("/")

    def _tell_host(self) -> None:
        from guestd.init import host

        address = host.address(self._environ, _read("/proc/cmdline"))
        if address and self.host is None:
            self.host = host.Host(address, self._say)
            phases = "\n".join(host.phase(name.upper(), self.times[name]) for name in ("init", "listening"))
            self.host.tell(f"STATUS=listening\n{phases}\n")

    def _find_buttons(self) -> None:
        from guestd.init import button

        self.buttons = button.find()

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
        self._try("the power button", self._find_buttons)
        try:
            # Ctrl-Alt-Del, and a hypervisor's way of saying it, is SIGINT from now on, and no sudden end.
            libc.reboot(libc.RB_DISABLE_CAD)
        except OSError as error:
            self._say(f"ctrl-alt-del stays with the kernel: {error.strerror}")


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
