"""The `guestd` program: reads its few flags and the sources of settings, and hands over.

Exit status: 0 when all went well; 2 for a command line that cannot be understood; 78 (EX_CONFIG, which service
managers know) for settings that cannot be used; 125 when guestd fails otherwise, as guestctl does too.

Flags are read by hand: argparse costs 6 ms to import, three times what the settings cost, before anybody can
connect, and there are four flags. What a command needs is imported by that command.
"""

from __future__ import annotations

import os
import sys

from guestd import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestd.config import Configuration

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_CONFIG = 78

USAGE = """\
usage: guestd serve [--listen ADDR]... [--config FILE] [-- WORKLOAD...]
       guestd init [--listen ADDR]... [--config FILE] [-- WORKLOAD...]
       guestd check [--listen ADDR]... [--config FILE] [--json]
       guestd check --keys
       guestd version [--json]
"""

HELP = f"""\
guestd, the supervisor inside an agent's microVM

{USAGE}
  serve      run the supervisor; prints one line when it is ready, and ends in order on SIGTERM
  init       be PID 1 of a machine or a container: mount what is missing, listen, keep `serve` running, reap,
             end in order; what follows -- is the workload, which serve runs
  check      show every setting that is in force, where it comes from, and what is wrong; changes nothing
  version    print the version

  --listen ADDR   where to listen, instead of the usual places; may be given several times:
                  unix:PATH, vsock:CID:PORT (CID may be any), tcp:HOST:PORT
  --config FILE   the configuration file, instead of /etc/guestd/guestd.toml
  WORKLOAD        the image's own program, which guestd runs and looks after (workload.command)
  --json          print one JSON object
  --keys          print all settings there are, as a Markdown table

Settings come from the file, the kernel command line (guestd.KEY=VALUE), the environment (GUESTD_SECTION_KEY) and
flags; the later wins. To talk to a running guestd: guestctl.
"""

_SWITCHES = {
    "init": {"--listen", "--config", "--"},
    "serve": {"--listen", "--config", "--"},
    "check": {"--listen", "--config", "--json", "--keys"},
    "version": {"--json"},
}


class _UsageError(Exception):
    """The command line cannot be understood; the text says why."""


