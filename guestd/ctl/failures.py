"""What guestctl says when something fails: what is wrong, and what to do next."""

from __future__ import annotations

import json as json_text
import sys
from typing import TYPE_CHECKING, Any

from guestd import errors
from guestd.wire.result import Outcome

if TYPE_CHECKING:
    from guestd.wire.result import Result

_NEXT: tuple[tuple[type[errors.GuestdError], str], ...] = (
    (errors.Unavailable, "--to ADDR or $GUESTD_TO says where guestd listens"),
    (errors.Unauthorized, "give its token with --token-file FILE or $GUESTD_TOKEN_FILE"),
    (errors.Forbidden, "connect as the user guestd runs as, or from where it allows"),
    (errors.NotFound, "`guestctl ps` shows the jobs there are"),
    (errors.Conflict, "choose another --id, or `guestctl attach ID` to the job that has it"),
    (errors.VersionMismatch, "install the guestctl that belongs to the guest's guestd"),
    (errors.ProtocolViolation, "is that guestd, and is the address right?"),
    (errors.ConnectionLost, "`guestctl ps` shows what is still running"),
    (errors.ShuttingDown, "start it again when the guest is back"),
    (errors.InternalError, "guestd's own log says more"),
)


def say(text: str) -> None:
    """One line to the person, on stderr."""
    sys.stderr.write(f"guestctl: {printable(text)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Text of the guest's, without what would drive the terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def report(error: errors.GuestdError, *, json: bool) -> int:
    """Say what failed; return the exit status."""
    if json:
        print(json_text.dumps({"event": "error", **error.to_map()}, default=str))
        sys.stdout.flush()
    hint = next((text for kind, text in _NEXT if isinstance(error, kind)), "")
    if "path" in error.details:
        hint = ""  # those are about jobs
    if isinstance(error, errors.Conflict) and ("id" not in error.details or "another id" in error.message):
        hint = ""  # of files, mounts and upgrades, whose messages say what to do
    if hint and hint.split(" ", 1)[0].strip("`") in error.message:
        hint = ""
    say(f"{error.message}{'; ' if hint else ''}{hint}")
    return error.exit_status


def explain(result: Result) -> str | None:
    """A line about an end that the status alone does not explain; None for the usual ones."""
    match result.outcome:
        case Outcome.NOT_STARTED:
            found: dict[str, Any] = result.to_map()
            message = result.message or "no reason was given"
            if not message.startswith("could not start"):
                message = f"could not start: {message}"
            where = ", ".join(str(each) for each in (result.stage, found.get("errno_name")) if each)
            text = message if not where or message.endswith(f"({where})") else f"{message} ({where})"
        case Outcome.TIMED_OUT:
            count = int(result.killed.get("count", 0))
            text = "timed out" + (f"; {count} processes were ended" if count > 1 else "")
        case Outcome.OOM_KILLED:
            text = "ended by the kernel, which had no memory left for it"
        case Outcome.UNKNOWN:
            text = f"how it ended is not known: {result.message or 'no reason was given'}"
        case _ if result.ended_by is not None:
            text = f"ended by {result.ended_by.value}"
        case _:
            text = ""
    unreached = int(result.unreached.get("count", 0))
    if unreached:
        names = ", ".join(
            f"{each.get('name')} ({each.get('pid')})" for each in result.unreached.get("processes", ())
        )
        text = f"{text}; " if text else ""
        text += f"{unreached} processes could not be ended: {names}"
    return text or None
