"""The network that the kernel command line or the settings give: loopback, one interface, routes, resolv.conf.

No DHCP: a microVM is told its address, by `ip=` as the kernel documents it (Documentation/admin-guide/nfs/nfsroot.rst)
or by `init.address`, `init.gateway` and `init.dns`, which win. A kernel with CONFIG_IP_PNP has done what `ip=` says
already; what is there already is no mistake.

rtnetlink for all of it: one way for both families.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guestd.init.console import Say

_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 20, 24
_REQUEST, _ACK, _CREATE = 1, 4, 0x400
_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5
_MAIN_TABLE, _FROM_BOOT, _UNICAST, _ONLINK = 254, 3, 1, 4
_ERROR = 2
_NETLINK_ROUTE = 0
_ETHERNET = "1"
#: How `ip=` says that there is none.
_NONE = "0.0.0.0"  # noqa: S104  nobody binds to it
_RESOLV = "/etc/resolv.conf"
#: Autoconfiguration that `ip=` may ask of the kernel.
_BY_KERNEL = {"on", "any", "dhcp", "bootp", "rarp", "both"}


class Wanted:
    """What is to be set up, out of `ip=` and the settings; an empty one is nothing."""

    def __init__(
        self,
        *,
        interface: str = "",
        addresses: tuple[str, ...] = (),
        gateways: tuple[str, ...] = (),
        dns: tuple[str, ...] = (),
    ) -> None:
        self.interface = interface
        self.addresses = addresses
        self.gateways = gateways
        self.dns = dns
        self.hostname = ""
        #: What `ip=` asks for that only the kernel can do.
        self.by_kernel = ""

    def fill(self, text: str) -> None:
        """Take what `ip=CLIENT:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF:DNS0:DNS1` says beyond what is known."""
        if text in {"off", "none"}:
            return
        if text in _BY_KERNEL:
            self.by_kernel = text
            return
        client, _, gateway, netmask, hostname, device, auto, *dns = [*text.split(":"), *[""] * 7][:9]
        self.hostname = hostname
        self.interface = self.interface or device
        if auto in _BY_KERNEL and not client:
            self.by_kernel = auto
        if client and not self.addresses:
            self.addresses = (f"{client}/{_prefix_of(netmask, client)}",)
            if gateway and not self.gateways:
                self.gateways = (gateway,)
        if not self.dns:
            self.dns = tuple(each for each in dns if each and each != _NONE)


def _prefix_of(netmask: str, client: str) -> int:
    """Of a netmask, or as the kernel guesses without one: by the class of the address."""
    if netmask.isdecimal():
        return int(netmask)
    if netmask:
        return sum(int(part).bit_count() for part in netmask.split("."))
    first = int(client.partition(".")[0])
    return 8 if first < 128 else 16 if first < 192 else 24


def set_up(wanted: Wanted, say: Say) -> None:
    """The loopback always; the rest where it is asked for. What cannot be done is said, and the rest is done."""
    try:
        link = _Link()
    except OSError as error:
        say(f"no network: {error.strerror}")
        return
    try:
        _try(say, "the loopback could not be brought up", link.up, "lo")
        if wanted.by_kernel:
            say(
                f"ip={wanted.by_kernel} is the kernel's to do (CONFIG_IP_PNP); guestd sets addresses it is told"
            )
        if wanted.addresses:
            _set_addresses(link, wanted, say)
    finally:
        link.close()
    dns = wanted.dns
    if not dns and wanted.by_kernel:
        dns = _told_by_kernel()
    if dns:
        text = "".join(f"nameserver {server}\n" for server in dns)
        _try(say, f"{_RESOLV} could not be written", _write_resolv, text)


def _set_addresses(link: _Link, wanted: Wanted, say: Say) -> None:
    name = wanted.interface or _first_interface()
    if not name:
        say(f"no interface for {' '.join(wanted.addresses)}")
        return
    if not _try(say, f"{name} could not be brought up", link.up, name):
        return
    for address in wanted.addresses:
        _try(say, f"{address} on {name}", link.add_address, name, address)
    for gateway in wanted.gateways:
        _try(say, f"the route through {gateway}", link.add_default, name, gateway)
    say(
        " ".join(
            [name, *wanted.addresses, *(f"through {gateway}" for gateway in wanted.gateways)],
        ),
    )


def _try(say: Say, what: str, act: object, *arguments: str) -> bool:
    assert callable(act)
    try:
        act(*arguments)
    except (OSError, ValueError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        say(f"{what}: {said}")
        return False
    return True


def _first_interface() -> str:
    """The first with a device behind it; where there is none (a container's), the first that looks like Ethernet."""
    names = [name for _, name in sorted(_socket.if_nameindex()) if name != "lo"]
    for name in names:
        if os.path.exists(f"/sys/class/net/{name}/device"):
            return name
    for name in names:
        try:
            with open(f"/sys/class/net/{name}/type", encoding="ascii") as file:
                if file.read().strip() == _ETHERNET:
                    return name
        except OSError:
            continue
    return ""


def _told_by_kernel() -> tuple[str, ...]:
    try:
        with open("/proc/net/pnp", encoding="ascii") as file:
            words = [line.split() for line in file]
    except OSError:
        return ()
    return tuple(each[1] for each in words if len(each) == 2 and each[0] == "nameserver" and each[1] != _NONE)


def _write_resolv(text: str) -> None:
    """Through a link into a place that is not there (a resolver's that does not run here) nothing would be written.

    On a root that is read-only a file of memory is bound over it.
    """
    try:
        if os.path.islink(_RESOLV) and not os.path.exists(_RESOLV):
            os.unlink(_RESOLV)
        with open(_RESOLV, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        if error.errno != errno.EROFS or not os.path.exists(_RESOLV):
            raise
        from guestd.init import libc

        own = "/run/resolv.conf"
        with open(own, "w", encoding="ascii") as file:
            file.write(text)
        libc.mount(own, _RESOLV, None, libc.MS_BIND)


def _parse(address: str) -> tuple[int, bytes, int]:
    """Family, bytes and prefix of ADDRESS or ADDRESS/PREFIX."""
    host, slash, prefix = address.partition("/")
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    packed = _socket.inet_pton(family, host)
    return family, packed, int(prefix) if slash else 8 * len(packed)


class _Link:
    """A netlink socket and the few requests made over it; each waits for the kernel's answer."""

    def __init__(self) -> None:
        self._sock = _socket.socket(
            _socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE
        )
        self._count = 0

    def close(self) -> None:
        self._sock.close()

    def up(self, name: str) -> None:
        self._ask(_NEW_LINK, 0, struct.pack("=BxHiII", 0, 0, _socket.if_nametoindex(name), _UP, _UP))

    def add_address(self, name: str, address: str) -> None:
        family, packed, prefix = _parse(address)
        head = struct.pack("=BBBBI", family, prefix, 0, 0, _socket.if_nametoindex(name))
        self._ask(
            _NEW_ADDRESS, _CREATE, head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        )

    def add_default(self, name: str, gateway: str) -> None:
        """A gateway outside of every network of the interface is reached over it all the same (a /32 on a cloud)."""
        family, packed, _ = _parse(gateway)
        tail = _attribute(_RTA_GATEWAY, packed) + _attribute(
            _RTA_OIF, struct.pack("=I", _socket.if_nametoindex(name))
        )
        for flags in (0, _ONLINK):
            head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _MAIN_TABLE, _FROM_BOOT, 0, _UNICAST, flags)
            try:
                self._ask(_NEW_ROUTE, _CREATE, head + tail)
            except OSError as error:
                if flags or error.errno not in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL}:
                    raise
            else:
                return

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        self._count += 1
        length = 16 + len(body)
        self._sock.send(struct.pack("=IHHII", length, kind, _REQUEST | _ACK | flags, self._count, 0) + body)
        while True:
            answer = self._sock.recv(65536)
            kind, sequence = struct.unpack_from("=HxxI", answer, 4)
            if kind == _ERROR and sequence == self._count:
                number = -struct.unpack_from("=i", answer, 16)[0]
                if number not in {0, errno.EEXIST}:
                    raise OSError(number, os.strerror(number))
                return


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
