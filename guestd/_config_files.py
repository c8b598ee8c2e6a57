"""Settings of the guest's files: the processes that read, write and watch them."""

from __future__ import annotations

from guestd._config_declare import number, seconds
from guestd._config_section import Section


class Files(Section):
    """Files that clients read, write and watch. Each such request has a process of its own, of the user it names."""

    processes: int = number(
        "Requests about files that are worked on at once; more of them wait.", 16, 1, 1000
    )
    per_connection: int = number("Of these, for one connection.", 8, 1, 1000)
    watchers: int = number("Watches (`guestctl watch`) at once.", 16, 0, 1000)
    watches: int = number("Folders that one of them may watch.", 65536, 1, 10_000_000)
    wait: float = seconds("How long a request waits for its turn.", "30s", "0", "1h")
    warm: float = seconds("How long a process without work is kept for the next request.", "30s", "0", "1h")
    timeout: float = seconds(
        "How long a file system may leave a request without an answer; then it is given up.",
        "60s",
        "100ms",
        "1d",
    )
    keep_partial: float = seconds(
        "How long a part of a file is kept whose connection was lost, for the client to come back.",
        "1h",
        "0",
        "30d",
    )
