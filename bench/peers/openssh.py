"""OpenSSH with one kept connection: `ssh -M` holds it, and each command is a session asked for on its
control socket.

`ssh -S` would do that in a process of its own for each command. Here this process speaks to the control
socket (OpenSSH's PROTOCOL.mux), so that ssh is measured as the others are, without the start of a client
program. Still the whole way is there: encrypted, authenticated, a login shell's session made by sshd.
"""

from __future__ import annotations

import array
import os
import pwd
import shlex
import shutil
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

from bench.measure import SubjectFailed
from bench.peers import Peer
from bench.programs import Program, accepts, accepts_port, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.lab import Lab

_PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
#: Where sshd puts its unprivileged half when it runs as root; a boot script makes it otherwise.
_EMPTY = "/run/sshd"

_HELLO, _VERSION = 0x00000001, 4
_NEW_SESSION = 0x10000002
_EXIT, _OPENED = 0x80000004, 0x80000006
_NO_ESCAPE = 0xFFFFFFFF

_READ = 1024 * 1024


class OpenSsh(Peer):
    name = "ssh"
    # No limit; this much takes long enough to measure.
    bulk_limit = 64 * 1024 * 1024

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._control = lab.path("ssh.control")
        self._programs: list[Program] = []
        self._made_empty = False

    def missing(self) -> str | None:
        absent = [name for name in ("ssh", "sshd", "ssh-keygen") if not shutil.which(name, path=_PATH)]
        return f"no {', '.join(absent)} (--install-peers does it, with apt-get, as root)" if absent else None

    def start(self) -> None:
        directory = self.lab.directory("ssh")
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{directory}/{key}"],
                check=True,
                stdin=subprocess.DEVNULL,
            )
        if os.geteuid() == 0 and not os.path.isdir(_EMPTY):
            os.mkdir(_EMPTY, 0o755)
            self._made_empty = True
        port = free_port()
        self._start_server(directory, port)
        self._start_master(directory, port)

    def run(self, argv: Sequence[str]) -> int:
        stdout, theirs = os.pipe()
        try:
            with open(os.devnull, "r+b", buffering=0) as null, socket.socket(socket.AF_UNIX) as session:
                session.connect(self._control)
                with open(theirs, "wb", buffering=0) as far:
                    _ask(session, shlex.join(argv), [null.fileno(), far.fileno(), null.fileno()])
                size = 0
                while received := len(os.read(stdout, _READ)):
                    size += received
                _expect_success(session)
        finally:
            os.close(stdout)
        return size

    def stop(self) -> None:
        for program in reversed(self._programs):
            program.stop()
        if self._made_empty:
            os.rmdir(_EMPTY)

    def _start_server(self, directory: str, port: int) -> None:
        settings = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": f"{directory}/host",
            "AuthorizedKeysFile": f"{directory}/user.pub",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            # What a login shell reads first is its owner's, and may cost anything: 83 ms have been seen.
            "SetEnv": f"HOME={directory}",
        }
        with open(f"{directory}/sshd_config", "w", encoding="ascii") as config:
            config.writelines(f"{name} {value}\n" for name, value in settings.items())
        # By its full path: sshd executes itself again for each connection and insists on it.
        binary = shutil.which("sshd", path=_PATH) or "/usr/sbin/sshd"
        server = Program(
            [binary, "-D", "-e", "-f", f"{directory}/sshd_config"], log=self.lab.path("sshd.log")
        )
        self._programs.append(server)
        server.wait_until(accepts_port(port))

    def _start_master(self, directory: str, port: int) -> None:
        options = {
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        argv = [
            "ssh",
            "-F",
            "none",
            "-M",
            "-N",
            "-S",
            self._control,
            "-p",
            str(port),
            "-i",
            f"{directory}/user",
        ]
        argv += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        user = pwd.getpwuid(os.geteuid()).pw_name
        master = Program([*argv, f"{user}@127.0.0.1"], log=self.lab.path("ssh.log"))
        self._programs.append(master)
        master.wait_until(accepts(self._control))


def _ask(session: socket.socket, command: str, fds: list[int]) -> None:
    """Open a session for `command` with these three as its stdin, stdout and stderr."""
    words = [
        struct.pack(">III", _NEW_SESSION, 0, 0),  # the request's number, and a reserved empty text
        struct.pack(">IIII", 0, 0, 0, 0),  # no terminal, X11, agent, subsystem
        struct.pack(">I", _NO_ESCAPE),
        _text(""),  # TERM
        _text(command),
    ]
    session.sendall(_packet(struct.pack(">II", _HELLO, _VERSION)) + _packet(b"".join(words)))
    for fd in fds:
        session.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    while True:
        (kind,) = struct.unpack_from(">I", packet := _receive(session))
        if kind == _OPENED:
            return
        if kind != _HELLO:
            raise SubjectFailed(f"its control socket answered {packet[:200]!r} to a new session")


def _expect_success(session: socket.socket) -> None:
    kind, _, status = struct.unpack_from(">III", packet := _receive(session))
    if kind != _EXIT or status != 0:
        raise SubjectFailed(f"the command ended with {packet[:200]!r}")


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data


def _packet(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def _receive(session: socket.socket) -> bytes:
    (length,) = struct.unpack(">I", _exactly(session, 4))
    return _exactly(session, length)


def _exactly(session: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = session.recv(size)
        if not part:
            raise SubjectFailed("its control socket was closed in the middle of a session")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
