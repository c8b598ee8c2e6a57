"""A shell: one program on a terminal of its own, for people, and for programs that draw."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from guestd.errors import Conflict, StartFailed
from guestd.process.identity import login_shell
from guestd.process.login import starting
from guestd.process.terminal import Pty, open_pty, open_slave
from guestd.session.chronicle import LOOKED_TO
from guestd.session.job import Job
from guestd.session.keyboard import Keyboard
from guestd.session.program import KILLED_FIRST, ProgramRequest, shown
from guestd.session.recording import NO_FD
from guestd.session.screen import Screen
from guestd.session.shellpage import facts_of, identity_of, recall, request_of
from guestd.session.terminal import Terminal
from guestd.session.terminal_recording import TerminalRecording
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guestd.process.identity import Identity
    from guestd.process.plan import Plan
    from guestd.process.terminal import Size
    from guestd.session.memory import TapeMemory
    from guestd.session.program import Programs
    from guestd.session.terms import Surroundings

_STANDARD = (0, 1, 2)


@dataclass(slots=True, kw_only=True)
class ShellRequest(ProgramRequest):
    """See `ProgramRequest`. With neither `argv` nor `shell` it is the user's own shell."""

    login: bool
    integration: bool
    term: str
    colorterm: str | None
    size: Size
    idle_timeout: float | None
    lifetime: float | None
    #: Which fields the caller has given, of those that the same id may not be asked for differently.
    given: tuple[str, ...]


class ShellJob(Job):
    """A job with a terminal."""

    terminal: Terminal | None = None
    #: What was asked for when it was started.
    request: ShellRequest
    identity: Identity | None = None

    def check_same(self, job_id: str, request: ShellRequest) -> None:
        """Conflict, when somebody says something under the id that is not so."""
        for name in request.given:
            if not self._is(name, getattr(request, name)):
                raise Conflict(
                    f"shell {job_id!r} runs, and was started with another `{name}`; leave it out to attach, or choose"
                    " another id",
                    id=job_id, field=name,
                )  # fmt: skip

    def _is(self, name: str, value: object) -> bool:
        if name == "user" and self.identity is not None and value in {self.identity.name, self.identity.uid}:
            return True
        return bool(getattr(self.request, name) == value)