class _Arguments:
    """What the command line says."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.command = ""
        self.listen: list[str] = []
        self.config: str | None = None
        self.json = False
        self.keys = False
        self.workload: list[str] | None = None
        rest = list(arguments)
        if not rest and os.getpid() == 1:
            # What a kernel starts as its init has no arguments, unless its command line has some behind a `--`.
            rest = ["init"]
        if rest and rest[0] in _SWITCHES:
            self.command = rest.pop(0)
        elif rest and rest[0] not in {"-h", "--help", "help", "--version"}:
            raise _UsageError(f"there is no command {rest[0]}")
        elif rest:
            self.command = "version" if rest.pop(0) == "--version" else "help"
        else:
            raise _UsageError("which command?")
        if "--" in rest and "WORKLOAD" in _SWITCHES.get(self.command, ()):
            at = rest.index("--")
            rest, self.workload = rest[:at], rest[at + 1 :]
            if not self.workload:
                raise _UsageError("nothing stands behind --: the workload goes there")
        while rest:
            self._take(rest)

    def _take(self, rest: list[str]) -> None:
        switch, equals, value = rest.pop(0).partition("=")
        if switch in {"-h", "--help"} and not equals:
            self.command = "help"
            return
        if switch not in _SWITCHES.get(self.command, ()) and self.command != "help":
            raise _UsageError(f"guestd {self.command} does not take {switch}")
        if switch == "--" and not equals:
            self.workload = rest[:]
            rest.clear()
            if not self.workload:
                raise _UsageError("which workload? a program and its arguments follow --")
        elif switch in {"--listen", "--config"}:
            if not equals:
                if not rest:
                    raise _UsageError(f"{switch} needs a value")
                value = rest.pop(0)
            if switch == "--listen":
                self.listen.append(value)
            else:
                self.config = value
        elif equals:
            raise _UsageError(f"{switch} takes no value")
        elif switch == "--json":
            self.json = True
        elif switch == "--keys":
            self.keys = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        parsed = _Arguments(words)
    except _UsageError as error:
        if words[:1] == ["init"] and os.getpid() == 1 and _is_machine():
            # There is nobody to read this and to try again, and the end of a machine's PID 1 is a panic.
            _forget_own_locale()
            return _init(_Arguments(["init"]), words, problem=f"{error}; the whole command line is ignored")
        print(f"guestd: {error}\n{USAGE}guestd --help says more", file=sys.stderr)
        return EXIT_USAGE
    if parsed.command in {"init", "serve"}:
        _forget_own_locale()
    match parsed.command:
        case "init":
            return _init(parsed, words)
        case "serve":
            return _serve(parsed)
        case "check":
            return _check(parsed)
        case "version":
            return _version(parsed)
        case _:
            sys.stdout.write(HELP)
            return EXIT_OK


def _forget_own_locale() -> None:
    """Take back what Python did to the environment where the locale is C (PEP 538).

    It set LC_CTYPE before any of this ran. A job would inherit it, and a shell of an image that has no such locale
    complains at each start.
    """
    value = os.environ.get("LC_CTYPE")
    if value not in {"C.UTF-8", "C.utf8", "UTF-8"}:
        return
    try:
        with open("/proc/self/environ", "rb") as stream:
            given = stream.read().split(b"\0")
    except OSError:
        # PID 1 of a machine has no /proc yet, and what a kernel gives it has no such variable.
        given = []
    if f"LC_CTYPE={value}".encode() not in given:
        del os.environ["LC_CTYPE"]


def load(config: str | None, listen: Sequence[str] = (), workload: Sequence[str] = ()) -> Configuration:
    """Read the sources of settings as they are now. `config` None means the usual file, which need not exist."""
    from guestd.config import DEFAULT_FILE, Configuration, Origin, Problem, resolve

    file: bytes | None = None
    problems: list[Problem] = []
    name = DEFAULT_FILE if config is None else config
    try:
        with open(name, "rb") as stream:
            file = stream.read()
    except OSError as error:
        if config is not None or not isinstance(error, FileNotFoundError):
            what = f"the file cannot be read: {error.strerror}"
            problems.append(
                Problem(Origin("file", name), "", what, "expected a TOML file that guestd can read")
            )
    try:
        with open("/proc/cmdline", encoding="utf-8", errors="surrogateescape") as stream:
            cmdline = stream.read()
    except OSError:
        # No /proc, or none for us: then nobody has told us anything there.
        cmdline = ""
    flags: dict[str, object] = {"listen": list(listen)} if listen else {}
    if workload:
        flags["workload.command"] = list(workload)
    found = resolve(file=file, file_name=name, cmdline=cmdline, environ=os.environ, flags=flags)
    return Configuration(found.settings, found.origins, (*problems, *found.problems))


def _is_machine() -> bool:
    from guestd.init.world import MACHINE, find

    return find("auto")[0] == MACHINE


def _init(arguments: _Arguments, words: Sequence[str], problem: str = "") -> int:
    from guestd.init.main import program_of, run

    return run(
        program=program_of(words),
        listen_to=arguments.listen,
        config=arguments.config,
        workload=arguments.workload,
        problem=problem,
    )


def _serve(arguments: _Arguments) -> int:
    configuration = load(arguments.config, arguments.listen, arguments.workload or ())
    if configuration.problems:
        for problem in configuration.problems:
            print(f"guestd: {problem}", file=sys.stderr)
        print("guestd: not started; `guestd check` explains all settings", file=sys.stderr)
        return EXIT_CONFIG
    from guestd.errors import ConfigError, GuestdError
    from guestd.supervisor import serve

    try:
        return serve(configuration.settings)
    except GuestdError as error:
        print(f"guestd: {error.message}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, ConfigError) else error.exit_status


def _check(arguments: _Arguments) -> int:
    from guestd.check import as_json, as_text, examine, reference

    if arguments.keys:
        sys.stdout.write(reference())
        return EXIT_OK
    report = examine(load(arguments.config, arguments.listen))
    sys.stdout.write(as_json(report) if arguments.json else as_text(report))
    return EXIT_CONFIG if report.problems else EXIT_OK


def _version(arguments: _Arguments) -> int:
    if not arguments.json:
        print(f"guestd {__version__}")
        return EXIT_OK
    import json
    from importlib.metadata import version

    from guestd.wire.frames import VERSION

    python = ".".join(str(part) for part in sys.version_info[:3])
    print(json.dumps({"guestd": __version__, "protocol": VERSION, "python": python, "trio": version("trio")}))
    return EXIT_OK
