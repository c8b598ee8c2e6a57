"""The command line of guestctl: which command, which options, and what is wrong with a line that cannot be meant."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from guestd.ctl import arguments, files_arguments, forward_arguments, life_arguments, mount_arguments
from guestd.wire.address import DEFAULT_PORT, FORMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFAULT_ADDRESS = "unix:/run/guestd/guestd.sock"
INSIDE_ADDRESS = "unix:/run/guestd/agent.sock"
#: Options of a shell that is opened; one that is there has them already.
_OF_A_NEW_SHELL = ("env", "cwd", "user", "group", "tape", "no_login", "without_mounts")
#: guestctl itself failed: the status 2 that argparse would use may be the command's own.
USAGE_STATUS = 125

_MAIN = """\
Run commands and shells in a guest, come back to them, end them.

  shell      sit at a shell; it outlives the connection, and this machine
  exec       run a command; ends with its status
  attach     come back to a job: its output, and its status at the end
  ps         the jobs there are
  kill       end a job with all its processes, or send it a signal
  wait       wait for a job; ends with its status
  record     record a shell, to play it elsewhere
  cp         copy files and folders, into the guest and out of it
  watch      what happens to files in the guest
  mount      mount a file system in the guest
  unmount    take one down
  mounts     the file systems there are, and how they do
  forward    reach a port of the guest from here
  status     the state of the guest
  busy       keep the session awake
  events     what has happened to the session
  timers     when the session ends by itself
  stop       end the session in order
  resume     after a pause, or a copy, of the machine
  upgrade    another version of guestd, while everything goes on
  version    the version of guestctl

`guestctl COMMAND --help` says more."""

_MAIN_END = f"""\
addresses:   {FORMS.replace(", ws:", ",{0}ws:").format(chr(10) + " " * 13)};
             the port may be left out: {DEFAULT_PORT}

exit status: the command's own; 128+N for signal N; 124 timed out; 125 guestd or guestctl failed;
             126 not executable; 127 not found"""

#: Of exec: what a command on a terminal does not have, by option and by its name here.
_NOT_ON_A_TERMINAL = (
    ("--timeout", "timeout"), ("--scope", "scope"), ("--spool", "spool"), ("--detach", "detach"),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Ends with 125: any other status may be the command's own."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"guestctl: {message}{_meant(message)}\n`{self.prog} --help` shows how it is used\n")
        sys.exit(USAGE_STATUS)


def _meant(message: str) -> str:
    """Which command it was, probably, that argparse does not know."""
    found = re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message)
    return "" if found is None else _suggestion(found[1], re.findall(r"[\w-]+", found[2]))


def _suggestion(word: str, known: Iterable[str]) -> str:
    # Only a line that is wrong pays for it.
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. `argv` and `shell` of exec and shell are settled here; of exec one of them is None."""
    words, argv = _split(arguments)
    parser = _build()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse(parser, options, unknown, arguments, argv)
    if options.command is None:
        parser.print_help()
        sys.exit(USAGE_STATUS)
    if options.command == "exec":
        _settle(options.parser, options, argv)
    elif options.command == "shell":
        _settle_shell(options.parser, options, argv)
    elif options.command in {"busy", "upgrade"}:
        options.argv = argv
    elif argv:
        options.parser.error(f"{options.command} takes nothing behind --")
    if options.command == "ps" and options.commands and options.id is None:
        options.parser.error("--commands is of one shell: write `guestctl ps ID --commands`")
    return options


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    # What is behind the first -- is the command's alone. argparse treats it differently from version to version.
    words = list(arguments)
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _refuse(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    unknown: list[str],
    arguments: Sequence[str],
    argv: list[str] | None,
) -> NoReturn:
    if options.command == "exec" and options.line and argv is None:
        # `exec ls -l`: its options are the command's, not guestctl's.
        options.parser.error(_several(arguments[arguments.index("exec") + 1 :]))
    if options.command == "shell" and not unknown[0].startswith("-"):
        options.parser.error(
            f"{unknown[0]!r} stands behind the ID; a program goes behind --: `guestctl shell ID -- PROGRAM ARGUMENTS…`"
        )
    known: list[str] = []
    found: argparse.ArgumentParser = getattr(options, "parser", parser)
    for action in found._actions:  # noqa: SLF001  argparse has no other list of its options
        known += action.option_strings
    found.error(f"unrecognized arguments: {' '.join(unknown)}{_suggestion(unknown[0], known)}")
    raise AssertionError


def _several(words: Sequence[str]) -> str:
    return (
        f"several words without --: write `guestctl exec [OPTIONS] -- {' '.join(words)}`, or quote them all as one line"
        " for the shell"
    )