class Shell:
    """Makes shells of requests."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def begin(
        self,
        job_id: str,
        mark: str,
        request: ShellRequest,
        around: Surroundings,
        *,
        killed: bool = False,
    ) -> ShellJob:
        """A shell for the request, already on its way; or one that could not be started, with that as its result."""
        job = ShellJob(job_id, "shell", mark, request.terms, around)
        job.request = request
        job.about = {"command": shown(request), "user": request.user, "cwd": request.cwd}
        job.trace, trace = self._programs.trace(request, mark)
        if killed:
            job.refuse(StartFailed(KILLED_FIRST, stage="killed"), EndedBy.KILL)
            return job
        try:
            job.identity = identity = self._programs.identity(request)
            plan = self._plan(job, mark, request, identity, trace)
            job.about = {**job.about, "user": identity.name, "command": job.about["command"] or plan.program}
            close_child_fds = self._connect(job, request, identity, plan, around)
        except StartFailed as failure:
            job.refuse(failure)
            return job
        job.facts = partial(facts_of, job)
        job.start(plan, close_child_fds)
        self._write_down(job)
        self._watch(job, around)
        return job

    def furnish_again(
        self, job: ShellJob, entry: Mapping[str, Any], master: int, relay: tuple[int, int] | None,
        memory: TapeMemory | None, around: Surroundings,
    ) -> None:  # fmt: skip
        """Give a shell of another supervisor its terminal back. Its page and its program come after."""
        job.request, job.identity = request_of(entry, job.terms), identity_of(entry)
        pty, keys = Pty(NO_FD, NO_FD), None
        if master != NO_FD:
            pty, keys = Pty(master, open_slave(master)), os.dup(master)
        self._furnish(job, pty, keys, around, memory)
        if job.terminal is not None:
            job.terminal.recording.relay = relay
            recall(job.terminal, entry)

    def go_on(self, job: ShellJob, around: Surroundings) -> None:
        """It goes on: watch what ends it."""
        self._write_down(job)
        self._watch(job, around)

    def _watch(self, job: ShellJob, around: Surroundings) -> None:
        request = job.request
        if request.lifetime:
            _watch_lifetime(ref(job), request.lifetime, around)
        if request.idle_timeout:
            _watch_idleness(ref(job), request.idle_timeout, around)

    def _write_down(self, job: ShellJob) -> None:
        page, terminal = job.page, job.terminal
        if page is None or terminal is None:
            return
        terminal.changed = page.write
        terminal.looked_to = partial(page.set_number, LOOKED_TO)
        terminal.command_ended.append(page.write)
        if terminal.keyboard is not None:
            terminal.keyboard.record = page

    def _plan(
        self, job: ShellJob, mark: str, request: ShellRequest, identity: Identity, trace: Mapping[str, str]
    ) -> Plan:
        plan = self._programs.plan(request, identity, job.id, mark, trace)
        job.shown_env = self._programs.shown_env(plan.env)
        plan.terminal = True
        plan.env[b"TERM"] = os.fsencode(request.term)
        if request.colorterm:
            plan.env[b"COLORTERM"] = os.fsencode(request.colorterm)
        else:
            plan.env.pop(b"COLORTERM", None)
        if not any(plan.env.get(name) for name in (b"LC_ALL", b"LC_CTYPE", b"LANG")):
            # Else a container's programs would take every terminal for one of fifty years ago.
            plan.env[b"LANG"] = b"C.UTF-8"
        # They are the terminal's to tell, which changes; these would not.
        for name in (b"COLUMNS", b"LINES"):
            plan.env.pop(name, None)
        if request.argv is None and request.shell is None:
            shell = login_shell(self._programs.settings.shell, identity)
            plan.env[b"SHELL"] = os.fsencode(shell)
            argv, changes = starting(
                shell, plan.env, login=request.login, integration=request.integration, uid=identity.uid
            )
            plan.program = shell
            plan.argv = [os.fsencode(word) for word in argv]
            plan.env.update(changes)
        return plan

    def _connect(
        self, job: ShellJob, request: ShellRequest, identity: Identity, plan: Plan, around: Surroundings
    ) -> Callable[[], None]:
        """The terminal between the job and its program. Nothing is left for the caller to close."""
        try:
            with ExitStack() as ours:
                pty = open_pty(request.size, identity.uid)
                ours.callback(os.close, pty.master)
                ours.callback(os.close, pty.slave)
                keys = os.dup(pty.master)
                ours.pop_all()
        except OSError as error:
            raise StartFailed(
                f"could not start: no terminal for it: {error.strerror}; the kernel has only so many"
                " (/proc/sys/kernel/pty/max), or /dev/ptmx is missing (terminal)",
                stage="terminal", errno=error.errno,
            ) from None  # fmt: skip
        self._furnish(job, pty, keys, around)
        plan.fds.update(dict.fromkeys(_STANDARD, pty.slave))
        return _nothing

    def _furnish(
        self,
        job: ShellJob,
        pty: Pty,
        keys: int | None,
        around: Surroundings,
        memory: TapeMemory | None = None,
    ) -> None:
        settings, request = self._programs.settings.shells, job.request
        recording = TerminalRecording(
            pty, request.tape, job.viewers, job.stream_changed, patience=settings.hold, memory=memory
        )
        terminal = Terminal(recording, request.size, clock=around.clock, timers=around.timers)
        if keys is not None:
            terminal.keyboard = job.input = Keyboard(keys, terminal.input_blocked)
        terminal.screen = Screen(
            recording, request.size, settings.history,
            lambda function: around.start_soon(job, function),
        )  # fmt: skip
        job.recordings.append(recording)
        job.viewers.update({terminal: None, terminal.screen: None})
        job.terminal = terminal


def _watch_lifetime(job: ref[ShellJob], limit: float, around: Surroundings) -> None:
    """End it after so long. The timer does not keep a shell that has been forgotten since."""

    def look() -> None:
        found = job()
        if found is not None:
            found.end(EndedBy.LIFETIME)

    found = job()
    begun = None if found is None else found.started
    spent = 0.0 if begun is None else around.clock()[1] - begun[1]
    around.timers.after(max(0.0, limit - spent), look)


def _watch_idleness(job: ref[ShellJob], limit: float, around: Surroundings) -> None:
    """End it when nobody is attached, nothing was typed and nothing shown for so long."""

    def look() -> None:
        found = job()
        if found is None or found.result is not None or found.terminal is None:
            return
        terminal = found.terminal
        if terminal.seats:
            terminal.last_activity = around.clock()[1]
        left = terminal.last_activity + limit - around.clock()[1]
        if left <= 0:
            found.end(EndedBy.IDLE)
        else:
            around.timers.after(left, look)

    around.timers.after(limit, look)


def _nothing() -> None:
    pass
