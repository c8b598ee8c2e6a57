"""The listening sockets. They are opened before anything slow, so that who connects early waits in the backlog.

They stay open for good: a client that comes while no `serve` runs waits for the next one. An address that cannot be had
yet (vsock before its module, a directory not mounted) is tried again before each start of `serve`; what is wrong with
an address itself, `serve` says when it reads the same settings.
"""

from __future__ import annotations

import _socket
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guestd.config import Settings
    from guestd.init.console import Say
    from guestd.wire.address import Address

_BACKLOG = 512
_FIRST_PASSED_FD = 3
_DEFAULT_PORT = 1024
_VSOCK_ANY = 0xFFFFFFFF
#: What `serve` knows them by: those for whoever comes from outside, and the one for the guest's own programs.
LISTEN_NAME, AGENT_NAME = "listen", "agent"
_PASSED = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")

#: ("unix", path), ("vsock", cid, port), ("tcp", host, port), or ("", what is wrong)
Place = tuple[str | int, ...]


class Door:
    """One address, its socket as soon as there is one, and what was in the way last time."""

    __slots__ = ("fd", "name", "passed_as", "place", "problem", "public", "silent")

    def __init__(
        self,
        name: str,
        place: Place,
        *,
        silent: bool = False,
        passed_as: str = LISTEN_NAME,
        public: bool = False,
    ) -> None:
        self.name = name
        self.place = place
        self.fd = -1
        self.problem = ""
        #: Not asked for by anybody, so nobody is told where there is none.
        self.silent = silent
        #: What serve is told of it; and whether any user may connect.
        self.passed_as = passed_as
        self.public = public


class Doors:
    def __init__(self, settings: Settings, flags: Sequence[str], given: Sequence[tuple[int, str]]) -> None:
        self._settings = settings
        self._given = [(fd, AGENT_NAME if name == AGENT_NAME else LISTEN_NAME) for fd, name in given]
        self._doors: list[Door] = []
        self._choose(settings, flags)
        if settings.agent.socket and not any(name == AGENT_NAME for _, name in self._given):
            path = f"{settings.runtime_dir}/agent.sock"
            self._doors.append(Door(f"unix:{path}", ("unix", path), passed_as=AGENT_NAME, public=True))

    def _choose(self, settings: Settings, flags: Sequence[str]) -> None:
        if any(name == LISTEN_NAME for _, name in self._given):
            return
        if flags:
            self._doors = [Door(text, _place(text)) for text in flags]
        elif settings.listen:
            self._doors = [Door(str(address), _known(address)) for address in settings.listen]
        else:
            path = f"{settings.runtime_dir}/guestd.sock"
            self._doors = [
                Door(f"unix:{path}", ("unix", path)),
                Door(f"vsock:any:{_DEFAULT_PORT}", ("vsock", _VSOCK_ANY, _DEFAULT_PORT), silent=True),
            ]

    def open(self, say: Say) -> None:
        """Open what is not open yet. The same trouble is told once."""
        opened: list[str] = []
        for door in self._doors:
            if door.fd >= 0:
                continue
            try:
                door.fd = _open(door.place, self._settings, public=door.public)
                # Who is told where to find it is who comes from outside.
                if not door.public:
                    opened.append(door.name)
            except (OSError, _Refused) as error:
                said = (error.strerror if isinstance(error, OSError) else None) or str(error)
                if said != door.problem and not door.silent:
                    say(f"cannot listen on {door.name} yet: {said}")
                door.problem = said
        if opened:
            say(f"listening on {', '.join(opened)}")

    @property
    def fds(self) -> list[tuple[int, str]]:
        """Each with the name that `serve` is told."""
        return [*self._given, *((door.fd, door.passed_as) for door in self._doors if door.fd >= 0)]

    def close(self) -> None:
        """Nobody is to connect any more, and to find a name that leads nowhere."""
        for door in self._doors:
            if door.fd < 0:
                continue
            os.close(door.fd)
            door.fd = -1
            if door.place[0] == "unix":
                try:
                    os.unlink(str(door.place[1]))
                except OSError:
                    # Somebody else has taken it away, or the whole directory: it is gone.
                    continue
        for fd, _ in self._given:
            os.close(fd)
        self._given.clear()


