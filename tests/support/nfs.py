"""A server of NFS 4 on the loopback: nfs-ganesha in user space, with no rpcbind and no part in the kernel."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from image.vm.failure import find
from tests.support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_SECONDS = 60.0
_CONFIG = """
NFS_CORE_PARAM {{
    NFS_Protocols = 4; NFS_Port = {port}; MNT_Port = {other}; Bind_addr = 127.0.0.1;
    Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
}}
NFSV4 {{
    Minor_Versions = 1, 2; Only_Numeric_Owners = true;
    RecoveryBackend = fs; RecoveryRoot = {place}/recovery; Grace_Period = 10; Lease_Lifetime = 10;
}}
EXPORT {{
    Export_Id = 1; Path = {place}/export; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;
    Protocols = 4; Transports = TCP; SecType = sys; FSAL {{ Name = VFS; }}
}}
"""


class Server:
    """It can be killed and started again: it is the same one to its clients, which take up what they had open."""

    def __init__(self, place: Path) -> None:
        self.port = free_port()
        self.export = place / "export"
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        for each in (self.export, place / "recovery"):
            each.mkdir()
        text = _CONFIG.format(port=self.port, other=free_port(), place=place)
        (place / "ganesha.conf").write_text(text)

    def start(self) -> None:
        """Returns when it takes connections."""
        command = [find("ganesha.nfsd"), "-F"]
        for letter, name in (("f", "ganesha.conf"), ("L", "log"), ("p", "pid")):
            command += [f"-{letter}", str(self._place / name)]
        with (self._place / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._place
            )
        due = time.monotonic() + _SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            assert self._process.poll() is None, self.log
            assert time.monotonic() < due, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash: no word to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        return "".join(
            path.read_text(errors="replace")[-4000:]
            for path in (self._place / "log", self._place / "output")
            if path.exists()
        )


@contextlib.contextmanager
def serving(place: Path) -> Generator[Server]:
    """A server that runs, with its `export` in that folder."""
    server = Server(place)
    try:
        server.start()
        yield server
    finally:
        server.kill()
