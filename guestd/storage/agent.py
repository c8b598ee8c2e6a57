"""The file process: does what is asked about files as one user, one request after another.

    python -I -S -c "…; main()"        descriptor 3: the line to the supervisor

It begins as whoever the supervisor is, so that it can read its own program wherever that lies; then it becomes the
user, for good, before it looks at any path. It executes nothing afterwards and is no longer dumpable: no process of
that user reads its memory or drives it. A file system that does not answer holds up this process alone.

It ends when the supervisor closes the line, or has gone. Standard library only.
"""

from __future__ import annotations

import os
import resource
import sys

import guestd
from guestd.storage import file_contents, file_names, file_trees
from guestd.storage.file_line import REJECT, Gone, Line, Refused, read_message, refusal
from guestd.storage.file_places import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LINE_FD = 3
_OPERATIONS: dict[str, Callable[[Line, Places, dict[str, Any]], None]] = {
    "stat": file_names.stat_,
    "list": file_names.list_,
    "make": file_names.make,
    "remove": file_names.remove,
    "move": file_names.move,
    "read": file_contents.read,
    "write": file_contents.write,
    "discard": file_contents.discard,
    "hash": file_contents.hash_,
    "pack": file_trees.pack,
    "unpack": file_trees.unpack,
}


def main() -> None:
    """Serve one line until its end."""
    line = Line(LINE_FD)
    try:
        _, first = line.receive()
    except Gone:
        return  # nobody came to ask for anything
    user = read_message(first)
    refused = _another_version(user["version"])
    if user["watches"] and refused is None:
        # While its package can still be read.
        from guestd.storage.file_watching import watch

        _OPERATIONS["watch"] = watch
    refused = refused or _become(user)
    umask = os.umask(0o022)
    os.umask(umask)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    while (ask := line.next_request()) is not None:
        ask["umask"] = umask
        try:
            if refused is not None:
                raise refused
            _serve(line, ask)
        except Refused as error:
            _say_refused(line, error)
        except Gone:
            return


def _say_refused(line: Line, error: Refused) -> None:
    try:
        line.say(REJECT, {**error.details, "code": error.code, "message": error.message})
    except Gone:
        sys.exit(0)


def _serve(line: Line, ask: dict[str, Any]) -> None:
    try:
        places = Places(ask)
        try:
            _OPERATIONS[ask["op"]](line, places, ask)
        finally:
            places.close()
    except OSError as error:
        raise refusal(error, ask["path"]) from None


def _another_version(asking: str) -> Refused | None:
    """This is the program on the disk; what asks may be older, and mean something else."""
    if asking == guestd.__version__:
        return None
    return Refused(
        "unsupported",
        f"guestd {guestd.__version__} was installed while {asking} runs: `guestctl upgrade` takes it up",
    )


def _become(user: dict[str, Any]) -> Refused | None:
    if not user["change"]:
        return None
    try:
        os.setgroups(user["groups"])
        os.setresgid(user["gid"], user["gid"], user["gid"])
        os.setresuid(user["uid"], user["uid"], user["uid"])
    except OSError as error:
        return Refused(
            "file", f"guestd may not act as user {user['name']!r} (uid {user['uid']}): {error.strerror}; ask as the"
            " user that guestd runs as, or run it as root", errno=error.errno,
        )  # fmt: skip
    return None
