"""The table of settings: name, type, default, bounds and meaning of each key stand together in the class bodies below.

docs/configuration.md shows the same. What is in force when all the sources have spoken is worked out in config.py.
"""

from __future__ import annotations

from guestd._config_agent import Agent
from guestd._config_agentcore import AgentCore
from guestd._config_declare import choice, key, number, path, seconds, section, size
from guestd._config_files import Files
from guestd._config_kinds import Boolean, Integer, ListOf, Octal, TableOf, Text
from guestd._config_life import CommandLine, HealthCheck
from guestd._config_mounts import Mount, Mounts, Storage
from guestd._config_relay import Forward, Relay, RelayTable
from guestd._config_section import Section
from guestd._config_system import (
    Capability,
    IpAddress,
    KernelValue,
    Location,
    Rlimit,
    RlimitName,
    User,
    VariableName,
    Word,
)
from guestd._config_telemetry import Audit, Telemetry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.wire.address import Address


class Log(Section):
    """What guestd says about itself, on stderr."""

    level: str = choice(
        "The least severe messages that are logged.", "info", "debug", "info", "warning", "error"
    )


class Command(Section):
    """What each command gets; most of it a request may say for itself."""

    tape: int = size("Output kept of each stream, for those who come back.", "1 MiB", "4 KiB", "1 GiB")
    timeout: float = seconds(
        "A command that runs longer than this is ended.", "0", "0", "3650d", "no timeout"
    )
    grace: float = seconds("Between SIGTERM and SIGKILL when a command is ended.", "5s", "0", "1h")
    drain: float = seconds(
        "After the exit: the longest wait for output while something left behind holds it open.",
        "250ms",
        "0",
        "1h",
    )
    retain: float = seconds("How long a result and its output stay after the end.", "600s", "0", "30d")
    retain_count: int = number("Ended commands that are kept; the oldest go first.", 1000, 0, 1_000_000)
    retain_bytes: int = size("Output kept of all ended commands together.", "256 MiB", "0", "64 GiB")
    spool_dir: str = path(
        "Where spool files are, for output of which nothing may be lost.", "", "runtime_dir/spool"
    )
    spool_limit: int = size("One spool file; a command has two.", "1 GiB", "0", "16 TiB")
    umask: int = key("The mode bits that new files do not get.", Octal(0, 0o777), 0o022)
    nice: int = number("How much a command yields to others; below 0 needs privilege.", 0, -20, 19)
    oom_score_adj: int = number("How readily the kernel ends a command when memory is short.", 0, -1000, 1000)
    no_new_privs: bool = key(
        "Set-uid programs gain nothing: su and sudo stop working.", Boolean(), default=False
    )
    drop_capabilities: tuple[str, ...] = key(
        "Capabilities that no command can have, or gain.",
        ListOf(Capability()),
        (),
        "none",
    )
    rlimits: Mapping[str, tuple[int, int]] = key(
        "Resource limits by name, as in getrlimit(2).",
        TableOf(Rlimit(), RlimitName(), lower=True),
        {},
        "as inherited",
    )
    cgroup: str = choice(
        "A cgroup for each command, where cgroup v2 can be written to.", "auto", "auto", "off"
    )


class Shells(Section):
    """What each shell gets; most of it a request may say for itself. The rest is as `command` has it."""

    tape: int = size("Output kept of a terminal, for those who come back.", "4 MiB", "64 KiB", "1 GiB")
    history: int = number("Lines above the screen that are shown to who comes back.", 1000, 0, 100_000)
    grace: float = seconds("Between SIGHUP and SIGKILL when a shell is ended.", "5s", "0", "1h")
    retain: float = seconds("How long a shell's output stays after its end.", "600s", "0", "30d")
    idle_timeout: float = seconds(
        "A shell is ended when nobody is attached and nothing happens in it for so long.",
        "0",
        "0",
        "3650d",
        "never",
    )
    lifetime: float = seconds("A shell is ended after so long, whatever it does.", "0", "0", "3650d", "never")
    hold: float = seconds(
        "How long a program waits for the owner of its shell to take any output; then it goes on without.",
        "30s", "100ms", "3650d",
    )  # fmt: skip
    login: bool = key("The user's shell is a login shell.", Boolean(), default=True)
    integration: bool = key(
        "bash (5.1 and later) and zsh mark each command line, so that it has an entry with its output and its status.",
        Boolean(), default=True,
    )  # fmt: skip


