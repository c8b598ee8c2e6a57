"""exec and attach: a job in this terminal. Its output out, our input and signals in, its status at the end."""

from __future__ import annotations

import json as json_text
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import trio

from guestd.client import ExecOptions, Output, Request, follow, to_exec
from guestd.client.tasks import background
from guestd.ctl.dialing import dialer
from guestd.ctl.failures import explain, report, say
from guestd.ctl.output import OutputFailed, Printer
from guestd.ctl.parser import default_address
from guestd.ctl.questions import Questions
from guestd.ctl.streams import read_some
from guestd.ctl.values import show_offsets
from guestd.errors import ConnectionLost, GuestdError, NotFound, ShuttingDown, Unavailable
from guestd.wire.result import FAILED_STATUS

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from guestd.client import Event, Followed, Job, Notice

#: Another Ctrl+C within this many seconds means it.
_AGAIN = 2.0
_PIPE_STATUS = 128 + signal.SIGPIPE


def exec_(options: argparse.Namespace) -> int:
    """Run a command and end as it ends."""
    if options.tty:
        from guestd.ctl import shell

        if options.stdin:
            return shell.exec_on_terminal(options)
        request = shell.to_watch(options)
        return trio.run(_Session(options, request, kills=options.kill_on_disconnect).run)
    asked = _asked(options)
    if options.detach:
        return trio.run(_detach, options, asked)
    request = to_exec(options.argv, asked)
    return trio.run(_Session(options, request, kills=options.kill_on_disconnect).run)


def attach(options: argparse.Namespace) -> int:
    """Come back to a job and end as it ends."""
    plain = isinstance(options.start, int)
    request = Request(
        options.id, start="start" if plain else options.start, input=options.stdin and not options.read_only,
        hold=options.hold, command=options.number,
    )  # fmt: skip
    return trio.run(
        _Session(options, request, read_only=options.read_only, offset=options.start if plain else None).run
    )


def _asked(options: argparse.Namespace) -> ExecOptions:
    """What the command line asks for; what it leaves out the guest decides."""
    fields: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "id",
            "shell",
            "cwd",
            "user",
            "group",
            "timeout",
            "grace",
            "scope",
            "tape",
            "umask",
            "nice",
        )
        if getattr(options, name) is not None
    }
    fields["stdin"] = "stream" if options.stdin else "none"
    if options.env:
        fields["env"] = dict(options.env)
    if options.rlimit:
        fields["rlimits"] = dict(options.rlimit)
    fields.update(
        (name, True)
        for name in ("spool", "kill_on_disconnect", "background", "without_mounts")
        if getattr(options, name)
    )
    if options.no_hold:
        fields["hold"] = False
    # A trace that this shell is part of goes on in the guest.
    fields.update(
        (name, os.environ[name.upper()])
        for name in ("traceparent", "tracestate")
        if os.environ.get(name.upper())
    )
    return cast("ExecOptions", fields)


async def _detach(options: argparse.Namespace, asked: ExecOptions) -> int:
    async with dialer(options)() as client:
        started = await client.start(options.argv, **asked)
        result = await client.wait(str(started["id"])) if started.get("pid") is None else None
    if result is not None:
        # It could not start: there is nothing that goes on.
        if options.json:
            print(json_text.dumps({"event": "end", **result.to_map()}), flush=True)
        say(explain(result) or "it has ended")
        return result.status
    print(json_text.dumps({"event": "started", **started}) if options.json else started["id"], flush=True)
    return 0


def _as_it_is(output: Output) -> bytes:
    return output.data


