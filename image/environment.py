"""`./image/try`: guestd with a workspace in a namespace of its own, and a shell or one command in it.

Promises. The command's status is this program's; 125 when guestd did not start, with its log. Whatever happens to this
program, also a kill -9, nothing stays behind: the processes and mounts go with the namespace, and the sockets and the
log are in the namespace's own memory. Where the kernel allows no namespace, a line says so, and the same runs in the
open with a temporary directory, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

import namespace

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

USAGE = """usage: ./image/try                 a supervised environment on this machine, and a shell in it
       ./image/try -- COMMAND…    runs one command that way, and ends with its status"""

BANNER = """\
guestd is running, {where}, and this is a shell in it.
/mnt/workspace is its workspace: empty, in memory, gone when you leave. What to type, for instance:
    guestctl shell work                        another shell; Ctrl+] leaves it, the same line comes back to it
    guestctl exec -- uname -a                  run a command; ends with the command's own status
    guestctl exec --id build --detach -- make  start one that outlives this terminal
    guestctl attach build                      its output, from the start, then as it comes
    guestctl ps                                what is running
    guestctl status                            the supervisor itself
`exit` ends the environment and everything that runs in it. The supervisor's log: {log}"""

#: From exec to READY it takes a quarter of a second; this is for a machine that is busy with something else.
READY_SECONDS = 30.0
#: `guestd serve` gives what it supervises its own grace and then ends it; this is longer than that.
STOP_SECONDS = 25.0


