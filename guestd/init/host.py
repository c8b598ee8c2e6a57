"""What the host is told of the boot and the end: systemd's notification protocol over vsock, the guest's side.

The address is the credential `vmm.notify_socket`, as systemd has it: `vsock:CID:PORT`, `vsock-stream:…` and so on, in
the firmware's tables, QEMU's own, a file, or the kernel's command line. Each message is a connection of its own.
Nothing waits for the host: what it does not take is dropped, and the boot goes on.
"""

from __future__ import annotations

import _socket
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from guestd.init.console import Say

NAME = "vmm.notify_socket"
_STREAM, _DGRAM, _SEQPACKET = _socket.SOCK_STREAM, _socket.SOCK_DGRAM, _socket.SOCK_SEQPACKET
#: In the order in which they are tried: what systemd tries, then what every hypervisor has.
_KINDS = {
    "vsock": (_DGRAM, _SEQPACKET, _STREAM), "vsock-stream": (_STREAM,), "vsock-dgram": (_DGRAM,),
    "vsock-seqpacket": (_SEQPACKET,),
}  # fmt: skip
#: Only root can have one of these: how a host can tell PID 1 from a program of its guest.
_PRIVILEGED = range(1023, 511, -1)
#: A host that is not there says so at once; one that hangs is not waited for.
_PATIENCE = 2.0
_WAITING_MAX = 64
_DMI = "/sys/firmware/dmi/entries"
_FW_CFG = f"/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/{NAME}/raw"


def address(environ: Mapping[str, str], cmdline: str) -> str:
    """Of the host's socket, or nothing."""
    for folder in (environ.get("CREDENTIALS_DIRECTORY", ""), "/run/credentials/@system"):
        if folder and (found := _read(f"{folder}/{NAME}")):
            return found
    for text in _firmware():
        for kind in ("io.systemd.credential", "io.systemd.credential.binary"):
            if text.startswith(f"{kind}:{NAME}="):
                return _plain(text.partition("=")[2], kind)
    if found := _read(_FW_CFG):
        return found
    for word in cmdline.split():
        for kind in ("systemd.set_credential", "systemd.set_credential_binary"):
            if word.startswith(f"{kind}={NAME}:"):
                return _plain(word.partition(":")[2], kind)
    return ""


def _plain(value: str, kind: str) -> str:
    if not kind.endswith("binary"):
        return value
    import binascii

    try:
        return binascii.a2b_base64(value).decode("ascii", "replace").strip()
    except ValueError:
        return value


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256).strip("\0 \n")
    except OSError:
        return ""


def _firmware() -> Iterator[str]:
    """The strings of SMBIOS's structures of type 11, which are free for vendors."""
    try:
        names = [name for name in os.listdir(_DMI) if name.startswith("11-")]
    except OSError:
        return
    for name in names:
        try:
            with open(f"{_DMI}/{name}/raw", "rb") as file:
                data = file.read(65536)
        except OSError:
            continue
        # A structure says how long its fixed part is; its strings stand behind that, each ended by a zero.
        for each in data[data[1] :].split(b"\0") if len(data) > 1 else ():
            yield each.decode("ascii", "replace")


def parse(text: str) -> tuple[tuple[int, ...], int, int] | None:
    """Kinds of socket to try, CID and port; None if it says nothing of vsock."""
    kind, _, rest = text.partition(":")
    cid, _, port = rest.partition(":")
    if kind not in _KINDS or not (cid.isdecimal() and port.isdecimal()):
        return None
    return _KINDS[kind], int(cid), int(port)


