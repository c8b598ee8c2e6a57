"""`guestd init` for a test, as PID 1 of a PID namespace of its own or as an ordinary process; and the world around it.

    with booted() as guest:                   PID 1 of a container: sees this machine's files
    with booted(bare=True) as guest:          …with a root in memory that has programs, and nothing mounted
    with booted(bare=True, kind="machine")    …that takes it for a machine of its own
    with booted(first=False)                  not PID 1

Run as a program this file is what stands between the test and that PID 1: it makes the namespaces and the root, and
tells the number of PID 1 and how it ended. A machine's reboot(2) in a PID namespace ends that namespace alone: its PID
1 is seen to end by SIGINT (power off, halt) or SIGHUP (reboot).

The root of a bare one has no file system of this machine's as a whole, only parts of them, bound: at its end PID 1
makes whole file systems read-only. That is checked here before anything is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_serve.py")
#: Far above what anything takes: a hang is to become a failure that shows the console.
SECONDS = 30.0
#: Where a bare root has the test's directory.
INSIDE = "/t"

_NEWNS, _NEWPID, _NEWUTS, _NEWNET, _NEWIPC = 0x20000, 0x20000000, 0x4000000, 0x40000000, 0x8000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


# ------------------------------------------------------------------------------------------------------- for the tests


@dataclass
class Guest:
    """A running `guestd init`. `pid` as seen from here; `inside`: what `directory` is called in there."""

    launcher: subprocess.Popen[str]
    directory: Path
    inside: str
    console_fd: int
    pid: int = 0
    lines: list[str] = field(default_factory=list[str])
    _rest: bytes = b""

    @property
    def console(self) -> str:
        """All that was said so far, by everybody."""
        self._read(0)
        return "\n".join([*self.lines, self._rest.decode(errors="replace")])

    def wait_for(self, *texts: str, times: int = 1) -> str:
        """Until a line with all of these texts has been said (so many times); returns the last one."""
        due = time.monotonic() + SECONDS
        while True:
            found = [line for line in self.lines if all(text in line for text in texts)]
            if len(found) >= times:
                return found[times - 1]
            left = due - time.monotonic()
            assert left > 0, f"nobody said {texts}; the console:\n{self.console}"
            if not self._read(left) and self.launcher.poll() is not None and not self._read(0):
                raise AssertionError(f"it ended and had not said {texts}; the console:\n{self.console}")

    def _read(self, seconds: float) -> bool:
        if not select.select([self.console_fd], [], [], min(seconds, 0.5))[0]:
            return False
        self._rest += os.read(self.console_fd, 65536)
        *lines, self._rest = self._rest.split(b"\n")
        self.lines += [line.decode(errors="replace") for line in lines]
        return True

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(SECONDS)
        try:
            sock.connect(str(self.directory / "guestd.sock"))
        except OSError:
            sock.close()
            raise
        return sock

    def run(self, source: str) -> Any:  # noqa: ANN401  whatever the test asks for
        """Have the fake serve run this, and its `answer`."""
        with self.connect() as sock:
            sock.sendall(source.encode())
            sock.shutdown(socket.SHUT_WR)
            said = b""
            try:
                while piece := sock.recv(65536):
                    said += piece
            except TimeoutError:
                raise AssertionError(
                    f"no answer in time to {source!r}; the console:\n{self.console}"
                ) from None
        assert said, f"no answer to {source!r}; the console:\n{self.console}"
        return eval(said.decode(), {})

    def serve_pid(self) -> int:
        """The fake serve's number as seen from here."""
        return self.outer(self.run("answer = os.getpid()"))

    def outer(self, inner: int) -> int:
        """The number here of a process in there."""
        for word in os.listdir("/proc"):
            if word.isdecimal():
                with contextlib.suppress(OSError), open(f"/proc/{word}/status", encoding="utf-8") as file:
                    numbers = next(line for line in file if line.startswith("NSpid:")).split()[1:]
                    with open(f"/proc/{self.pid}/status", encoding="utf-8") as first:
                        depth = len(next(line for line in first if line.startswith("NSpid:")).split()) - 1
                    same = os.readlink(f"/proc/{word}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid")
                    if same and len(numbers) == depth and int(numbers[-1]) == inner:
                        return int(word)
        raise AssertionError(f"there is no process {inner} in there")

    def wait(self) -> int:
        """How PID 1 ended: its exit status, or minus the signal."""
        try:
            said, _ = self.launcher.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end; the console:\n{self.console}") from None
        word, number = said.split()[-2:]
        assert word in {"exit", "signal"}, said
        return int(number) if word == "exit" else -int(number)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()


