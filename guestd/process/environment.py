"""The environment of a job: the container's, then the user's own facts, then the session's, then the
request's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.process.program import DEFAULT_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.process.identity import Identity

#: Between the supervisor and whoever started it: never a job's business.
_PRIVATE = frozenset({
    "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE", "WATCHDOG_USEC", "WATCHDOG_PID",
    "INVOCATION_ID", "JOURNAL_STREAM", "MAINPID", "CREDENTIALS_DIRECTORY",
    # Of the shell that guestd was started from, if it was: they would be wrong where a job is.
    "PWD", "OLDPWD", "SHLVL", "_",
})  # fmt: skip
#: guestd's own; and where guestd's telemetry goes, with the collector's credentials. A job's exporter goes through a
#: relay: what it needs for that is set in `env`.
_PRIVATE_PREFIXES = ("GUESTD_", "OTEL_EXPORTER_OTLP_")
#: What marks every process of a job, however often it forked: how a tree is found where there is no cgroup.
MARK = "GUESTD_JOB_KEY"
JOB_ID = "GUESTD_JOB_ID"
#: Where its processes reach guestd, to keep the session awake.
SOCKET = "GUESTD_JOB_SOCKET"


def container_environment(own: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The environment guestd was started with, less what was meant for guestd itself."""
    private = {name.encode() for name in _PRIVATE}
    prefixes = tuple(prefix.encode() for prefix in _PRIVATE_PREFIXES)
    return {
        name: value for name, value in own.items() if name not in private and not name.startswith(prefixes)
    }


def job_environment(
    container: Mapping[bytes, bytes],
    session: Mapping[str, str],
    request: Mapping[str, str],
    identity: Identity,
    shell: str,
    extra: Mapping[str, str],
) -> dict[bytes, bytes]:
    """The layers put together. PATH is the container's unless somebody after it says otherwise."""
    env = dict(container)
    env.setdefault(b"PATH", DEFAULT_PATH.encode())
    layers: tuple[Mapping[str, str], ...] = (
        {"HOME": identity.home, "USER": identity.name, "LOGNAME": identity.name, "SHELL": shell},
        session,
        request,
        extra,
    )
    for layer in layers:
        for name, value in layer.items():
            env[name.encode("utf-8", "surrogateescape")] = value.encode("utf-8", "surrogateescape")
    return env