class _Refused(Exception):
    """Not for the world to change: it would be wrong to listen there."""


def take_given(environ: Mapping[str, str]) -> list[tuple[int, str]]:
    """The descriptors that whoever started PID 1 has handed over, with their names; they are for `serve`."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[tuple[int, str]] = []
    for at in range(int(count) if count.isdecimal() else 0):
        fd = _FIRST_PASSED_FD + at
        os.set_inheritable(fd, False)
        found.append((fd, names[at] if at < len(names) and names[at] else "stored"))
    return found


def forget_given(environ: dict[str, str]) -> None:
    for name in _PASSED:
        environ.pop(name, None)


def is_listening(fd: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    sock = _socket.socket(fileno=fd)
    try:
        return bool(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
    except OSError:
        return False
    finally:
        sock.detach()


def _place(text: str) -> Place:
    """Of a flag. The plain forms are read here: the reader of all of them imports typing, which costs 8 ms."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and 0 < len(rest.encode("utf-8", "surrogateescape")) <= 107 and "\0" not in rest:
        return "unix", rest
    first, _, port = rest.partition(":")
    if port.isascii() and port.isdecimal() and len(port) < 6:
        if scheme == "vsock" and first == "any":
            return "vsock", _VSOCK_ANY, int(port)
        if scheme == "tcp" and first == "127.0.0.1" and int(port) < 65536:
            return "tcp", first, int(port)
    from guestd.errors import GuestdError
    from guestd.wire.address import parse_address

    try:
        return _known(parse_address(text))
    except GuestdError as error:
        return "", error.message


def _known(address: Address) -> Place:
    match address.scheme:
        case "unix":
            return "unix", address.path
        case "vsock":
            return "vsock", address.cid, address.port
        case "tcp":
            return "tcp", address.host, address.port
        case _:
            return "", "guestd listens on unix, vsock and tcp"


def _open(place: Place, settings: Settings, *, public: bool = False) -> int:
    scheme, *where = place
    match scheme:
        case "unix":
            return _unix(str(where[0]), settings, public=public or bool(settings.access.unix_uids))
        case "vsock":
            return _listening(_socket.AF_VSOCK, tuple(where))
        case "tcp":
            return _tcp(str(where[0]), int(where[1]), settings)
        case _:
            raise _Refused(str(where[0]))


def _listening(family: int, where: str | tuple[str | int | bytes, ...]) -> int:
    sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        if family in {_socket.AF_INET, _socket.AF_INET6}:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock.detach()


def _unix(path: str, settings: Settings, *, public: bool) -> int:
    folder = os.path.dirname(path)
    if folder == settings.runtime_dir:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    _clear_stale(path)
    # The mode is right from the first moment. Where other users are let in by name, all may knock, and are asked.
    before = os.umask(0o111 if public else 0o177)
    try:
        return _listening(_socket.AF_UNIX, path)
    finally:
        os.umask(before)


def _clear_stale(path: str) -> None:
    """A socket that nobody listens on any more is in the way; one that somebody listens on is somebody's."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise _Refused("there is a file of that name that is no socket")
    except FileNotFoundError:
        return
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:
        # A full backlog is somebody's too.
        pass
    finally:
        probe.close()
    raise _Refused("another process listens there; is guestd running already?")


def _tcp(host: str, port: int, settings: Settings) -> int:
    from guestd.config import is_loopback

    if not is_loopback(host) and not settings.token_file:
        raise _Refused("it is reachable from beyond this machine and there is no token; set token_file")
    # As bytes: for text Python imports its IDNA codec.
    infos = _socket.getaddrinfo(host.encode(), port, 0, _socket.SOCK_STREAM, 0, _socket.AI_PASSIVE)
    family, _, _, _, where = infos[0]
    # Of IPv6 flow and scope, too; never the numbers of a family that Python does not know.
    return _listening(family, tuple(where))
