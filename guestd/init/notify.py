"""What `serve` tells its service manager: systemd's notification protocol, the manager's side.

Only the serve that runs is heard: the kernel says who sent each message. The socket's file is root's alone, because a
queue that others fill would keep serve's own words, and its watchdog's, waiting.
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CREDENTIALS = struct.Struct("3i")
#: The kernel takes no more in one message (SCM_MAX_FD).
_FDS_MAX = 253
_MESSAGE_MAX = 65536
#: In one turn of the loop: signals and children wait no longer than this takes.
_AT_ONCE = 64
#: The kernel's bound of messages in a queue; it counts for sockets made after it was set.
_DEPTH_FILE, _DEPTH = "/proc/sys/net/unix/max_dgram_qlen", 512


class Message:
    """One datagram: its assignments, the descriptors that came along, and whether the sender sent more of those."""

    __slots__ = ("cut", "fds", "pid", "words")

    def __init__(self, data: bytes, fds: list[int], pid: int, *, cut: bool) -> None:
        self.words: dict[str, str] = {}
        for line in data.decode("utf-8", "replace").split("\n"):
            name, equals, value = line.partition("=")
            if equals:
                self.words[name] = value
        self.fds = fds
        self.pid = pid
        self.cut = cut

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Notify:
    """The socket. `address` is what NOTIFY_SOCKET says."""

    def __init__(self, runtime_dir: str) -> None:
        _deepen()
        self.sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        self.sock.setblocking(False)
        self.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        self.address = f"{runtime_dir}/notify"
        try:
            os.makedirs(runtime_dir, mode=0o755, exist_ok=True)
            if os.path.lexists(self.address):
                os.unlink(self.address)
            before = os.umask(0o177)
            try:
                self.sock.bind(self.address)
            finally:
                os.umask(before)
        except OSError:
            # Nowhere to put a file (a root that is read-only, without /run): the kernel's own name space then.
            self.address = f"@guestd-init-{os.getpid()}-{os.urandom(8).hex()}"
            self.sock.bind(f"\0{self.address[1:]}")

    def read(self, *, everything: bool = False) -> Iterator[Message]:
        """What has come. Whoever takes a message takes its descriptors too."""
        space = _socket.CMSG_SPACE(4 * _FDS_MAX) + _socket.CMSG_SPACE(_CREDENTIALS.size)
        count = 0
        while everything or count < _AT_ONCE:
            count += 1
            try:
                data, ancillary, flags, _ = self.sock.recvmsg(_MESSAGE_MAX, space, _socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            fds: list[int] = []
            pid = 0
            for level, kind, content in ancillary:
                if level != _socket.SOL_SOCKET:
                    continue
                if kind == _socket.SCM_RIGHTS:
                    fds += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
                elif kind == _socket.SCM_CREDENTIALS:
                    pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            yield Message(data, fds, pid, cut=bool(flags & _socket.MSG_CTRUNC))

    def close(self) -> None:
        self.sock.close()
        if not self.address.startswith("@"):
            try:
                os.unlink(self.address)
            except OSError:
                # Gone with its directory.
                return


def _deepen() -> None:
    """Let more than ten messages wait: each job sends several in one go, and the sender of the eleventh would wait."""
    try:
        fd = os.open(_DEPTH_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # no /proc, or not ours to change: then who sends waits for a moment
    try:
        if int(os.read(fd, 32)) < _DEPTH:
            os.pwrite(fd, b"%d" % _DEPTH, 0)
    except OSError:
        return
    finally:
        os.close(fd)


def tell(address: str, state: str) -> None:
    """Pass a word on to a service manager of our own, where PID 1 is not really 1."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(state.encode())
    except OSError:
        # It does not listen: nothing here depends on that.
        pass
    finally:
        sock.close()