class _Session:
    """One run of exec or attach."""

    def __init__(
        self,
        options: argparse.Namespace,
        request: Request,
        *,
        kills: bool = False,
        read_only: bool = False,
        offset: int | None = None,
    ) -> None:
        self._options = options
        self._request = request
        self._kills = kills
        self._read_only = read_only
        # Of the job's first stream, whichever that is.
        self._offset = offset
        self._shown = _as_it_is
        self._job: Followed | None = None
        self._out = Printer(json=options.json)
        # What has been written out: where another guestctl would go on.
        self._written: dict[str, int] = {}
        self._tasks: trio.Nursery | None = None
        self._left = trio.CancelScope()
        self._left_status = 0

    async def run(self) -> int:
        status = FAILED_STATUS
        try:
            with self._left, trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with background() as self._tasks:
                    self._tasks.start_soon(self._pass_signals, signals)
                    status = await self._follow()
        except (ConnectionLost, Unavailable, ShuttingDown, OutputFailed) as error:
            report(error, json=self._options.json)
            self._say_how_to_go_on()
        except BrokenPipeError:
            # Whoever read our output has gone. The job goes on, unless it was to end with us.
            return _PIPE_STATUS
        finally:
            self._out.close()
        return self._left_status if self._left.cancelled_caught else status

    async def _follow(self) -> int:
        dial, give_up = dialer(self._options), self._options.reconnect
        if self._offset is not None:
            self._request = replace(self._request, start={await self._first_stream(): self._offset})
        async with (
            follow(dial, self._request, give_up=give_up, notice=self._notice) as job,
            background() as tasks,
        ):
            self._job = job
            assert job.job is not None
            self._written = job.job.began
            if job.job.kind == "shell" and self._request.exec is None:
                self._look_at_shell(job.job)
            await self._out.note(
                {"event": "started", "id": job.id, "pid": job.job.pid, "created": job.job.created}
            )
            if self._request.input:
                tasks.start_soon(self._feed, job)
            async for event in job:
                await self._show(event)
            result = await job.result()
            final = job.job.final
            if final is not None and "command" in final:
                return await self._end_of_command(final["command"])
            await self._out.note({"event": "end", **result.to_map()})
        text = explain(result)
        if text is not None:
            say(text)
        return result.status

    async def _first_stream(self) -> str:
        """What a plain number is an offset of."""
        async with dialer(self._options)() as client:
            jobs = await client.ps()
        kind = next((job.get("kind") for job in jobs if job.get("id") == self._request.id), None)
        return "terminal" if kind == "shell" else "stdout"

    def _look_at_shell(self, job: Job) -> None:
        """A shell is not ours to interrupt: without -i nothing is sent. With it, old questions are not answered."""
        if not self._request.input:
            self._read_only = True
            return
        questions, end = Questions(), job.known_end("terminal")

        def without(output: Output) -> bytes:
            return questions.of(output.offset, output.data, end)

        self._shown = without

    async def _end_of_command(self, command: dict[str, Any]) -> int:
        await self._out.note({"event": "end", "command": command})
        status = command.get("exit")
        if status is None:
            say("with which status it ended is not known")
            return FAILED_STATUS
        return int(status)

    async def _show(self, event: Event) -> None:
        if isinstance(event, Output):
            await self._out.output(event._replace(data=self._shown(event)))
            self._written[event.stream] = event.offset + len(event.data)
        else:
            self._written[event.stream] = event.end
            await self._out.gap(event)

    async def _feed(self, job: Followed) -> None:
        try:
            while data := await self._read():
                await job.send(data)
            await job.close_stdin()
        except (GuestdError, trio.BrokenResourceError):
            return  # the job has ended, or is lost: whoever takes its output says so

    async def _read(self) -> bytes:
        try:
            return await read_some(0)
        except OSError as error:
            await self._out.say(f"cannot read standard input: {error.strerror}; to the command it has ended")
            return b""

    # -- signals --

    async def _pass_signals(self, signals: AsyncIterator[int]) -> None:
        times: list[float] = []
        async for number in signals:
            if self._job is None or self._read_only:
                self._leave(128 + number)
                return
            now = trio.current_time()
            times = [each for each in times if now - each < _AGAIN]
            if number == signal.SIGINT:
                times.append(now)
            if number == signal.SIGINT and len(times) > 1:
                self._insist(len(times))
                continue
            if not self._job.connected:
                await self._out.say(
                    "there is no connection; the signal will be passed on when there is one again"
                )
            await self._job.signal(signal.Signals(number).name)

    def _insist(self, times: int) -> None:
        assert self._job is not None
        assert self._tasks is not None
        if not self._job.connected:
            self._say_how_to_go_on()
            self._leave(FAILED_STATUS)
            return
        # The second asks the guest to end it all; the third no longer politely.
        self._tasks.start_soon(self._kill, self._job, None if times == 2 else 0.0)

    async def _kill(self, job: Followed, grace: float | None) -> None:
        try:
            await job.kill(grace=grace)
        except (ConnectionLost, NotFound):
            pass  # it has ended, and the connection with it; or the loss is reported where the output is taken
        except GuestdError as error:
            await self._out.say(f"it could not be ended: {error.message}")

    def _leave(self, status: int) -> None:
        self._left_status = status
        self._left.cancel()

    # -- the connection --

    def _notice(self, notice: Notice) -> None:
        assert self._tasks is not None
        match notice.what:
            case "lost":
                reason = "" if notice.error is None else notice.error.message
                self._tasks.start_soon(self._out.note, {"event": "lost", "message": reason})
                self._tasks.start_soon(self._out.say, f"{reason}; the job goes on; connecting again")
            case "again":
                self._tasks.start_soon(self._out.note, {"event": "again"})
                self._tasks.start_soon(self._out.say, "connected again")
            case _:
                pass

    def _say_how_to_go_on(self) -> None:
        if self._job is None:
            return
        to = "" if self._options.to == default_address() else f"--to {self._options.to} "
        begin = f"guestctl {to}attach {self._job.id}"
        if self._request.command is not None:
            say(f"once more: {begin} --command {self._request.command}")
            return
        if self._kills:
            say(f"it was to end with the connection; its end: {begin}")
        else:
            say(f"go on with: {begin} --from {show_offsets(self._written)}")
