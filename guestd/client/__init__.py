"""The Python library: reach a guest, run commands and shells in it, and come back to them after any network drop.

    async with guestd.client.connect("vsock:3:1024") as client:
        done = await client.run(["uname", "-a"])
        print(done.status, done.stdout)

Failures are the errors of `guestd.errors`: what the guest refused (NotFound, Conflict, LimitReached, …), and
`Unavailable` (nobody answers) and `ConnectionLost` (the connection ended; what was started goes on in the guest).
"""

from __future__ import annotations

from guestd.client.attachment import Attachment
from guestd.client.backoff import Backoff, Notice
from guestd.client.client import CAPTURE_LIMIT, Client, connect, over
from guestd.client.forward import ForwardedStream
from guestd.client.inbox import Began, Gap, InputState, Item, Output, Resized, Restore, Role
from guestd.client.jobs import Completed, Event, ExecOptions, Job
from guestd.client.resume import Followed, Request, follow, to_exec
from guestd.client.shells import Shell, ShellOptions, TerminalSize
from guestd.client.stay import ShellRequest, Stayed, new_client, stay, to_shell

__all__ = [
    "CAPTURE_LIMIT",
    "Attachment",
    "Backoff",
    "Began",
    "Client",
    "Completed",
    "Event",
    "ExecOptions",
    "Followed",
    "ForwardedStream",
    "Gap",
    "InputState",
    "Item",
    "Job",
    "Notice",
    "Output",
    "Request",
    "Resized",
    "Restore",
    "Role",
    "Shell",
    "ShellOptions",
    "ShellRequest",
    "Stayed",
    "TerminalSize",
    "connect",
    "follow",
    "new_client",
    "over",
    "stay",
    "to_exec",
    "to_shell",
]
