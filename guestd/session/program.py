"""What is asked of a program, be it a command or a shell, and how that becomes a plan."""

from __future__ import annotations

import os
import resource
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from guestd.config import capability_numbers
from guestd.process.environment import JOB_ID, MARK, SOCKET, container_environment, job_environment
from guestd.process.identity import pick_shell
from guestd.process.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.config import Settings
    from guestd.process.identity import Identity, Users
    from guestd.session.terms import Terms
    from guestd.session.trace import Trace, Tracer

#: The stream that goes to a job; the others come from it.
INPUT = 0
KILLED_FIRST = "could not start: a kill of this id came before its start, and wins (killed)"
#: Characters of a command that `ps` shows.
_SHOWN = 512
#: By the names that are used in requests and settings.
RLIMITS = {
    name.removeprefix("RLIMIT_").lower(): number
    for name, number in vars(resource).items()
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}


@dataclass(slots=True, kw_only=True)
class ProgramRequest:
    """What a caller asked for, with the defaults filled in. Two requests under one id are the same if these
    are equal.
    """

    argv: list[str] | None
    shell: str | None
    env: dict[str, str]
    cwd: str | None
    user: str | int | None
    group: str | int | None
    groups: list[str | int] | None
    umask: int
    rlimits: dict[str, tuple[int, int]]
    nice: int
    oom_score_adj: int
    tape: int
    terms: Terms
    #: Rides along without being part of what was asked: a retry has a span of its own.
    trace: dict[str, str] = field(default_factory=dict[str, str], compare=False)

    def digest(self) -> bytes:
        """Equal for equal requests, and 32 bytes however large they are."""
        # Not at import: only requests with an id of their own need it.
        from hashlib import blake2b

        fields = {name: value for name, value in asdict(self).items() if name != "trace"}
        return blake2b(
            repr(sorted(fields.items())).encode("utf-8", "surrogateescape"), digest_size=32
        ).digest()


class Programs:
    """Makes plans of requests."""

    def __init__(
        self, settings: Settings, users: Users, own: Identity, environment: Mapping[bytes, bytes]
    ) -> None:
        self.settings = settings
        self._users = users
        self._own = own
        self._container = container_environment(environment)
        #: Where telemetry is on.
        self.tracer: Tracer | None = None
        self._session = settings.env
        if settings.relay:
            # Late: few have any.
            from guestd.relay.plan import environment_of

            self._session = {**environment_of(settings.relay), **settings.env}
        self._drop = list(capability_numbers(settings.command.drop_capabilities))

    def trace(self, request: ProgramRequest, mark: str) -> tuple[Trace | None, dict[str, str]]:
        """The trace it belongs to, and what the program is told of it: its own span, without telemetry the caller's."""
        if self.tracer is None:
            return None, request.trace
        trace = self.tracer.trace(request.trace, request.env)
        return trace, trace.variables(mark)

    def shown_env(self, env: Mapping[bytes, bytes]) -> dict[str, str]:
        """Of an environment, what may be told."""
        names = self.settings.telemetry.environment
        return {
            name: os.fsdecode(env[os.fsencode(name)])[:_SHOWN] for name in names if os.fsencode(name) in env
        }

    def identity(self, request: ProgramRequest) -> Identity:
        """Whom it runs as. Raises StartFailed."""
        user = request.user if request.user is not None else self._users.default_user(self.settings.user)
        return self._users.resolve(user, request.group, request.groups, self._own)

    def user(self, name: str) -> Identity:
        """A user by name or number; the empty name is whoever a request runs as that names none. Raises StartFailed."""
        user = name or self._users.default_user(self.settings.user)
        return self._users.resolve(user, None, None, self._own)

    def plan(
        self, request: ProgramRequest, identity: Identity, job_id: str, mark: str, trace: Mapping[str, str]
    ) -> Plan:
        """As which program, with what environment, in which directory; the descriptors are the caller's to add."""
        settings = self.settings
        shell = pick_shell(settings.shell, identity)
        extra = {**trace, JOB_ID: job_id, MARK: mark}
        if settings.agent.socket:
            extra[SOCKET] = f"unix:{settings.runtime_dir}/agent.sock"
        env = job_environment(self._container, self._session, request.env, identity, shell, extra)
        argv = request.argv if request.argv is not None else [shell, "-c", request.shell or ""]
        return Plan(
            program=argv[0],
            argv=[os.fsencode(word) for word in argv],
            env=env,
            cwd=[request.cwd] if request.cwd is not None else [settings.workspace, identity.home, "/"],
            identity=identity,
            fds={},
            umask=request.umask,
            rlimits=[(RLIMITS[name], limits) for name, limits in sorted(request.rlimits.items())],
            nice=request.nice,
            oom_score_adj=request.oom_score_adj,
            no_new_privs=settings.command.no_new_privs,
            drop_capabilities=self._drop,
        )


def shown(request: ProgramRequest) -> str | list[str]:
    """The beginning of what was asked: for people, in a list of jobs that may be long and stay for a while."""
    if request.argv is None:
        return (request.shell or "")[:_SHOWN]
    words: list[str] = []
    room = _SHOWN
    for word in request.argv:
        words.append(word[:room])
        room -= len(word)
        if room <= 0:
            break
    return words
