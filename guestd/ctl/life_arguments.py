"""The arguments of the commands about the session as a whole, and what their help says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.ctl import values
from guestd.ctl.arguments import give_up, of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Command = Callable[[str, str, str], argparse.ArgumentParser]

BUSY = """\
Keep the session awake, so that it does not stop for idleness.

  guestctl busy                                 until Ctrl+C
  guestctl busy --for 10m                       for so long, and return at once
  guestctl busy -- rsync -a data/ there:        while this runs, here; ends with its status

Inside the guest any user may do it. A session still ends when its lifetime is over; `guestctl status` says
when, `guestctl timers` changes it."""

EVENTS = """\
What has happened to the session: starts, ends to come, stops, resumes, and how its workload does.

  guestctl events                               what is kept
  guestctl events -f                            and what comes, until the session stops; over lost connections too
  guestctl events --audit                       each thing that was done: who, what, when, with which result
  guestctl events --verify                      does the chain of these records hold? ends with 1 if not
  guestctl events --verify audit.jsonl          the same of a copy, without a guest

Who has kept a head (`guestctl status`, or the end of --verify) gives it with --head N:HASH: then an end that is missing
is seen wherever the file has been."""

TIMERS = """\
When the session ends by itself. Without options: as it is; with them: as it is to be from now on.

  guestctl timers --idle 1h                     an hour without any use
  guestctl timers --lifetime 0                  never for its age"""

STOP = """\
End the session in order: the workload, commands and shells, hooks, disks. Prints what was ended and what is safely on
its disk. Within --grace all of that is over, whatever hangs; asked for again with less, it hurries."""

RESUME = """\
Tell the guest that its machine was paused, or made of a snapshot. It gets this machine's time and fresh random bytes, a
new session id, and drops connections that lead nowhere; its jobs go on. Prints what was mended."""

UPGRADE = """\
Replace guestd by the version that is installed in the guest now. Shells, commands and their output go on; connections
come back by themselves. A version that cannot use the settings does not get to run.

  guestctl upgrade                              the version that is installed where this one is
  guestctl upgrade -- /opt/guestd-2/bin/guestd  another; where it does not start, this one comes back"""


def add(command: Command) -> None:
    """All of them."""
    busy = command("busy", BUSY, "guestctl busy [--for 10m] [--by NAME] [-- COMMAND ARGUMENTS…]")
    busy.add_argument(
        "--for", dest="seconds", type=of(values.seconds), metavar="S", help="for so long, and return at once"
    )
    busy.add_argument("--by", metavar="NAME", help="who it is for, as `status` shows it")
    events = command(
        "events", EVENTS, "guestctl events [--audit] [-f] [--last N] | --verify [FILE] [--head N:HASH]"
    )
    events.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    events.add_argument("--last", type=of(values.count), metavar="N", help="only the newest so many")
    events.add_argument("--audit", action="store_true", help="the records of the audit log")
    events.add_argument(
        "--verify", nargs="?", const="", metavar="FILE", help="check the audit log: the guest's, or that file"
    )
    events.add_argument("--head", metavar="N:HASH", help="a record that must be in it")
    give_up(events)
    timers = command("timers", TIMERS, "guestctl timers [--idle S] [--lifetime S]")
    timers.add_argument("--idle", type=of(values.seconds), metavar="S", help="unused for so long; 0: never")
    timers.add_argument(
        "--lifetime", type=of(values.seconds), metavar="S", help="so old, whatever goes on; 0: never"
    )
    stop = command("stop", STOP, "guestctl stop [--grace S] [--reboot]")
    stop.add_argument(
        "--grace", type=of(values.seconds), metavar="S", help="what all of it may take (default: stop.grace)"
    )
    stop.add_argument(
        "--reboot", action="store_true", help="start the machine again, where guestd is its init"
    )
    command("upgrade", UPGRADE, "guestctl upgrade [-- PROGRAM ARGUMENTS…]")
    resume = command("resume", RESUME, "guestctl resume [--no-clock]")
    resume.add_argument("--no-clock", action="store_true", help="leave the guest's clock as it is")
