"""The arguments of each command of guestctl, and what its help says."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeVar

from guestd.ctl import values

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestd.ctl.keys import Key

Value = TypeVar("Value")

EXEC = """\
Run a command in the guest. Its stdout and stderr come out here byte for byte, and its status is guestctl's.

  guestctl exec -- make -j4                     argv, as it is
  guestctl exec 'make 2>&1 | tail'              one word: a line for the guest's shell
  tar c . | guestctl exec -i -- tar xv          with standard input
  guestctl exec -it -- htop                     on a terminal, as `shell` does it: for programs that draw or ask
  guestctl exec --id build --detach -- make     leave it to itself; the same line again starts nothing new

Ctrl+C and SIGTERM go to the command; a second Ctrl+C within 2 s ends it with all its processes. A lost connection
leaves it running: guestctl connects again and goes on at the exact byte.

With -it you sit at the command's terminal: keys go to it as they are typed, Ctrl+C too, and Ctrl+] leaves it running.
It is the door of `guestctl shell`, but what it runs is a command, not your login shell. -t without -i only shows
what a command prints on a terminal: stdout and stderr are one then, and Ctrl+C ends the command as usual."""

SHELL = """\
Sit at a shell in the guest: your login shell there, or any program that draws. It outlives the connection, this
terminal and this machine.

  guestctl shell                                a new one
  guestctl shell work                           the one of that name; a new one if there is none
  guestctl shell work -- htop                   a program instead of the login shell
  guestctl shell work --join                    beside whoever sits there: both type, the size stays theirs
  guestctl shell work --read-only               only watch; Ctrl+C leaves

Ctrl+] leaves the shell running and says how to come back; the screen is then as it would be had you stayed. To type
that key itself, choose another with --detach-key. Whoever sat there before is told, and may take it back.
A lost connection is found again by itself; what you type meanwhile is kept, up to 4 KiB. guestctl ends as the shell
ends: with its status."""

ATTACH = """\
Come back to a job: the output that is kept, then what comes, and its status at the end.

  guestctl attach build                         all that is kept
  guestctl attach build --from end              only what comes from now on
  guestctl attach build --from stdout=4096,stderr=0
  guestctl attach work --command 3              of a shell: what that command printed, and its status

