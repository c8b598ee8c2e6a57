"""shell, and exec with a terminal: what is asked for, and who may sit at it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, cast

import trio

from guestd.client import Request, ShellOptions, ShellRequest, new_client, to_shell
from guestd.client.shells import shell_fields
from guestd.ctl.parser import default_address
from guestd.ctl.sitting import ENDING, Sitting, tell
from guestd.ctl.terminal import LocalTerminal, is_terminal, window_size
from guestd.errors import BadRequest

if TYPE_CHECKING:
    import argparse

#: Options of the command line that are fields of the request, by the same name.
_FIELDS = ("cwd", "user", "group", "umask", "nice", "grace", "tape", "shell")
_TERM_MAX = 128


def shell(options: argparse.Namespace) -> int:
    """Sit at a shell: open it, or come back to it."""
    if not is_terminal():
        raise BadRequest(
            "shell needs a terminal on stdin and stdout; `guestctl exec` runs a command without one, and"
            " `guestctl attach ID` shows the output of a shell",
        )
    role = "watcher" if options.read_only else "writer" if options.join else "owner"
    if role == "owner":
        fields = asked(options)
        if options.no_login:
            fields["login"] = False
        request = to_shell(options.id, options.argv, fields, "end" if options.no_replay else "restore")
    else:
        request = ShellRequest(
            options.id,
            new_client(),
            role=role,
            size=window_size(),
            start="end" if options.no_replay else "restore",
        )
    flags = "".join(
        f"--{name.replace('_', '-')} " for name in ("read_only", "join") if getattr(options, name)
    )
    return _sit(options, request, f"shell {flags}{request.id}")


def exec_on_terminal(options: argparse.Namespace) -> int:
    """`exec -it`: the same, for one command."""
    if not is_terminal():
        raise BadRequest(
            "-t with -i needs a terminal on stdin and stdout; leave out -t where there is none, or -i when nothing is"
            " to be typed",
        )
    fields = asked(options)
    if options.no_hold:
        fields["hold"] = False
    return _sit(options, to_shell(options.id, options.argv, fields), None)


def to_watch(options: argparse.Namespace) -> Request:
    """`exec -t`: a command on a terminal at which nobody sits; its output goes where ours goes."""
    fields = shell_fields(options.id or "s-" + os.urandom(5).hex(), options.argv, asked(options))
    held = {"role": "watcher", "hold": not options.no_hold, "from": "start"}
    return Request(str(fields["id"]), {**fields, **held}, hold=not options.no_hold)


def asked(options: argparse.Namespace) -> ShellOptions:
    """What the command line and this terminal ask for; what they leave out the guest decides."""
    fields: dict[str, Any] = {
        name: value for name in _FIELDS if (value := getattr(options, name, None)) is not None
    }
    if options.env:
        fields["env"] = dict(options.env)
    if getattr(options, "rlimit", None):
        fields["rlimits"] = dict(options.rlimit)
    for name in ("kill_on_disconnect", "without_mounts"):
        if getattr(options, name, False):
            fields[name] = True
    for name in ("term", "colorterm", "traceparent", "tracestate"):
        value = os.environ.get(name.upper())
        if value and len(value) <= _TERM_MAX:
            fields[name] = value
    fields["size"] = window_size()
    return cast("ShellOptions", fields)


def _sit(options: argparse.Namespace, request: ShellRequest, again: str | None) -> int:
    to = "" if options.to == default_address() else f"--to {options.to} "
    sitting = Sitting(
        options,
        request,
        LocalTerminal(),
        f"guestctl {to}{again or f'shell {request.id}'}",
        quiet=again is None,
    )
    for number in ENDING:
        # Those that come while we are on our way out are late; they must not keep the terminal from being put right.
        signal.signal(number, signal.SIG_IGN)
    try:
        return trio.run(sitting.run)
    finally:
        if sitting.farewell is not None:
            tell(sitting.farewell)