class Limits(Section):
    """Bounds of what peers can make the supervisor hold. An error that meets one names it."""

    jobs: int = number("Commands and shells that run at once.", 1024, 1, 100_000)
    shells: int = number("Shells that run at once.", 100, 0, 100_000)
    tapes: int = size("Output kept of all jobs together.", "512 MiB", "64 KiB", "64 GiB")
    frame: int = size("One frame, after the hello.", "4 MiB", "64 KiB", "1 GiB")
    window: int = size(
        "Input of one channel that is taken before the job has read it.", "256 KiB", "4 KiB", "1 GiB"
    )
    env: int = size("The environment in one request.", "1 MiB", "4 KiB", "64 MiB")
    argv: int = size("The arguments in one request.", "2 MiB", "4 KiB", "64 MiB")
    channels: int = number("Channels open at once on one connection.", 16384, 1, 1_000_000)
    connections: int = number("Connections at once.", 256, 1, 65536)
    handshake: float = seconds("From connecting to the end of the peer's hello.", "10s", "100ms", "10m")
    write_stall: float = seconds(
        "How long a peer may take nothing while control frames wait for it; then it is dropped.",
        "60s",
        "1s",
        "1d",
    )
    mounts: int = number("File systems mounted by guestd at once.", 16, 0, 200)
    remembered_kills: int = number("Kills remembered that arrived before their start.", 1024, 0, 1_000_000)


class Access(Section):
    """Who may connect."""

    unix_uids: tuple[int, ...] = key(
        "Users, by number, who may connect to the Unix socket besides root and guestd's own.",
        ListOf(Integer(0, 2**32 - 2)), (), "nobody else",
    )  # fmt: skip
    vsock_cids: tuple[int, ...] = key(
        "Context ids that may connect over vsock; 2 is the host.",
        ListOf(Integer(0, 2**32 - 1)),
        (2,),
        "nobody",
    )


class Supervisor(Section):
    """The supervisor's own process."""

    oom_score_adj: int = number(
        "How readily the kernel ends the supervisor, where it may say so.", -1000, -1000, 1000
    )


class Idle(Section):
    """How long a session lasts that nobody uses, or that has lasted long."""

    timeout: float = seconds(
        "The session stops when nothing has gone on in it for so long.", "15m", "0", "3650d", "never"
    )
    lifetime: float = seconds(
        "The session stops after so long, whatever goes on in it.", "8h", "0", "3650d", "never"
    )
    warning: float = seconds("How long before such a stop it is announced by an event.", "60s", "0", "1h")


class Workload(Section):
    """The image's own program, which guestd runs and looks after."""

    command: str | tuple[str, ...] = key(
        "The program. `guestd serve -- COMMAND` says the same.", CommandLine(), "", "none"
    )
    user: str = key("Whom it runs as, by name or number.", User(), "", "as commands do")
    cwd: str = path("Where it runs.", "", "as commands do")
    env: Mapping[str, str] = key(
        "Its environment: above the session's.", TableOf(Text(), VariableName()), {}, "nothing"
    )
    restart: str = choice(
        "Whether it is started again when it has ended.", "on-failure", "always", "on-failure", "never"
    )
    backoff: float = seconds(
        "The wait before it is started again; doubled each time that it lasted less than 10 s.",
        "1s",
        "100ms",
        "1h",
    )
    backoff_max: float = seconds("The longest such wait.", "1m", "100ms", "1d")
    exit_ends_session: bool = key(
        "When it has ended and is not started again, the session stops, and `guestd serve` ends with its status.",
        Boolean(), default=False,
    )  # fmt: skip
    health: str = key("Where it says how it is, and that it is busy.", HealthCheck(), "", "it is not asked")
    health_interval: float = seconds("How often it is asked.", "10s", "100ms", "1h")
    health_timeout: float = seconds("How long an answer may take.", "5s", "100ms", "1h")


class Stop(Section):
    """The end of the session."""

    grace: float = seconds("What the whole stop may take: programs that end, hooks, disks.", "15s", "0", "1h")
    hooks: tuple[str | tuple[str, ...], ...] = key(
        "Commands that are run when all programs have ended.", ListOf(CommandLine()), (), "none"
    )
    hook_timeout: float = seconds("How long each of them may take, within the grace.", "5s", "100ms", "1h")


class Resume(Section):
    """After a pause of the machine, or when it was made of a snapshot."""

    hooks: tuple[str | tuple[str, ...], ...] = key(
        "Commands that are run when all has been mended.", ListOf(CommandLine()), (), "none"
    )
    hook_timeout: float = seconds("How long each of them may take.", "5s", "100ms", "1h")
    patience: float = seconds(
        "How long a connection may be silent when it is asked whether it is still there; then it is dropped.",
        "2s", "10ms", "1m",
    )  # fmt: skip