def _settle(parser: argparse.ArgumentParser, options: argparse.Namespace, argv: list[str] | None) -> None:
    line: list[str] = options.line
    options.shell = None
    options.argv = argv
    if argv is None:
        if len(line) > 1:
            parser.error(_several(line))
        if not line:
            parser.error(
                "no command: write `guestctl exec [OPTIONS] -- COMMAND ARGUMENTS…`, or one quoted shell line"
            )
        options.shell = line[0]
    elif line:
        parser.error(f"{line[0]!r} stands before --: options go there; the whole command goes behind it")
    elif not argv:
        parser.error("nothing stands behind --: the command goes there")
    if options.id == "":
        parser.error("--id is empty: leave it out, or give the job a name")
    if options.it:
        options.stdin = options.tty = True
    if options.tty:
        for option, name in _NOT_ON_A_TERMINAL:
            if getattr(options, name):
                parser.error(f"a command on a terminal (-t) has no {option}; leave out one of them")
    if options.detach and options.stdin:
        parser.error("--detach leaves the command to itself, so it cannot have -i; give its input by a file")


def _settle_shell(
    parser: argparse.ArgumentParser, options: argparse.Namespace, argv: list[str] | None
) -> None:
    options.argv = argv
    if argv is not None and not argv:
        parser.error("nothing stands behind --: a program goes there; leave out -- for the login shell")
    if options.id == "":
        parser.error("the ID is empty: leave it out, or give the shell a name")
    if options.read_only and options.join:
        parser.error("--read-only only watches and --join types too: choose one")
    if not options.read_only and not options.join:
        return
    which = "--read-only" if options.read_only else "--join"
    if options.id is None:
        parser.error(f"{which} is for a shell that is there: give its ID; `guestctl ps` shows the jobs")
    if argv or any(getattr(options, name) for name in _OF_A_NEW_SHELL):
        parser.error(f"{which} is for a shell that is there: what it runs, and how, is settled")


def _build() -> argparse.ArgumentParser:
    everywhere = _Parser(add_help=False)
    _global(everywhere, suppress=True)
    parser = _Parser(
        prog="guestctl", description=_MAIN, epilog=_MAIN_END, usage="guestctl [--to ADDR] [--json] COMMAND …",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    _global(parser, suppress=False)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog="guestctl", help=argparse.SUPPRESS
    )

    def command(name: str, description: str, usage: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, description=description, usage=usage, parents=[everywhere],
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        made.set_defaults(parser=made)
        return made

    arguments.shell(
        command(
            "shell",
            arguments.SHELL,
            "guestctl shell [ID] [--read-only | --join] [OPTIONS] [-- PROGRAM ARGUMENTS…]",
        )
    )
    arguments.exec_(
        command("exec", arguments.EXEC, 'guestctl exec [OPTIONS] ( -- COMMAND ARGUMENTS… | "SHELL LINE" )')
    )
    arguments.attach(
        command(
            "attach", arguments.ATTACH, "guestctl attach ID [--from OFFSET | --command N] [-i] [--read-only]"
        )
    )
    arguments.ps(command("ps", arguments.PS, "guestctl ps [ID [--commands]]"))
    arguments.kill(
        command("kill", arguments.KILL, "guestctl kill ID [-s SIGNAL] [--grace S] [--scope tree|leave]")
    )
    arguments.wait(
        command("wait", "Wait for the end of a job; ends with its status.", "guestctl wait ID [--timeout S]")
    )
    arguments.record(command("record", arguments.RECORD, "guestctl record ID FILE [--idle-limit S]"))
    command("status", "The state of the guest.", "guestctl status")
    files_arguments.add(command)
    mount_arguments.add(command)
    forward_arguments.add(command)
    life_arguments.add(command)
    command("version", "The version of guestctl.", "guestctl version")
    return parser


def default_address() -> str:
    """Where the guest is when --to does not say."""
    return os.environ.get("GUESTD_TO") or DEFAULT_ADDRESS


def inside_address() -> str:
    """The socket for the guest's own programs, as guestd tells its jobs."""
    return os.environ.get("GUESTD_JOB_SOCKET") or INSIDE_ADDRESS


def _global(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    """The options that may stand before the command or behind it."""
    parser.add_argument(
        "--to", metavar="ADDR", help=f"where the guest is (default: $GUESTD_TO, or {DEFAULT_ADDRESS})",
        default=argparse.SUPPRESS if suppress else default_address(),
    )  # fmt: skip
    parser.add_argument(
        "--token-file", metavar="FILE", help="the file with the guest's token (default: $GUESTD_TOKEN_FILE)",
        default=argparse.SUPPRESS if suppress else os.environ.get("GUESTD_TOKEN_FILE") or None,
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print JSON: one object, or one a line where there is a stream",
        default=argparse.SUPPRESS if suppress else False,
    )  # fmt: skip