def say(text: str) -> None:
    print(f"guestd: {text}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------- outside


def outside(command: Sequence[str]) -> int:
    """In a namespace where there can be one, else in the open."""
    again = [sys.executable, "-S", os.path.abspath(__file__), "--inside"]
    with _terminal_as_it_was():
        try:
            return namespace.run([*again, *command])
        except namespace.Unavailable as e:
            say(
                f"this kernel allows no namespace of its own, so it runs in the open, without /mnt/workspace: {e}"
            )
        private = tempfile.mkdtemp(prefix="guestd-try-")
        try:
            return inside(private, command, "in the open: this kernel allows no namespace of its own")
        finally:
            shutil.rmtree(private, ignore_errors=True)


@contextlib.contextmanager
def _terminal_as_it_was() -> Generator[None]:
    """Gives the terminal back as it was: a shell that was killed inside had it in its own mode and foreground."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    modes, foreground = termios.tcgetattr(terminal), os.tcgetpgrp(terminal)
    try:
        yield
    finally:
        if foreground == os.getpgrp():
            # Whoever is not in the foreground is stopped for this, unless it does not listen.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(terminal, foreground)
            termios.tcsetattr(terminal, termios.TCSADRAIN, modes)
        os.close(terminal)


# -------------------------------------------------------------------------------------------------------------- inside


@dataclass
class _Stopped(Exception):
    """Asked to stop before there was a command to pass that on to."""

    number: int


def _drop(_number: int, _frame: object) -> None:
    pass


def inside(private: str, command: Sequence[str], where: str) -> int:
    """Starts guestd, then the command or a shell, and ends guestd in order. `private` is a directory of ours."""
    programs = os.path.dirname(sys.executable)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
        "GUESTD_RUNTIME_DIR": private,
        "GUESTD_TO": f"unix:{private}/guestd.sock",
    }
    log = f"{private}/log"
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        if child is None:
            raise _Stopped(number)
        child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    # The keyboard's signals are for the command, which has them from the terminal. Not ignored, but caught and dropped:
    # what is ignored stays so in a child.
    signal.signal(signal.SIGINT, _drop)
    signal.signal(signal.SIGQUIT, _drop)

    serve: subprocess.Popen[bytes] | None = None
    try:
        serve, ready = _start_serve(programs, private, environment, log)
        if not ready:
            return namespace.FAILED
        if command:
            input = [] if os.isatty(0) else ["-i"]
            argv = ["exec", *input, *_settings(environment), "--", *command]
        else:
            say(BANNER.format(where=where, log=log))
            argv = _shell(environment)
        child = subprocess.Popen([f"{programs}/guestctl", *argv], env=environment)
        status = child.wait()
        return status if status >= 0 else 128 - status
    except _Stopped as stopped:
        return 128 + stopped.number
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if serve is not None:
            _stop_serve(serve, log)


def _start_serve(
    programs: str, private: str, environment: dict[str, str], log: str
) -> tuple[subprocess.Popen[bytes], bool]:
    """`guestd serve`, and whether it became ready: it says so as to a service manager, so nothing is polled."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, open(log, "wb") as written:
        notified.bind(f"{private}/notify")
        # Every program in it finds the guestd that it runs under, also in a shell that was opened from another.
        with open(f"{private}/guestd.toml", "w", encoding="utf-8") as config:
            config.write(f'[env]\nGUESTD_TO = "{environment["GUESTD_TO"]}"\n')
            # It ends when its shell does, and not before, however long that is left alone.
            config.write("[idle]\ntimeout = 0\nlifetime = 0\n")
        serve = subprocess.Popen(
            [
                f"{programs}/guestd",
                "serve",
                "--listen",
                environment["GUESTD_TO"],
                "--config",
                f"{private}/guestd.toml",
            ],
            env={**environment, "NOTIFY_SOCKET": f"{private}/notify"},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            # Out of the terminal's reach: ^C is for the command.
            start_new_session=True,
        )
        ended = os.pidfd_open(serve.pid)
        poll = select.poll()
        poll.register(notified, select.POLLIN)
        poll.register(ended, select.POLLIN)
        try:
            while events := poll.poll(READY_SECONDS * 1000):
                if any(fd == ended for fd, _ in events):
                    say(f"`guestd serve` ended with status {serve.wait()} before it was ready; its log:")
                    _show(log)
                    return serve, False
                if b"READY=1" in notified.recv(4096).split(b"\n"):
                    return serve, True
            say(f"`guestd serve` was not ready after {READY_SECONDS:.0f} s; its log:")
            _show(log)
            return serve, False
        except BaseException:
            _stop_serve(serve, log)
            raise
        finally:
            os.close(ended)


def _stop_serve(serve: subprocess.Popen[bytes], log: str) -> None:
    if serve.returncode is not None:
        return  # told when it happened
    crashed = serve.poll() is not None
    serve.terminate()
    try:
        status = serve.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        serve.kill()
        serve.wait()
        say(f"`guestd serve` did not end within {STOP_SECONDS:.0f} s of SIGTERM, and was killed; its log:")
        _show(log)
        return
    if status != 0 or crashed:
        say(f"`guestd serve` ended with status {status}{' by itself' if crashed else ''}; its log:")
        _show(log)


def _show(log: str) -> None:
    with open(log, errors="replace") as f:
        sys.stderr.writelines(f.readlines()[-40:])


def _settings(environment: dict[str, str]) -> list[str]:
    """GUESTD_… is not handed on by guestd; what runs here is to find the guestd that it is tried with."""
    return ["--env", f"GUESTD_TO={environment['GUESTD_TO']}", "--env", f"PATH={environment['PATH']}"]


def _shell(environment: dict[str, str]) -> list[str]:
    """A shell of guestd's own. Where nobody sits at a terminal, one that reads what it is to do."""
    if not (os.isatty(0) and os.isatty(1)):
        return ["exec", "-i", *_settings(environment), "--", "/bin/sh"]
    # The environment ends with this shell, so there is no leaving it behind; and the key is free for those within.
    options = ["--detach-key", "none", *_settings(environment)]
    # The prompt says where one is: bash's, whatever the user's own files make of it, and those that take the variable.
    mark = "(guestd) "
    for name, value in (
        ("PS1", f"{mark}$ "), ("PROMPT_COMMAND", f"case $PS1 in '{mark}'*) ;; *) PS1='{mark}'$PS1 ;; esac"),
    ):  # fmt: skip
        options += ["--env", f"{name}={value}"]
    return ["shell", *options]


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--inside"]:
        private = "/mnt/.guestd"
        os.mkdir(private, 0o700)
        return inside(private, arguments[1:], "in a mount and PID namespace of its own")
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments and (arguments[0] != "--" or len(arguments) == 1):
        print(USAGE, file=sys.stderr)
        return namespace.FAILED
    return outside(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
