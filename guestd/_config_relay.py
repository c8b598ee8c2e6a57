"""Settings of relays and forwards: the table `relay`, an entry for each, and those that come ready to be switched on.

An entry says only what is different from the ready one of its name; `true` alone switches that on, an address alone
says where it leads.
"""

from __future__ import annotations

from guestd._config_declare import choice, key, number, seconds, size
from guestd._config_kinds import Boolean, Invalid, TableOf, Text, Wrong, shown, toml_value
from guestd._config_section import Key, Record, Section
from guestd._config_system import VariableName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd._config_kinds import Value
    from guestd.wire.address import Address

_NAME_MAX = 32
#: What stands for the relay's own address in the variables it sets.
URL = "{url}"


class RelayAddress(Text):
    """Where a relay listens, or leads to: parsed, or None where nothing is said."""

    def __init__(self, *schemes: str) -> None:
        self._schemes = schemes

    def describe(self) -> str:
        forms = {"tcp": "tcp:HOST:PORT", "unix": "unix:PATH", "vsock": "vsock:CID:PORT (2 is the host)"}
        return " or ".join(forms[each] for each in self._schemes) + ', or "" for that of the ready one'

    def read(self, given: object) -> Value:
        # Late: most configurations have no relay.
        from guestd.errors import BadRequest
        from guestd.wire.address import VSOCK_ANY, Address, parse_address

        if given in ("", None):
            return None
        if isinstance(given, Address):
            return given
        if not isinstance(given, str):
            raise self.invalid(given)
        try:
            address = parse_address(given)
        except BadRequest as error:
            what, _, _ = error.message.partition("; ")
            raise Invalid(Wrong(f"cannot be used: {what}", f"expected {self.describe()}")) from None
        if address.scheme not in self._schemes or address.cid == VSOCK_ANY:
            raise self.invalid(given)
        if address.scheme != "unix" and not address.port:
            raise Invalid(
                Wrong(f"is {shown(given)}, without a port", "programs are told the port: write one")
            )
        return address

    def show(self, value: Value) -> str:
        return '""' if value is None else shown(str(value))


class RelayName(Text):
    def describe(self) -> str:
        return f"a name of up to {_NAME_MAX} letters, digits, _ and -"

    def accepts(self, text: str) -> bool:
        plain = text.replace("-", "").replace("_", "")
        return len(text) <= _NAME_MAX and text.isascii() and plain.isalnum()


class Relay(Section):
    """One relay: a guest address whose connections are passed on."""

    enabled: bool = key("It is switched on.", Boolean(), default=True)
    listen: Address | None = key(
        "Where programs of the guest connect.", RelayAddress("tcp", "unix"), "", "that of the ready one"
    )
    to: Address | None = key(
        "Where their connections lead.", RelayAddress("vsock", "tcp", "unix"), "", "that of the ready one"
    )
    kind: str = choice("What passes.", "", "", "stream", "http", "otlp")
    preface: str = choice("What the target is told of the session first.", "none", "none", "proxy-v2")
    connections: int = number("Connections at once.", 256, 1, 65536)
    idle: float = seconds(
        "A connection of which nothing moves for so long is ended.", "1h", "0", "3650d", "never"
    )
    connect_timeout: float = seconds("How long the target may take to answer.", "5s", "100ms", "10m")
    public: bool = key("It may listen where other machines reach it.", Boolean(), default=False)
    body: int = size("otlp: the longest body that is taken, unpacked.", "4 MiB", "64 KiB", "64 MiB")
    attributes: Mapping[str, str] = key(
        "otlp: resource attributes, above guestd's own.", TableOf(Text(), Text()), {}, "only guestd's own"
    )
    env: Mapping[str, str] = key(
        "Variables that jobs get; {url} is where it listens.",
        TableOf(Text(), VariableName()), {}, "those of the ready one",
    )  # fmt: skip


class RelayEntry(Record):
    """A relay as a table; `true` and `false`; or the address it leads to."""

    def __init__(self) -> None:
        super().__init__(Relay)

    def describe(self) -> str:
        return f"true, an address such as vsock:2:4318, or {super().describe()}"

    def read(self, given: object) -> Value:
        if isinstance(given, bool):
            given = {"enabled": given}
        elif isinstance(given, str):
            given = {"to": given}
        relay: Value = super().read(given)
        wrong = [each for each in (_reach(relay),) if each is not None]
        if wrong:
            raise Invalid(*wrong)
        return relay

    def parse(self, text: str) -> Value:
        if text.lstrip().startswith("{"):
            return self.read(toml_value(text, self))
        try:
            return self.read(Boolean().parse(text))
        except Invalid:
            return self.read(text)

    def show(self, value: Value) -> str:
        said: list[str] = []
        for name, what in vars(Relay).items():
            if isinstance(what, Key) and getattr(value, name) != what.kind.read(what.default):
                said.append(f"{name} = {what.kind.show(getattr(value, name))}")
        return f"{{{', '.join(said)}}}" if said else "true"


class RelayTable(TableOf):
    """The relays by name. One that has no ready one of its name has to say where it listens and leads to."""

    def __init__(self) -> None:
        super().__init__(RelayEntry(), RelayName(), lower=True)


class Forward(Section):
    """Connections of the host's into the guest (`guestctl forward`)."""

    connections: int = number("Connections at once, of all clients together.", 4096, 1, 65536)
    idle: float = seconds(
        "A connection of which nothing moves for so long is ended; a request may say otherwise.",
        "0", "0", "3650d", "never",
    )  # fmt: skip
    connect_timeout: float = seconds(
        "How long a program in the guest may take to answer.", "10s", "100ms", "10m"
    )


def relays_together(relays: Mapping[str, Relay]) -> list[tuple[str, str, str]]:
    """What is wrong only in combination: (the relay, what is wrong, what would be right)."""
    from guestd.relay.plan import READY, plan_of

    found: list[tuple[str, str, str]] = []
    taken: dict[object, str] = {}
    for name, relay in relays.items():
        ready = READY.get(name)
        if ready is None and (relay.listen is None or relay.to is None):
            missing = "listen" if relay.listen is None else "to"
            found.append((
                name, f"has no `{missing}`, and no ready relay is called that",
                f"give `listen` and `to`, or mean one of {', '.join(READY)}",
            ))  # fmt: skip
            continue
        if not relay.enabled:
            continue
        plan = plan_of(name, relay)
        if plan.listen in taken:
            found.append(
                (name, f"listens on {plan.listen}, as {taken[plan.listen]} does", "choose another address")
            )
        taken[plan.listen] = name
        bad = [each for each, text in relay.env.items() if URL in text and plan.listen.scheme != "tcp"]
        if bad:
            found.append(
                (name, f"sets {bad[0]} to a URL, and listens on {plan.listen}", "let it listen on tcp:")
            )
    return found


def _reach(relay: Relay) -> Wrong | None:
    from guestd.config import is_loopback

    listen = relay.listen
    if listen is not None and listen.scheme == "tcp" and not relay.public and not is_loopback(listen.host):
        return Wrong(
            f"has {listen}, which others than this machine can reach", "listen on tcp:127.0.0.1:PORT, or set public",
            ("listen",),
        )  # fmt: skip
    return None
