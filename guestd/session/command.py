"""A command: one program, run once, with stdout and stderr apart. What was asked, and how it becomes a plan."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from guestd.config import capability_numbers
from guestd.errors import BadRequest, StartFailed
from guestd.process.environment import JOB_ID, MARK, container_environment, job_environment
from guestd.process.identity import pick_shell
from guestd.process.plan import Plan
from guestd.session.input import Input
from guestd.session.job import Job
from guestd.session.recording import Recording
from guestd.session.spool import Spool
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.config import Settings
    from guestd.process.identity import Identity, Users
    from guestd.session.terms import Surroundings, Terms

INPUT, STDOUT, STDERR = 0, 1, 2
STREAM_NAMES = {INPUT: "stdin", STDOUT: "stdout", STDERR: "stderr"}

_KILLED_FIRST = "could not start: a kill of this id came before its start, and wins (killed)"
#: Characters of a command that `ps` shows.
_SHOWN = 512
_RLIMITS = {
    name.removeprefix("RLIMIT_").lower(): number
    for name, number in vars(resource).items()
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}


@dataclass(slots=True, kw_only=True)
class CommandRequest:
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
    stdin: str
    umask: int
    rlimits: dict[str, tuple[int, int]]
    nice: int
    oom_score_adj: int
    tape: int
    spool: bool
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


class Command:
    """Makes jobs of requests."""

    def __init__(
        self, settings: Settings, users: Users, own: Identity, environment: Mapping[bytes, bytes]
    ) -> None:
        self._settings = settings
        self._users = users
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._own = own
        self._container = container_environment(environment)
        self._drop = list(capability_numbers(settings.command.drop_capabilities))

    def close(self) -> None:
        os.close(self._null)

    def begin(
        self,
        job_id: str,
        mark: str,
        request: CommandRequest,
        around: Surroundings,
        *,
        killed: bool = False,
    ) -> Job:
        """A job for the request, already on its way. What cannot be started is a job too, with that as its
        result.
        """
        job = Job(job_id, "command", mark, request.terms, around)
        job.about = {
            "command": _shown(request),
            "user": request.user,
            "cwd": request.cwd,
        }
        if killed:
            job.refuse(StartFailed(_KILLED_FIRST, stage="killed"), EndedBy.KILL)
            return job
        try:
            plan = self._plan(job, request)
        except StartFailed as failure:
            job.refuse(failure)
            return job
        job.about = {**job.about, "user": plan.identity.name, "cwd": request.cwd}
        try:
            close_child_fds = self._connect(job, request, plan)
        except OSError as error:
            job.refuse(
                StartFailed(
                    f"could not start: no pipes for it: {error.strerror}", stage="fork", errno=error.errno
                )
            )
            return job

        job.start(plan, close_child_fds)
        return job

    def _plan(self, job: Job, request: CommandRequest) -> Plan:
        settings = self._settings
        user = request.user if request.user is not None else self._users.default_user(settings.user)
        identity = self._users.resolve(user, request.group, request.groups, self._own)
        shell = pick_shell(settings.shell, identity)
        extra = {**request.trace, JOB_ID: job.id, MARK: job.mark}
        env = job_environment(self._container, settings.env, request.env, identity, shell, extra)
        argv = request.argv if request.argv is not None else [shell, "-c", request.shell or ""]
        return Plan(
            program=argv[0],
            argv=[os.fsencode(word) for word in argv],
            env=env,
            cwd=[request.cwd] if request.cwd is not None else [settings.workspace, identity.home, "/"],
            identity=identity,
            fds={},
            umask=request.umask,
            rlimits=[(_RLIMITS[name], limits) for name, limits in sorted(request.rlimits.items())],
            nice=request.nice,
            oom_score_adj=request.oom_score_adj,
            no_new_privs=settings.command.no_new_privs,
            drop_capabilities=self._drop,
        )

    def _connect(self, job: Job, request: CommandRequest, plan: Plan) -> Callable[[], None]:
        """The pipes between the job and its program. Returns what closes the program's ends on this side."""
        with ExitStack() as ours, ExitStack() as theirs:
            if request.stdin == "stream":
                read, write = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, read)
                job.input = Input(write)
                ours.callback(job.input.close)
                plan.fds[INPUT] = read
            elif request.stdin == "closed":
                plan.fds[INPUT] = None
            else:
                plan.fds[INPUT] = self._null
            for stream in (STDOUT, STDERR):
                read, write = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, write)
                plan.fds[stream] = write
                spool = self._spool() if request.spool else None
                recording = Recording(
                    stream,
                    STREAM_NAMES[stream],
                    read,
                    request.tape,
                    job.viewers,
                    job.stream_changed,
                    spool,
                )
                ours.callback(recording.close)
                job.recordings.append(recording)
            ours.pop_all()
            return theirs.pop_all().close

    def _spool(self) -> Spool:
        return Spool(self._settings.spool_dir, self._settings.command.spool_limit)


def _shown(request: CommandRequest) -> str | list[str]:
    """The beginning of what was asked: for people, in a list of jobs that may be long and stay for a while."""
    if request.argv is None:
        return (request.shell or "")[:_SHOWN]
    shown: list[str] = []
    room = _SHOWN
    for word in request.argv:
        shown.append(word[:room])
        room -= len(word)
        if room <= 0:
            break
    return shown


def read_rlimits(asked: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """`{"nofile": 1024, "core": [0, "unlimited"]}` as numbers; BadRequest names what is wrong."""
    found: dict[str, tuple[int, int]] = {}
    for name, value in asked.items():
        plain = name.lower().removeprefix("rlimit_")
        if plain not in _RLIMITS:
            raise BadRequest(
                f"there is no resource limit {name!r}; known are: {', '.join(sorted(_RLIMITS))}",
                field="rlimits", expected="names of resource limits",
            )  # fmt: skip
        pair = cast("list[object]", value if isinstance(value, (list, tuple)) else [value, value])
        numbers = [_limit(name, each) for each in pair]
        if len(numbers) != 2 or _is_above(numbers[0], numbers[1]):
            raise BadRequest(
                f"rlimits.{name}: {value!r} is not a soft limit and a hard limit not below it",
                field=f"rlimits.{name}", expected="a number, or [soft, hard]",
            )  # fmt: skip
        found[plain] = (numbers[0], numbers[1])
    return found


def _limit(name: str, value: object) -> int:
    if value == "unlimited":
        return resource.RLIM_INFINITY
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise BadRequest(
        f"rlimits.{name}: {value!r} is neither a number nor `unlimited`",
        field=f"rlimits.{name}", expected="a number, `unlimited`, or [soft, hard] of those",
    )  # fmt: skip


def _is_above(soft: int, hard: int) -> bool:
    if hard == resource.RLIM_INFINITY:
        return False
    return soft == resource.RLIM_INFINITY or soft > hard
