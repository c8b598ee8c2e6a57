"""The command line of guestctl, and its help."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn, TypeVar

from guestd.ctl import values
from guestd.wire.address import DEFAULT_PORT, FORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Value = TypeVar("Value")

DEFAULT_ADDRESS = "unix:/run/guestd/guestd.sock"
#: guestctl itself failed: the status 2 that argparse would use may be the command's own.
USAGE_STATUS = 125

_MAIN = """\
Run commands in a guest, come back to them, end them.

  exec       run a command; ends with its status
  attach     come back to a job: its output, and its status at the end
  ps         the jobs there are
  kill       end a job with all its processes, or send it a signal
  wait       wait for a job; ends with its status
  status     the state of the guest
  version    the version of guestctl

`guestctl COMMAND --help` says more."""

_MAIN_END = f"""\
addresses:   {FORMS.replace(", ws:", ",{0}ws:").format(chr(10) + " " * 13)};
             the port may be left out: {DEFAULT_PORT}

exit status: the command's own; 128+N for signal N; 124 timed out; 125 guestd or guestctl failed;
             126 not executable; 127 not found"""

_EXEC = """\
Run a command in the guest. Its stdout and stderr come out here byte for byte, and its status is guestctl's.

  guestctl exec -- make -j4                     argv, as it is
  guestctl exec 'make 2>&1 | tail'              one word: a line for the guest's shell
  tar c . | guestctl exec -i -- tar xv          with standard input
  guestctl exec --id build --detach -- make     leave it to itself; the same line again starts nothing new

Ctrl+C and SIGTERM go to the command; a second Ctrl+C within 2 s ends it with all its processes. A lost connection
leaves it running: guestctl connects again and goes on at the exact byte."""

_ATTACH = """\
Come back to a job: the output that is kept, then what comes, and its status at the end.

  guestctl attach build                         all that is kept
  guestctl attach build --from end              only what comes from now on
  guestctl attach build --from stdout=4096,stderr=0"""

_KILL = """\
End a job with all its processes: SIGTERM, a grace, SIGKILL; returns when it has ended. With -s, send that signal
and return at once. An id the guest does not know is remembered: a start of that id will be refused for a while."""


class _Parser(argparse.ArgumentParser):
    """Ends with 125: any other status may be the command's own."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"guestctl: {message}\n`{self.prog} --help` shows how it is used\n")
        sys.exit(USAGE_STATUS)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. `argv` and `shell` of exec are settled here: one of them is None."""
    words, argv = _split(arguments)
    parser = _build()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        if options.command == "exec" and options.line and argv is None:
            # `exec ls -l`: its options are the command's, not guestctl's.
            options.parser.error(_several(arguments[arguments.index("exec") + 1 :]))
        getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command is None:
        parser.print_help()
        sys.exit(USAGE_STATUS)
    if options.command == "exec":
        _settle(options.parser, options, argv)
    elif argv:
        options.parser.error(f"{options.command} takes nothing behind --")
    return options


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    # What is behind the first -- is the command's alone. argparse treats it differently from version to version.
    words = list(arguments)
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


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
    if options.detach and options.stdin:
        parser.error("--detach leaves the command to itself, so it cannot have -i; give its input by a file")


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

    _exec(command("exec", _EXEC, 'guestctl exec [OPTIONS] ( -- COMMAND ARGUMENTS… | "SHELL LINE" )'))
    _attach(command("attach", _ATTACH, "guestctl attach ID [--from OFFSET] [-i] [--read-only]"))
    command("ps", "The jobs that run, and those that have ended and are kept.", "guestctl ps")
    kill = command("kill", _KILL, "guestctl kill ID [-s SIGNAL] [--grace S] [--scope tree|leave]")
    kill.add_argument("id", metavar="ID")
    kill.add_argument(
        "-s", "--signal", metavar="SIGNAL", help="send this (TERM, SIGUSR1, 9) and nothing else"
    )
    kill.add_argument(
        "--grace", type=_of(values.seconds), metavar="S", help="seconds between SIGTERM and SIGKILL"
    )
    kill.add_argument(
        "--scope", choices=("tree", "leave"), help="tree: all its processes; leave: only the command itself"
    )
    wait = command(
        "wait", "Wait for the end of a job; ends with its status.", "guestctl wait ID [--timeout S]"
    )
    wait.add_argument("id", metavar="ID")
    wait.add_argument(
        "--timeout",
        type=_of(values.seconds),
        metavar="S",
        help="give up after this (status 124); the job goes on",
    )
    command("status", "The state of the guest.", "guestctl status")
    command("version", "The version of guestctl.", "guestctl version")
    return parser


def default_address() -> str:
    """Where the guest is when --to does not say."""
    return os.environ.get("GUESTD_TO") or DEFAULT_ADDRESS


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


def _exec(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("line", nargs="*", metavar="SHELL LINE", help=argparse.SUPPRESS)
    add("-i", dest="stdin", action="store_true", help="pass on standard input")
    add("--id", help="a name of your own: starting it again under the same name returns the same job")
    add("--detach", action="store_true", help="print the id and leave it to itself")
    add(
        "--env",
        type=_of(values.variable),
        action="append",
        default=[],
        metavar="K=V",
        help="a variable; repeatable",
    )
    add("--cwd", metavar="DIR", help="where it runs (default: the workspace, or its home)")
    add("--user", type=_of(values.name_or_number), help="whom it runs as, by name or number")
    add("--group", type=_of(values.name_or_number), help="its group, by name or number")
    add("--timeout", type=_of(values.seconds), metavar="S", help="end it after this long (status 124)")
    add("--grace", type=_of(values.seconds), metavar="S", help="from SIGTERM to SIGKILL when it is ended")
    add(
        "--scope",
        choices=("tree", "leave"),
        help="what happens to what it leaves running: tree ends it, leave does not",
    )
    add(
        "--tape",
        type=_of(values.size),
        metavar="SIZE",
        help="how much output of each stream is kept (64K, 8M)",
    )
    add("--spool", action="store_true", help="keep all output, in a file of the guest's")
    add("--umask", type=_of(values.octal), metavar="MASK", help="in octal")
    add(
        "--rlimit",
        type=_of(values.rlimit),
        action="append",
        default=[],
        metavar="NAME=SOFT[:HARD]",
        help="repeatable",
    )
    add("--nice", type=int, metavar="N", help="from -20 to 19")
    add("--kill-on-disconnect", action="store_true", help="end it when this connection is lost")
    add(
        "--no-hold",
        action="store_true",
        help="when output is not read fast enough, lose the oldest instead of waiting",
    )
    _reconnect(parser)


def _attach(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("id", metavar="ID")
    add("--from", dest="start", type=_of(values.offsets), default="start", metavar="OFFSET",
        help="a number (of stdout), stdout=N,stderr=N, `start` (default) or `end`")  # fmt: skip
    add(
        "-i",
        dest="stdin",
        action="store_true",
        help="pass on standard input; the job must have been started with -i",
    )
    add(
        "--hold",
        action="store_true",
        help="when output is not read fast enough, let the job wait instead of losing any",
    )
    add(
        "--read-only",
        action="store_true",
        help="only watch: nothing is sent, and Ctrl+C leaves the job alone",
    )
    _reconnect(parser)


def _reconnect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reconnect", type=_of(values.seconds), default=60.0, metavar="S",
        help="how long to try to connect again when the connection is lost (default 60; 0: not at all)",
    )  # fmt: skip


def _of(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """A reader of values for argparse, which hides the text of a ValueError."""

    def reader(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader
