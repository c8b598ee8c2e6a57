"""Operations on shells: shell, commands; and attach, where what is attached to is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guestd.errors import BadOffset, BadRequest, NotFound
from guestd.process.terminal import UNKNOWN_SIZE, USUAL_SIZE
from guestd.service.jobview import describe_start
from guestd.service.requests import ID_FIELD_MAX, read_program, read_size, read_start
from guestd.service.shellview import ShellView
from guestd.service.shellview import Terms as ViewTerms
from guestd.session.shell import ShellJob, ShellRequest
from guestd.session.terminal import OWNER, ROLES, WATCHER, WRITER
from guestd.session.terminal_recording import TERMINAL_NAME
from guestd.session.terms import Terms
from guestd.tape import LEAST_CAPACITY
from guestd.wire.messages import Fields, pack

if TYPE_CHECKING:
    from guestd.config import Settings
    from guestd.service.channel import Channel
    from guestd.service.connection import Connection
    from guestd.service.requests import Start
    from guestd.service.session import Session

_SIGHUP = 1
_TERM = "xterm-256color"
_NAME_MAX = 128
#: Of one answer, in bytes: half of what any peer takes in a frame unless it has said less.
_COMMANDS_MAX = 2 * 1024 * 1024
#: What makes another shell of it, when somebody asks for the same id.
_SAME = (
    "argv", "shell", "login", "env", "cwd", "user", "group", "groups", "umask", "rlimits", "nice", "oom_score_adj",
)  # fmt: skip


def shell(session: Session, connection: Connection, channel: Channel, fields: Fields) -> None:
    """Open a shell: the one of that id if it lives, else a new one."""
    request = read_shell(session.settings, fields)
    terms = _read_view(fields, OWNER, "restore")
    job_id = fields.text("id", None, most=ID_FIELD_MAX)
    _check_continues(session, job_id, terms)
    job, created = session.jobs.start_shell(job_id, request)
    channel.subject = job.id
    if fields.flag("detach"):

        def begun() -> None:
            channel.accept(describe_start(job, created=created))
            channel.end({"id": job.id, "detached": True})

        job.start_settled.then(begun)
        return
    ShellView(
        connection,
        channel,
        job,
        terms,
        session.clock()[0],
        created=created,
        kills=request.terms.kill_on_disconnect,
    )


def _check_continues(session: Session, job_id: str | None, terms: ViewTerms) -> None:
    """Whoever has seen bytes of a shell does not mean a new one."""
    at = None if isinstance(terms.start, str) else terms.start.get(TERMINAL_NAME)
    job = session.jobs.get(job_id) if job_id is not None and session.jobs.knows(job_id) else None
    if at and (job is None or (isinstance(job, ShellJob) and job.result is not None)):
        raise BadOffset(
            f"there is no living shell {job_id!r} to continue from offset {at}; `attach` shows one that has ended, and"
            " a new one begins at 0",
            id=job_id,
        )


def attach_shell(
    session: Session, connection: Connection, channel: Channel, fields: Fields, job: ShellJob
) -> None:
    """Show a shell that exists."""
    terms = _read_view(fields, WRITER if fields.flag("input") else WATCHER, "start")
    if fields.has("command"):
        number = fields.integer("command", least=1)
        assert job.terminal is not None
        terms.command = next((each for each in job.terminal.marks.commands if each.n == number), None)
        if terms.command is None:
            raise NotFound(
                f"shell {job.id!r} knows no command {number}; `guestctl ps {job.id} --commands` lists those it knows,"
                " if its shell marks them (shells.integration)",
                id=job.id,
            )
        terms.start = {TERMINAL_NAME: terms.command.start}
    ShellView(connection, channel, job, terms, session.clock()[0], created=False, kills=False)


def commands(session: Session, _: Connection, channel: Channel, fields: Fields) -> None:
    """What was typed at a shell."""
    job = session.jobs.get(fields.text("id", most=ID_FIELD_MAX))
    if not isinstance(job, ShellJob):
        raise BadRequest(
            f"job {job.id!r} is a command; only shells have commands typed into them",
            field="id",
            expected="a shell",
        )
    found: list[dict[str, Any]] = []
    if job.terminal is not None:
        # What a program prints decides how long these are: the newest that fit into one answer.
        room = _COMMANDS_MAX
        for command in reversed(job.terminal.marks.commands):
            told = command.to_map()
            room -= len(pack(told))
            if room < 0:
                break
            found.append(told)
        found.reverse()
    channel.accept({})
    channel.end({"id": job.id, "commands": found})


def read_shell(settings: Settings, fields: Fields) -> ShellRequest:
    """What `shell` asks for."""
    shells = settings.shells
    return ShellRequest(
        **read_program(settings, fields),
        login=fields.flag("login", default=shells.login),
        integration=fields.flag("integration", default=shells.integration),
        term=fields.text("term", _TERM, most=_NAME_MAX),
        colorterm=fields.text("colorterm", None, most=_NAME_MAX),
        size=read_size(Fields(fields.mapping("size")), USUAL_SIZE),
        idle_timeout=fields.seconds("idle_timeout", shells.idle_timeout) or None,
        lifetime=fields.seconds("lifetime", shells.lifetime) or None,
        tape=fields.integer(
            "tape", min(shells.tape, settings.limits.tapes), least=LEAST_CAPACITY, most=settings.limits.tapes
        ),
        terms=Terms(
            timeout=None,
            grace=fields.seconds("grace", shells.grace),
            drain=settings.command.drain,
            retain=fields.seconds("retain", shells.retain),
            scope=None,
            kill_on_disconnect=fields.flag("kill_on_disconnect"),
            first_signal=_SIGHUP,
        ),
        given=tuple(name for name in _SAME if fields.has(name)),
    )


def _read_view(fields: Fields, role: str, start: str) -> ViewTerms:
    role = fields.choice("role", ROLES, role)
    given: dict[str, Start] | str = read_start(fields, (TERMINAL_NAME,), "restore", "start", "end") or start
    size = Fields(fields.mapping("size"))
    return ViewTerms(
        role=role,
        client=fields.text("client", None, most=_NAME_MAX),
        start=given,
        or_restore=fields.flag("or_restore"),
        hold=fields.flag("hold") if fields.has("hold") else None,
        size=read_size(size, UNKNOWN_SIZE),
    )
