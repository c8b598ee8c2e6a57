"""The Python library: reach a guest, run commands in it, and come back to them after any network drop.

    async with guestd.client.connect("vsock:3:1024") as client:
        done = await client.run(["uname", "-a"])
        print(done.status, done.stdout)

Failures are the errors of `guestd.errors`: what the guest refused (NotFound, Conflict, LimitReached, …), and
`Unavailable` (nobody answers) and `ConnectionLost` (the connection ended; what was started goes on in the guest).
"""

from __future__ import annotations

from guestd.client.client import CAPTURE_LIMIT, Client, connect, over
from guestd.client.inbox import Gap, Output
from guestd.client.jobs import Completed, Event, ExecOptions, Job
from guestd.client.resume import Backoff, Followed, Notice, Request, follow, to_exec

__all__ = [
    "CAPTURE_LIMIT",
    "Backoff",
    "Client",
    "Completed",
    "Event",
    "ExecOptions",
    "Followed",
    "Gap",
    "Job",
    "Notice",
    "Output",
    "Request",
    "connect",
    "follow",
    "over",
    "to_exec",
]