class Init(Section):
    """What `guestd init` does: PID 1, its machine, and how it keeps `serve` running."""

    kind: str = choice(
        "What PID 1 is of; auto looks. A container's never switches anything off.",
        "auto", "auto", "machine", "container",
    )  # fmt: skip
    power_off: str = choice(
        "How a machine ends; reboot where the hypervisor takes that for the end (Firecracker's reboot=k).",
        "power-off", "power-off", "reboot", "halt",
    )  # fmt: skip
    hostname: str = key("The machine's name.", Word(), "", "that of ip= or /etc/hostname")
    interface: str = key("The interface that gets the addresses.", Word(), "", "that of ip=, or the first")
    address: tuple[str, ...] = key(
        "Addresses of the interface.", ListOf(IpAddress(prefix=True)), (), "that of ip=, if any"
    )
    gateway: tuple[str, ...] = key(
        "Where the default routes lead.", ListOf(IpAddress(prefix=False)), (), "that of ip=, if any"
    )
    dns: tuple[str, ...] = key(
        "Name servers, for /etc/resolv.conf.", ListOf(IpAddress(prefix=False)), (), "those of ip=, if any"
    )
    modules: tuple[str, ...] = key("Kernel modules to load, in this order.", ListOf(Word()), (), "none")
    sysctl: Mapping[str, str] = key(
        "Kernel settings by their names in /proc/sys, dots for slashes.",
        TableOf(KernelValue(), Text()), {}, "none",
    )  # fmt: skip
    ready_timeout: float = seconds(
        "A serve that is not ready after this is killed, and started again.", "30s", "0", "1h", "no limit"
    )
    watchdog: float = seconds(
        "A serve that has not said for so long that it turns is aborted, and started again.",
        "30s", "0", "1h", "no watchdog",
    )  # fmt: skip
    restart_delay: float = seconds(
        "After a serve's second death in a row; doubled with each one more. The first costs no delay.",
        "200ms", "10ms", "1h",
    )  # fmt: skip
    restart_delay_max: float = seconds("The longest delay before serve is started again.", "5s", "10ms", "1h")
    restart_reset: float = seconds(
        "A serve that was ready for so long ends the row of deaths.", "10s", "0", "1d"
    )
    fd_store: int = number("Descriptors that PID 1 keeps for the next serve.", 4096, 0, 1_000_000)


class Settings(Section):
    """Everything. `settings.command.tape` is a number of bytes, `settings.stop.grace` a number of seconds."""

    listen: tuple[Address, ...] = key(
        "Addresses to listen on.", ListOf(Location()), (),
        "runtime_dir/guestd.sock, vsock:any:1024",
    )  # fmt: skip
    token_file: str = path(
        "The file with the bearer token that tcp: beyond loopback asks for.", "", "no token"
    )
    runtime_dir: str = path("Where guestd keeps its socket and its state.", "/run/guestd")
    workspace: str = path("Where the work is; commands start there when it exists.", "/mnt/workspace")
    user: str = key(
        "Whom commands run as, by name or number.", User(), "", "agent if it exists, else guestd's own"
    )
    shell: str = path("What runs shell strings and shells.", "", "/bin/bash if it exists, else /bin/sh")
    env: Mapping[str, str] = key(
        "Environment of the session: above guestd's own, below a request's.",
        TableOf(Text(), VariableName()),
        {},
        "nothing",
    )
    mount: tuple[Mount, ...] = key("What is mounted: one table for each.", Mounts(), (), "nothing")
    storage: Storage = section(Storage)
    log: Log = section(Log)
    command: Command = section(Command)
    shells: Shells = section(Shells)
    limits: Limits = section(Limits)
    access: Access = section(Access)
    agent: Agent = section(Agent)
    supervisor: Supervisor = section(Supervisor)
    idle: Idle = section(Idle)
    workload: Workload = section(Workload)
    stop: Stop = section(Stop)
    init: Init = section(Init)
    resume: Resume = section(Resume)
    telemetry: Telemetry = section(Telemetry)
    audit: Audit = section(Audit)
    relay: Mapping[str, Relay] = key(
        "Guest addresses whose connections lead to the host, or elsewhere; otlp, mcp, llm and egress come ready.",
        RelayTable(), {}, "none",
    )  # fmt: skip
    forward: Forward = section(Forward)
    files: Files = section(Files)
    agentcore: AgentCore = section(AgentCore)

    @property
    def spool_dir(self) -> str:
        return self.command.spool_dir or f"{self.runtime_dir}/spool"
