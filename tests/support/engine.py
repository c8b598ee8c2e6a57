"""A container engine of the tests' own: Debian's dockerd with its own sockets and state, started and ended by pid.

No bridge and no iptables, so nothing of the machine's network is touched: builds have the machine's (`--network=host`),
containers none. What it has built is kept in `CACHE` from run to run, behind a lock; the second one who comes has a
state that goes when the run is over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guestd" / "image"
#: By their paths, Debian's or Docker's own: a program of that name earlier in PATH may be another thing.
_DOCKERD = shutil.which("dockerd", path="/usr/sbin:/usr/bin") or "/usr/sbin/dockerd"
_DOCKER = "/usr/bin/docker"
_START_SECONDS = 60.0
#: Its key, its plug-ins, its helper's sockets: written wherever its state is said to be.
_ITS_OWN = ("/etc/docker", "/run/docker", "/run/containerd")
#: The control group of its containers.
_GROUP = f"guestd-tests-{uuid.uuid4().hex[:12]}"
#: Of what builds leave for the next run.
_KEPT = "4GB"


class Failed(Exception):
    """What docker said when it ended with something else than 0."""


@dataclass(frozen=True)
class Engine:
    """One that runs."""

    socket: str
    log: Path

    def __call__(self, *arguments: str, input: bytes | None = None, timeout: float = 300) -> str:
        """Runs `docker ARGUMENTS…` and returns its output; raises Failed with both of its streams."""
        done = self.run(*arguments, input=input, timeout=timeout)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise Failed(f"docker {' '.join(arguments)} ended with {done.returncode}:\n{said}")
        return done.stdout.decode()

    def run(
        self, *arguments: str, input: bytes | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*arguments), input=input or b"", capture_output=True, check=False, timeout=timeout,
            env=self.environment,
        )  # fmt: skip

    def command(self, *arguments: str) -> list[str]:
        return [_DOCKER, "--host", f"unix://{self.socket}", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """No configuration of a user's: neither another engine's address nor a registry's password."""
        return {
            "PATH": os.defpath,
            "HOME": "/nonexistent",
            "DOCKER_BUILDKIT": "1",
            "BUILDKIT_PROGRESS": "plain",
        }


@contextlib.contextmanager
def started() -> Generator[Engine]:
    """An engine for as long as this is entered."""
    with contextlib.ExitStack() as ends, tempfile.TemporaryDirectory(prefix="guestd-engine-") as private:
        state = ends.enter_context(_state(Path(private)))
        for place in _ITS_OWN:
            ends.enter_context(_hidden(place))
        engine = Engine(f"{private}/docker.sock", Path(private) / "log")
        try:
            daemon = _start(engine, state, Path(private))
        except Failed:
            # What a run that was killed has left may be torn.
            shutil.rmtree(state)
            daemon = _start(engine, state, Path(private))
        try:
            yield engine
            engine("container", "prune", "--force")
            engine("image", "prune", "--force")
            engine("builder", "prune", "--force", "--keep-storage", _KEPT)
        finally:
            daemon.terminate()
            daemon.wait(60)
            for group in (*Path("/sys/fs/cgroup").glob(f"*/{_GROUP}"), Path("/sys/fs/cgroup", _GROUP)):
                # Whoever is not quite gone yet keeps an empty directory of a control group, and nothing else.
                with contextlib.suppress(OSError):
                    group.rmdir()


@contextlib.contextmanager
def _hidden(place: str) -> Generator[None]:
    """Memory in place of a directory that no option of the daemon's moves."""
    os.makedirs(place, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "guestd-engine", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextlib.contextmanager
def _state(private: Path) -> Generator[Path]:
    """The engine's state from earlier runs, if nobody has it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = os.open(CACHE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield private / "state"
        else:
            yield CACHE / "engine"
    finally:
        os.close(lock)


def _start(engine: Engine, state: Path, private: Path) -> subprocess.Popen[bytes]:
    """Starts it, and waits for it to say that it is ready, as to a service manager. Raises Failed with its log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, engine.log.open("wb") as log:
        Path(f"{private}/notify").unlink(missing_ok=True)
        notified.bind(f"{private}/notify")
        daemon = subprocess.Popen(
            [
                _DOCKERD, "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--bridge=none",
                "--storage-driver", _storage_driver(state), "--host", f"unix://{engine.socket}", "--group", "root",
                "--cgroup-parent", f"/{_GROUP}",
                "--data-root", str(state), "--exec-root", f"{private}/exec", "--pidfile", f"{private}/pid",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={"PATH": os.defpath + ":/usr/sbin:/sbin", "NOTIFY_SOCKET": f"{private}/notify"} | _proxies(),
        )  # fmt: skip
        ended = os.pidfd_open(daemon.pid)
        try:
            poll = select.poll()
            poll.register(notified, select.POLLIN)
            poll.register(ended, select.POLLIN)
            while events := poll.poll(_START_SECONDS * 1000):
                if any(fd == ended for fd, _ in events):
                    break
                if b"READY=1" in notified.recv(4096).split(b"\n"):
                    return daemon
        finally:
            os.close(ended)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        raise Failed(f"dockerd did not start:\n{engine.log.read_text(errors='replace')[-4000:]}")


def _storage_driver(state: Path) -> str:
    """overlay2 where the kernel has overlay and the state is on something that it can lie on; else plain copies."""
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state) as trial:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{trial}/{name}")
        options = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
        tried = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, f"{trial}/merged"],
            capture_output=True,
            check=False,
        )
        if tried.returncode != 0:
            return "vfs"
        subprocess.run(["umount", f"{trial}/merged"], check=True)
    return "overlay2"


def _proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