class Host:
    """Messages on their way to it, one at a time, in order."""

    def __init__(self, text: str, say: Say) -> None:
        self._say = say
        self._waiting: list[bytes] = []
        self._sock: _socket.socket | None = None
        self._kinds: list[int] = []
        self._due = 0.0
        self._told = False
        self._stays = False
        self._last: _socket.socket | None = None
        where = parse(text) if text else None
        if text and where is None:
            say(f"{NAME} is no address of vsock: {text}")
        self._where = where

    @property
    def fd(self) -> int:
        """To be watched for being writable; -1 when nothing is on its way."""
        return -1 if self._sock is None else self._sock.fileno()

    @property
    def due(self) -> float:
        return self._due if self._sock is not None else float("inf")

    def tell(self, text: str) -> None:
        """Soon, and in order."""
        if self._where is None or len(self._waiting) >= _WAITING_MAX:
            return
        self._waiting.append(text.encode())
        if self._sock is None:
            self._next()

    def go(self, now: float) -> None:
        """As far as can be done without waiting."""
        while self._sock is not None:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            if poll.poll(0):
                self._connected(self._sock)
            elif now >= self._due:
                self._failed("it does not answer")
            else:
                return

    def finish(self, text: str, seconds: float) -> None:
        """The last word of all: wait until the host has read it and hung up, but no longer than that.

        What has been sent is in the kernel still, and goes with the power.
        """
        until = time.monotonic() + seconds
        self._stays = True
        self.tell(text)
        while self._sock is not None and (now := time.monotonic()) < until:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            poll.poll(max(0.0, min(until, self._due) - now) * 1000)
            self.go(time.monotonic())
        if self._last is not None:
            poll = select.poll()
            poll.register(self._last, select.POLLIN)
            poll.poll(max(0.0, until - time.monotonic()) * 1000)
            self._last.close()

    def _next(self) -> None:
        assert self._where is not None
        self._kinds = list(self._where[0])
        self._connect()

    def _connect(self) -> None:
        """With the next kind of socket; a kernel or a device has not all of them."""
        assert self._where is not None
        _, cid, port = self._where
        error = OSError(0, "no kind of socket is left")
        while self._kinds:
            kind = self._kinds.pop(0)
            try:
                sock = _socket.socket(_socket.AF_VSOCK, kind | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
            except OSError as problem:
                error = problem
                continue
            try:
                _bind(sock)
                sock.connect((cid, port))
            except BlockingIOError:
                pass
            except OSError as problem:
                sock.close()
                error = problem
                continue
            self._sock = sock
            self._due = time.monotonic() + _PATIENCE
            return
        self._give_up(error.strerror or str(error))

    def _connected(self, sock: _socket.socket) -> None:
        number = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            self._failed(os.strerror(number))
            return
        try:
            sock.send(self._waiting[0], _socket.MSG_NOSIGNAL)
        except OSError as error:
            self._failed(error.strerror or str(error))
            return
        self._sock = None
        del self._waiting[0]
        if self._stays and not self._waiting:
            self._last = sock
            try:
                sock.shutdown(_socket.SHUT_WR)
            except OSError as error:
                # It has hung up already, and read or not: there is no more to say.
                self._say(f"the host has hung up: {error.strerror}")
        else:
            sock.close()
        # The kind that went through is the one.
        assert self._where is not None
        self._where = ((self._where[0][-1 - len(self._kinds)],), *self._where[1:])
        if self._waiting:
            self._next()

    def _failed(self, why: str) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._kinds:
            self._connect()
        else:
            self._give_up(why)

    def _give_up(self, why: str) -> None:
        """Of all that waits: who does not hear one does not hear the next, and comes back for later ones."""
        if not self._told:
            self._say(f"the host does not hear of the boot ({NAME}): {why}")
            self._told = True
        self._waiting.clear()


def _bind(sock: _socket.socket) -> None:
    for port in _PRIVILEGED:
        try:
            sock.bind((_socket.VMADDR_CID_ANY, port))
            return
        except PermissionError:
            return
        except OSError:
            continue


def phase(name: str, at: float) -> str:
    """A line of a message: when that came, by the clock that begins with the kernel."""
    return f"X_GUESTD_{name}_USEC={at * 1e6:.0f}"
