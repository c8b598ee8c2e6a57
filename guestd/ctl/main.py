"""The entry of guestctl: read the command line, run one command, turn failures into a text and a status.

Only what the command needs is imported, and only when it is known: `guestctl version` never sees Trio.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, cast

from guestd import __version__
from guestd.errors import GuestdError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

#: Where each command lives: a function from the options to the exit status.
_COMMANDS = {
    "shell": "guestd.ctl.shell:shell",
    "exec": "guestd.ctl.session:exec_",
    "attach": "guestd.ctl.session:attach",
    "ps": "guestd.ctl.queries:ps",
    "kill": "guestd.ctl.queries:kill",
    "wait": "guestd.ctl.queries:wait",
    "record": "guestd.ctl.record:record",
    "cp": "guestd.ctl.cp:cp",
    "watch": "guestd.ctl.watch:watch",
    "status": "guestd.ctl.queries:status",
    "busy": "guestd.ctl.lifecycle:busy",
    "events": "guestd.ctl.lifecycle:events",
    "timers": "guestd.ctl.lifecycle:timers",
    "stop": "guestd.ctl.lifecycle:stop",
    "resume": "guestd.ctl.lifecycle:resume",
    "mount": "guestd.ctl.mounts:mount",
    "unmount": "guestd.ctl.mounts:unmount",
    "mounts": "guestd.ctl.mounts:mounts",
    "upgrade": "guestd.ctl.upgrade:upgrade",
    "forward": "guestd.ctl.forward:forward",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Be guestctl. Returns its exit status."""
    from guestd.ctl.parser import parse

    for stream in (sys.stdout, sys.stderr):
        # Names from the system may hold bytes that are no text; showing them must not be what fails.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
        return status
    except GuestdError as error:
        from guestd.ctl.failures import report

        return report(error, json=options.json)
    except BrokenPipeError:
        # Whoever read our output has gone. End as other tools do, and let the interpreter not try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(options: argparse.Namespace) -> int:
    if options.command == "version":
        print(f'{{"version": "{__version__}"}}' if options.json else f"guestctl {__version__}")
        return 0
    module, _, name = _COMMANDS[options.command].partition(":")
    command = cast("Callable[[argparse.Namespace], int]", getattr(import_module(module), name))
    return command(options)