@contextlib.contextmanager
def booted(
    *arguments: str,
    first: bool = True,
    bare: bool = False,
    fake: bool = True,
    program: Path = FAKE,
    kind: str | None = None,
    config: str | None = None,
    begin: str = "",
    environment: Mapping[str, str] | None = None,
    prepare: str = "",
    listen: bool = True,
    agent: bool = False,
    pass_fds: Sequence[int] = (),
    ready: bool = True,
) -> Generator[Guest]:
    """Run `guestd init` around a block.

    `fake`: with fake_serve.py (or a `program` like it), for which `begin` is what it does before it is ready.
    `prepare`: Python that runs inside before PID 1 is executed, as what becomes PID 1; `root` is where the new root is.
    `config`: the text of a file that is named by a flag. `ready`: wait until serve is ready.
    """
    with contextlib.ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="guestd-")))
        inside = INSIDE if bare else str(directory)
        os.mkfifo(directory / "console")
        console = os.open(directory / "console", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        undo.callback(os.close, console)
        flags = ["--listen", f"unix:{inside}/guestd.sock"] if listen else []
        if config is not None:
            (directory / "guestd.toml").write_text(config)
            flags += ["--config", f"{inside}/guestd.toml"]
        started = [str(program)] if fake else ["-m", "guestd"]
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        world = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GUESTD_RUNTIME_DIR": inside,
            "FAKE_SERVE": begin,
            # The fake does not beat.
            "GUESTD_INIT_WATCHDOG": "0",
            # Most look at what is passed to serve beside the socket that they connect to.
            "GUESTD_AGENT_SOCKET": "true" if agent else "false",
            **({"GUESTD_INIT_KIND": kind} if kind else {}),
            **(environment or {}),
        }
        plan = {
            "first": first,
            "bare": bare,
            "directory": str(directory),
            "console": str(directory / "console"),
            "argv": [sys.executable, *started, "init", *flags, *arguments],
            "environment": world,
            "prepare": prepare,
            "programs": ["/usr", sys.base_prefix, sys.prefix, str(ROOT)],
            "fds": list(pass_fds),
        }
        launcher = subprocess.Popen(
            [sys.executable, "-S", __file__, json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=console,
            text=True,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        undo.callback(_end, launcher)
        assert launcher.stdout is not None
        guest = Guest(launcher, directory, inside, console)
        said = launcher.stdout.readline()
        assert said.startswith("pid "), f"{said}\n{guest.console}"
        guest.pid = int(said.split()[1])
        if ready:
            guest.wait_for("guestd init:", "serve is ready")
        try:
            yield guest
        finally:
            if launcher.poll() is None:
                # What is in a namespace ends with its PID 1; an ordinary process has to end what it started itself.
                for _ in range(1 if first else 3):
                    guest.signal(signal.SIGKILL if first else signal.SIGTERM)
                launcher.communicate(timeout=SECONDS)


def _end(launcher: subprocess.Popen[str]) -> None:
    # Its PID 1 dies with it, and all that is in the namespace with that one.
    launcher.kill()
    launcher.communicate()


# ----------------------------------------------------------------------------------------------------- as the launcher


def launch(plan: dict[str, Any]) -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    if plan["first"]:
        _check(_libc.unshare(_NEWNS | _NEWPID | _NEWUTS | _NEWNET | _NEWIPC))
        _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    child = os.fork()
    if child == 0:
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _become(plan)
        except BaseException as error:  # noqa: BLE001  the test is told, and nothing of this process goes on
            os.write(2, f"the launcher failed: {error!r}\n".encode())
        finally:
            os._exit(99)
    os.write(1, f"pid {child}\n".encode())
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os.write(1, (f"signal {-code}\n" if code < 0 else f"exit {code}\n").encode())


def _become(plan: dict[str, Any]) -> None:
    # Standard output leads to the test, for what the launcher has to tell.
    os.dup2(2, 1)
    root = "/"
    if plan["bare"]:
        root = _make_root(plan)
    elif plan["first"]:
        _mount("proc", "/proc", "proc", 0)
    environment = {str(name): str(value) for name, value in plan["environment"].items()}
    exec(plan["prepare"], {"root": root, "os": os, "mount": _mount, "environment": environment, "plan": plan})
    if plan["bare"]:
        os.chroot(root)
        os.chdir("/")
    for at, fd in enumerate(plan["fds"]):
        os.dup2(fd, 3 + at)
    os.execve(plan["argv"][0], plan["argv"], environment)


def _make_root(plan: dict[str, Any]) -> str:
    """A root in memory with the programs of this machine, the test's directory, and a few devices. Nothing else."""
    root = f"{plan['directory']}/root"
    os.mkdir(root)
    _mount("root", root, "tmpfs", 0)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            _bind(f"/{name}", f"{root}/{name}")
    # Shorter ones first: an environment may lie in the checkout.
    for path in sorted(plan["programs"], key=len):
        if not os.path.exists(root + path):
            _bind(path, root + path)
    os.mkdir(root + INSIDE)
    _bind(plan["directory"], root + INSIDE)
    os.makedirs(f"{root}/etc")
    os.makedirs(f"{root}/dev")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _MS_BIND)
    os.close(os.open(f"{root}/dev/console", os.O_CREAT | os.O_WRONLY, 0o600))
    _mount(plan["console"], f"{root}/dev/console", None, _MS_BIND)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.split(" ")
            kind = line.partition(" - ")[2].split(" ")[0]
            below = words[4].startswith(f"{root}/")
            if below and words[3] == "/" and kind not in {"tmpfs", "devtmpfs", "proc"}:
                raise RuntimeError(f"{words[4]} is all of a file system of this machine's: not safe")
    return root


def _bind(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    _mount(source, target, None, _MS_BIND)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            None if options is None else options.encode(),
        ),
        target,
    )


def _check(result: int, what: str = "") -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    launch(json.loads(sys.argv[1]))
