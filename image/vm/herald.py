"""The host's end of what a guest tells of its boot: systemd's notification protocol, each message a connection.

A guest that was given the credential `vmm.notify_socket` (`vsock:2:PORT`) connects to that port of the host, says its
lines and hangs up. Behind vhost-device-vsock, Firecracker and Cloud Hypervisor the port is a Unix socket beside theirs.
"""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING

from image.vm.failure import Failure

if TYPE_CHECKING:
    from pathlib import Path

_MESSAGE_MAX = 65536
_BACKLOG = 64
_MESSAGE_SECONDS = 5.0
_PRIVILEGED = 1024


class Herald:
    """`seen` is all that was told: the last value of each word, and when it came by the host's clock.

    `cid`: of the guest that is heard, where all guests of this machine can reach the port; behind a hybrid socket only
    its own guest can.
    """

    def __init__(self, hybrid: Path | None, port: int, cid: int = 0) -> None:
        self.port = port
        self.cid = cid
        self.seen: dict[str, str] = {}
        self.at: dict[str, float] = {}
        self.messages: list[str] = []
        if hybrid is not None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._sock.bind(f"{hybrid}_{port}")
        else:
            self._sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._sock.bind((socket.VMADDR_CID_ANY, port))
        self._sock.listen(_BACKLOG)

    @property
    def credential(self) -> str:
        return f"vsock-stream:2:{self.port}"

    def fileno(self) -> int:
        """Readable when there is a message to read."""
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def forget(self) -> None:
        """A machine that starts again tells it all again."""
        self.seen.clear()
        self.at.clear()

    def wait(self, word: str, seconds: float, ended: int | None = None) -> str:
        """Until that word has been told. `ended`: a pidfd; what it is of must not end before."""
        due = time.monotonic() + seconds
        while word not in self.seen:
            watched = [self._sock.fileno(), *([] if ended is None else [ended])]
            ready, _, _ = select.select(watched, [], [], max(0.0, due - time.monotonic()))
            if self._sock.fileno() in ready:
                self.read()
            elif ready:
                raise Failure(f"the machine ended before it said {word}")
            else:
                raise Failure(f"the machine has not said {word} within {seconds:.0f} s")
        return self.seen[word]

    def read(self) -> dict[str, str]:
        """One message; there is one. Its words; none of somebody who is not heard."""
        sock, address = self._sock.accept()
        with sock:
            if self.cid and not is_pid_1s(address, self.cid):
                return {}
            sock.settimeout(_MESSAGE_SECONDS)
            data = b""
            try:
                while len(data) < _MESSAGE_MAX and (piece := sock.recv(_MESSAGE_MAX)):
                    data += piece
            except TimeoutError:
                pass  # what was told so far counts
        text = data.decode("utf-8", "replace")
        self.messages.append(text)
        lines = (line.partition("=") for line in text.splitlines())
        words = {name: value for name, equals, value in lines if equals}
        self.seen |= words
        self.at |= dict.fromkeys(words, time.monotonic())
        return words


def is_pid_1s(address: tuple[int, int], cid: int) -> bool:
    """Is it of that guest, and from a port that only its root can have? PID 1 tells from such a one."""
    return address[0] == cid and address[1] < _PRIVILEGED
