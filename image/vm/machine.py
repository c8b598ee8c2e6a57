"""One machine: the processes that it consists of on this side, and the folder they meet in.

All of them end with the process that started them, however that ends; what a machine leaves in /tmp when its starter
was killed, the next start takes away.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from image.vm import qemu
from image.vm import vsock as vsocks
from image.vm.failure import Failure, find, say, shown
from image.vm.herald import Herald

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from image.vm.manifest import Manifest
    from image.vm.qemu import Hardware

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
#: The system credential by which a guest knows whom to tell.
TOLD_BY = "vmm.notify_socket"
_PREFIX = "guestd-machine-"
#: A socket's path has at most 107 bytes; the longest name in the folder is that of a port of the host's.
_PATH_MAX = 107 - len("/vsock_4294967295")
_CID = 3
#: A port that the guest is told of, on which nothing else listens here.
_HERALD_PORT = 9999
#: From starting a helper to its socket; far above the milliseconds that it takes.
_HELPER_SECONDS = 20.0
_LOOK_AGAIN = 0.005
#: From QEMU's start to READY. Under emulation, on a machine that is busy with something else.
BOOT_SECONDS = 120.0
_END_SECONDS = 60.0
_MOMENT = 0.3
_READY = b"serve is ready after"


class Machine:
    """Started by `with`; `address` is where its guestd is reached. Who leaves the block early pulls the plug."""

    def __init__(self, manifest: Manifest, hardware: Hardware) -> None:
        self.manifest = manifest
        self.hardware = hardware
        self.folder = Path()
        self.started = 0.0
        self._undo = contextlib.ExitStack()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ended = -1
        self._monitor: qemu.Monitor | None = None
        self.herald: Herald

    # ----------------------------------------------------------------------------------------------------- its start

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self.folder = runtime_folder(undo)
            self.console.touch()
            vsock = None if self.hardware.port else self._start_vsock(undo)
            share = self._start_share(undo)
            told = {} if vsock is None else {TOLD_BY: self.herald.credential}
            credentials = {**told, **self.hardware.credentials}
            command = qemu.command(
                self.manifest,
                _with(self.hardware, credentials),
                monitor=self.folder / "monitor", console=self.console, vsock=vsock, share=share,
            )  # fmt: skip
            self.started = time.monotonic()
            process = self._start(undo, "qemu", command)
            self._ended = os.pidfd_open(process.pid)
            undo.callback(os.close, self._ended)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start_vsock(self, undo: contextlib.ExitStack) -> Path | int:
        if vsocks.has_vhost():
            self._cid = secrets.randbelow(1 << 30) + _CID
            self.herald = Herald(None, secrets.randbelow(1 << 30) + 1024, self._cid)
            undo.callback(self.herald.close)
            return self._cid
        self._cid = 0
        hybrid = self.folder / "vsock"
        self.herald = Herald(hybrid, _HERALD_PORT)
        undo.callback(self.herald.close)
        return self._start_vsock_device(undo, hybrid)

    def _start_vsock_device(self, undo: contextlib.ExitStack, hybrid: Path) -> Path:
        device = self.folder / "vsock.device"
        for each in (device, hybrid):
            each.unlink(missing_ok=True)
        words = [vsocks.program(), f"--guest-cid={_CID}", f"--socket={device}", f"--uds-path={hybrid}"]
        self._start(undo, "vsock", words)
        self._wait_for(device, "vsock")
        return device

    def replug_vsock(self) -> None:
        """Another device in place of one whose process has ended. Its users' connections are lost; they come again."""
        hybrid = self.folder / "vsock"
        vsocks.unplug(self.monitor)
        device = self._start_vsock_device(self._undo, hybrid)
        # Whoever connects before the guest has it would wait for ever, and all who come after him.
        hidden = self.folder / "vsock.hidden"
        self._wait_for(hybrid, "vsock")
        hybrid.rename(hidden)
        vsocks.plug(self.monitor, device)
        hidden.rename(hybrid)

    def _start_share(self, undo: contextlib.ExitStack) -> Path | None:
        workspace = self.hardware.workspace
        if workspace is None or not workspace.is_dir():
            return None
        path = self.folder / "share.device"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(str(path))
            listener.listen(1)
            # It is there before the program: nobody has to wait for it.
            command = [
                find("virtiofsd"),
                f"--fd={listener.fileno()}",
                "-o",
                f"source={workspace}",
                "-o",
                "cache=auto",
            ]
            self._start(undo, "share", command, pass_fds=(listener.fileno(),))
        return path

    def _start(
        self, undo: contextlib.ExitStack, name: str, command: Sequence[str], pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds,
                # Out of the terminal's reach, and never without us.
                start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509  there is one thread
            )  # fmt: skip
        self._children[name] = process
        undo.callback(_end, process)
        return process

    def _wait_for(self, path: Path, name: str) -> None:
        due = time.monotonic() + _HELPER_SECONDS
        while not path.exists():
            if self._children[name].poll() is not None or time.monotonic() > due:
                raise Failure(f"{name} did not start: {self._log(name).read_text(errors='replace')}")
            time.sleep(_LOOK_AGAIN)

    # ------------------------------------------------------------------------------------------------------- its life

    @property
    def address(self) -> str:
        port = self.manifest.port
        if self.hardware.port:
            return f"tcp:127.0.0.1:{self.hardware.port}"
        return f"vsock:{self._cid}:{port}" if self._cid else f"hybrid:{self.folder}/vsock:{port}"

    @property
    def console(self) -> Path:
        """What the machine's first serial line says."""
        return self.folder / "console"

    @property
    def running(self) -> bool:
        return self._children["qemu"].poll() is None

    def pid(self, name: str) -> int:
        return self._children[name].pid

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @property
    def monitor(self) -> qemu.Monitor:
        if self._monitor is None:
            path = self.folder / "monitor"
            self._wait_for(path, "qemu")
            due = time.monotonic() + _HELPER_SECONDS
            while self._monitor is None:
                try:
                    self._monitor = qemu.Monitor(path)
                except ConnectionRefusedError:
                    # It has its name a moment before it listens.
                    if time.monotonic() > due:
                        raise
                    time.sleep(_LOOK_AGAIN)
            self._undo.callback(self._monitor.close)
        return self._monitor

    def wait_for(self, word: str, seconds: float = BOOT_SECONDS) -> str:
        """Until the guest has told that. Failure has the end of its console."""
        try:
            return self.herald.wait(word, seconds, self._ended)
        except Failure as failure:
            raise Failure(f"{failure}; {self.last_words()}") from None

    def wait_until_ready(self) -> float:
        """Seconds since QEMU was started."""
        if self.hardware.port:
            # It can tell nobody but its console.
            due = self.started + BOOT_SECONDS
            while _READY not in self.console.read_bytes():
                if not self.running or time.monotonic() > due:
                    raise Failure(f"the machine is not ready; {self.last_words()}")
                time.sleep(_LOOK_AGAIN)
            return time.monotonic() - self.started
        self.wait_for("READY")
        return self.herald.at["READY"] - self.started

    def wait_for_end(
        self, seconds: float | None = _END_SECONDS, tell: Callable[[dict[str, str]], None] | None = None
    ) -> int:
        """QEMU's exit status, when the machine has switched itself off. None waits for as long as it takes."""
        if not self.hear_until(self._ended, seconds, tell):
            raise Failure(f"the machine has not ended within {seconds:g} s; {self.last_words()}")
        return self._children["qemu"].wait()

    def hear_until(
        self, fd: int, seconds: float | None = None, tell: Callable[[dict[str, str]], None] | None = None
    ) -> bool:
        """Until that is readable; a pidfd is when its process has ended. False when it took longer.

        What the machine says until then is read, whoever wants to know: a host that does not listen holds up the whole
        vsock of the machine, when enough has been said. A vsock that dies gets a successor.
        """
        due = time.monotonic() + (math.inf if seconds is None else seconds)
        heard = [] if self.hardware.port else [self.herald.fileno()]
        while True:
            device = self._children.get("vsock")
            if device is not None and device.poll() is not None:
                # At the machine's end it may be the quicker one.
                if not select.select([self._ended], [], [], _MOMENT)[0]:
                    self._replace_vsock(device)
                    continue
                device = None
            with contextlib.ExitStack() as undo:
                watched = [fd, *heard]
                if device is not None:
                    # It is a child that nobody has waited for: its pid is its own until then.
                    watched.append(os.pidfd_open(device.pid))
                    undo.callback(os.close, watched[-1])
                left = max(0.0, due - time.monotonic())
                ready, _, _ = select.select(watched, [], [], None if seconds is None else left)
            if not ready:
                return False
            if heard and heard[0] in ready:
                words = self.herald.read()
                if words and tell is not None:
                    tell(words)
            elif fd in ready:
                return True

    def _replace_vsock(self, device: subprocess.Popen[bytes]) -> None:
        say(f"the vsock's device has ended ({device.wait()}); the machine gets another")
        try:
            self.replug_vsock()
        except Failure as failure:
            if self.running:
                say(f"it did not: {failure}; the machine goes on without a vsock")
            del self._children["vsock"]

    def power_button(self) -> None:
        self.monitor.ask("system_powerdown")

    def last_words(self) -> str:
        """For a failure's text."""
        lines = self.console.read_text(errors="replace").splitlines()[-25:]
        told = self._log("qemu").read_text(errors="replace").strip()
        return "\n".join(["its console:", *lines, *([f"QEMU: {told}"] if told else [])])

    def describe(self) -> str:
        args = self._children["qemu"].args
        assert isinstance(args, list)
        return shown([str(each) for each in args])


def _with(hardware: Hardware, credentials: dict[str, str]) -> Hardware:
    import dataclasses

    return dataclasses.replace(hardware, credentials=credentials)


def runtime_folder(undo: contextlib.ExitStack) -> Path:
    """A short path, because a socket's has at most 107 bytes. It is locked while somebody uses it."""
    base = Path(tempfile.gettempdir())
    for old in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_uid == os.getuid():
                    shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(fd)
    room = _PATH_MAX - len(f"/{_PREFIX}12345678")
    if len(os.fsencode(base)) > room:
        raise Failure(
            f"{base} is too long a name for where a machine has its sockets (it may have {room} bytes): TMPDIR=/tmp"
        )
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        # Another machine that starts at this moment may have taken it for one that was left behind.
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(fd), folder.stat()):
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
                return folder


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