Of a shell this is the raw output of its terminal, for a file or a pipe; to sit at it, use `guestctl shell work`.
Without -i nothing is sent to a shell."""

PS = """\
The jobs that run, and those that have ended and are kept.

  guestctl ps                                   all of them
  guestctl ps work                              all that is known of one
  guestctl ps work --commands                   what was typed at a shell: when, how long, with what status"""

KILL = """\
End a job with all its processes: SIGTERM, a grace, SIGKILL; a shell gets SIGHUP first. Returns when it has ended. With
-s, send that signal and return at once. An id the guest does not know is remembered: a start of that id will be
refused for a while."""

RECORD = """\
Record a shell as an asciicast (version 2): what is kept of its output at once, then what comes, to its end or Ctrl+C.

  guestctl record work out.cast                 for asciinema play, and for web pages
  guestctl record work - | gzip >out.cast.gz
  guestctl record work out.cast --idle-limit 2  no pause longer than 2 s"""


def exec_(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("line", nargs="*", metavar="SHELL LINE", help=argparse.SUPPRESS)
    add("-i", dest="stdin", action="store_true", help="pass on standard input")
    add("-t", dest="tty", action="store_true", help="run it on a terminal of its own")
    add("--it", action="store_true", help="the same as -i -t: sit at its terminal")
    add("--id", help="a name of your own: starting it again under the same name returns the same job")
    add("--detach", action="store_true", help="print the id and leave it to itself")
    add("--background", action="store_true", help="it does not keep the session awake")
    _program(parser)
    add("--timeout", type=of(values.seconds), metavar="S", help="end it after this long (status 124)")
    add("--grace", type=of(values.seconds), metavar="S", help="from SIGTERM to SIGKILL when it is ended")
    add(
        "--scope",
        choices=("tree", "leave"),
        help="what happens to what it leaves running: tree ends it, leave does not",
    )
    _tape(parser, "how much output of each stream is kept (64K, 8M)")
    add("--spool", action="store_true", help="keep all output, in a file of the guest's")
    add("--umask", type=of(values.octal), metavar="MASK", help="in octal")
    add(
        "--rlimit",
        type=of(values.rlimit),
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
    _detach_key(parser)
    _reconnect(parser)


def shell(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "id", metavar="ID", nargs="?", help="its name: letters, digits, _ and -; the guest's jobs are in `ps`"
    )
    add("--read-only", action="store_true", help="only watch: nothing is sent, Ctrl+C leaves")
    add("--join", action="store_true", help="type beside whoever sits there instead of taking it over")
    add("--no-replay", action="store_true", help="show only what comes from now on, not the screen as it is")
    _program(parser)
    add("--no-login", action="store_true", help="not as a login shell")
    _tape(parser, "how much output is kept (64K, 8M)")
    _detach_key(parser)


def attach(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("id", metavar="ID")
    add("--from", dest="start", type=of(values.offsets), default="start", metavar="OFFSET",
        help="a number (of stdout, or of a terminal), stdout=N,stderr=N, `start` (default) or `end`")  # fmt: skip
    add(
        "-i",
        dest="stdin",
        action="store_true",
        help="pass on standard input; a command must have been started with -i",
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
    add(
        "--command",
        dest="number",
        type=of(values.count),
        metavar="N",
        help="of a shell: only what this command printed (`guestctl ps ID --commands`)",
    )
    _reconnect(parser)


def ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", nargs="?")
    parser.add_argument("--commands", action="store_true", help="what was typed at this shell")


def kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "-s", "--signal", metavar="SIGNAL", help="send this (TERM, SIGUSR1, 9) and nothing else"
    )
    parser.add_argument(
        "--grace", type=of(values.seconds), metavar="S", help="seconds between SIGTERM and SIGKILL"
    )
    parser.add_argument(
        "--scope", choices=("tree", "leave"), help="tree: all its processes; leave: only the command itself"
    )


def wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "--timeout",
        type=of(values.seconds),
        metavar="S",
        help="give up after this (status 124); the job goes on",
    )


def record(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("id", metavar="ID")
    add("file", metavar="FILE", help="where to; - is stdout")
    add("--idle-limit", type=of(values.seconds), metavar="S", help="shorten every longer pause to this")
    _reconnect(parser)


def _program(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--env",
        type=of(values.variable),
        action="append",
        default=[],
        metavar="K=V",
        help="a variable; repeatable",
    )
    add("--cwd", metavar="DIR", help="where it runs (default: the workspace, or its home)")
    add("--user", type=of(values.name_or_number), help="whom it runs as, by name or number")
    add("--group", type=of(values.name_or_number), help="its group, by name or number")
    add("--without-mounts", action="store_true", help="start it also while required file systems are missing")


def _tape(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--tape", type=of(values.size), metavar="SIZE", help=text)


def _detach_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detach-key", type=of(_key), default="^]", metavar="KEY",
        help="what leaves, as ctrl-q or ^Q; `none`: nothing does (default ctrl-])",
    )  # fmt: skip


def _key(text: str) -> Key | None:
    from guestd.ctl.keys import Key

    letter = values.control_key(text)
    return None if letter is None else Key(letter)


def _reconnect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reconnect", type=of(values.seconds), default=60.0, metavar="S",
        help="how long to try to connect again when the connection is lost (default 60; 0: not at all)",
    )  # fmt: skip


def give_up(parser: argparse.ArgumentParser) -> None:
    """For what goes on over one connection after another."""
    parser.add_argument(
        "--give-up", type=of(values.seconds), metavar="S",
        help="after so long without a connection (default: never)",
    )  # fmt: skip


def of(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """A reader of values for argparse, which hides the text of a ValueError."""

    def reader(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader
