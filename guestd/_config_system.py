"""Kinds of settings that name things of the system: addresses, capabilities, resource limits, variables."""

from __future__ import annotations

from guestd._config_kinds import Invalid, Kind, Text, Wrong, as_list, nearest, shown, toml_value
from guestd._config_units import DIGITS_MAX, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guestd._config_kinds import Value

#: How the kernel and getrlimit(2) write "no limit".
UNLIMITED = -1
#: In the order of their numbers, from linux/capability.h.
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
    "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
    "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN",
    "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
#: What Python's `resource` can set, by its name in lower case.
RLIMITS = (
    "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip


class Capability(Text):
    def describe(self) -> str:
        return 'the name of a capability as in capabilities(7), such as "CAP_NET_RAW", or "all"'

    def accepts(self, text: str) -> bool:
        return text == "all" or text in CAPABILITIES

    def invalid(self, given: object) -> Invalid:
        invalid = super().invalid(given)
        near = nearest(given.upper(), CAPABILITIES) if isinstance(given, str) else None
        if near:
            invalid.wrong[0].fix += f'; did you mean "{near}"?'
        return invalid


class Location(Kind):
    """An address to listen on, parsed."""

    def describe(self) -> str:
        return "unix:PATH, vsock:CID:PORT (CID may be any) or tcp:HOST:PORT"

    def read(self, given: object) -> Value:
        # Late: most configurations name no address, and `guestd init` then needs no part of the protocol.
        from guestd.errors import BadRequest
        from guestd.wire.address import parse_address

        if not isinstance(given, str):
            raise self.invalid(given)
        try:
            address = parse_address(given)
        except BadRequest as error:
            what, _, _ = error.message.partition("; ")
            raise Invalid(Wrong(f"cannot be used: {what}", f"expected {self.describe()}")) from None
        if address.scheme not in {"unix", "vsock", "tcp"}:
            what = f"is {shown(given)}, which is where a client connects; WebSocket clients come to the same sockets"
            raise Invalid(Wrong(what, f"expected {self.describe()}"))
        return address

    def show(self, value: Value) -> str:
        return str(value)


class User(Text):
    def describe(self) -> str:
        return "the name or number of a user"

    def accepts(self, text: str) -> bool:
        # The last number is how the kernel writes "no change".
        return not text.isdecimal() or (len(text) <= DIGITS_MAX and int(text) < 2**32 - 1)


class VariableName(Text):
    def describe(self) -> str:
        return "the name of a variable: not empty, without ="

    def accepts(self, text: str) -> bool:
        return bool(text) and "=" not in text


class KernelValue(Text):
    """What is written into a file of the kernel's: a number there is as good as its digits."""

    def describe(self) -> str:
        return "text or a whole number"

    def read(self, given: object) -> str:
        return super().read(str(given) if isinstance(given, int) and not isinstance(given, bool) else given)


class IpAddress(Text):
    def __init__(self, *, prefix: bool) -> None:
        self._prefix = prefix

    def describe(self) -> str:
        return "an IP address with its prefix, such as 10.0.0.2/24" if self._prefix else "an IP address"

    def accepts(self, text: str) -> bool:
        # Late: few have one, and it brings re.
        import ipaddress

        try:
            ipaddress.ip_interface(text) if self._prefix else ipaddress.ip_address(text)
        except ValueError:
            return False
        # A zone, as in fe80::1%eth0, is not part of what the kernel is told.
        return ("/" in text) == self._prefix and "%" not in text


class Word(Text):
    """A name of the kernel's: of a module, an interface, a host."""

    def describe(self) -> str:
        return "a name without blanks"

    def accepts(self, text: str) -> bool:
        return not text or (text.isprintable() and not any(each.isspace() or each == "/" for each in text))


class RlimitName(Text):
    def describe(self) -> str:
        return "one of " + ", ".join(RLIMITS)

    def accepts(self, text: str) -> bool:
        return text in RLIMITS


class Rlimit(Kind):
    """A pair of soft and hard limit. One value sets both, as ulimit(1) does."""

    def describe(self) -> str:
        return 'a number, a size such as "64 MiB", "unlimited", or [SOFT, HARD] of these, SOFT not above HARD'

    def read(self, given: object) -> tuple[int, int]:
        pair = as_list(given)
        limits = [_limit(each) for each in ([given, given] if pair is None else pair)]
        if len(limits) == 2:
            soft, hard = limits
            if soft is not None and hard is not None and (hard == UNLIMITED or UNLIMITED < soft <= hard):
                return soft, hard
        raise self.invalid(given)

    def parse(self, text: str) -> tuple[int, int]:
        if text.startswith("["):
            return self.read(toml_value(text, self))
        soft, colon, hard = text.partition(":")
        return self.read([soft, hard] if colon else text)

    def show(self, value: Value) -> str:
        words = ["unlimited" if limit == UNLIMITED else str(limit) for limit in value]
        return words[0] if words[0] == words[1] else f"[{', '.join(words)}]"


def _limit(given: Value) -> int | None:
    if given == "unlimited":
        return UNLIMITED
    size = parse_size(given) if isinstance(given, str) else given
    # Above this getrlimit(2) would say RLIM_INFINITY, or Python could not pass it.
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 else None
