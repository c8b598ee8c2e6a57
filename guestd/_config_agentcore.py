"""Settings of the HTTP surface that clients of Amazon Bedrock AgentCore Runtime speak to."""

from __future__ import annotations

from guestd._config_declare import choice, key, number, path, seconds, size
from guestd._config_kinds import Boolean, Kind, ListOf, Text
from guestd._config_section import Section
from guestd._config_system import User
from guestd._config_units import is_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guestd._config_kinds import Value

_PORT_MAX = 65535


class PortRange(Kind):
    """A port, or all from one to another. As a value: the first and the last."""

    def describe(self) -> str:
        return "a port such as 8080, or a range such as 8000-12000"

    def read(self, given: object) -> tuple[int, int]:
        text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
        if not isinstance(text, str):
            raise self.invalid(given)
        first, dash, last = text.partition("-")
        low, high = _port(first), _port(last if dash else first)
        if low is None or high is None or low > high:
            raise self.invalid(given)
        return low, high

    def show(self, value: Value) -> str:
        first, last = value
        return str(first) if first == last else f'"{first}-{last}"'


def _port(text: str) -> int | None:
    text = text.strip()
    number = int(text) if is_whole(text) and len(text) <= 5 else 0
    return number if 0 < number <= _PORT_MAX else None


class SessionId(Text):
    """What can stand in a header."""

    def describe(self) -> str:
        return 'printable ASCII without blanks, or "" for the default'

    def accepts(self, text: str) -> bool:
        return text.isascii() and text.isprintable() and " " not in text


class AgentCore(Section):
    """What clients of AgentCore Runtime find here, over HTTP."""

    enabled: bool = key("Whether there is this surface at all.", Boolean(), default=True)
    token_file: str = path(
        "The file with the bearer token that this surface asks for, whichever way a client comes.",
        "",
        "as the listener has it",
    )
    session_id: str = key(
        "The only session id that is served; requests with another one are told that it is not here.",
        SessionId(),
        "",
        "any, and the client's own is repeated",
    )
    user: str = key("Whom its commands and shells run as.", User(), "", "root where guestd is root")
    shells: int = number("Shells of the session above which it opens no more.", 10, 0, 100_000)
    shells_over: str = choice("The status that the one shell too many is refused with.", "424", "424", "429")
    replay: int = size("Output of a shell that is shown again to who comes back.", "256 KiB", "0", "1 GiB")
    frames: int = number(
        "Frames a second that one client of a shell may send; 0 is any number.", 250, 0, 100_000
    )
    connection_lifetime: float = seconds(
        "How long one connection to a shell may last; the shell itself goes on.", "1h", "0", "30d", "for ever"
    )
    spool: int = size(
        "Output of each stream of a command that waits in a file for a client that asks again; 0 is none.",
        "64 MiB", "0", "16 GiB",
    )  # fmt: skip
    protocol: str = choice(
        "What the workload speaks, which says where: http on 8080, mcp on 8000, a2a on 9000.",
        "http", "http", "mcp", "a2a",
    )  # fmt: skip
    port: int = number("Where the workload listens, if not there; 0 is there.", 0, 0, _PORT_MAX)
    ports: tuple[tuple[int, int], ...] = key(
        "Ports of the guest that can be reached as /ports/PORT/….",
        ListOf(PortRange()),
        ("8000-12000",),
        "none",
    )
    connect: float = seconds(
        "How long a request waits for a workload that is just starting to listen.", "10s", "0", "10m"
    )
    stall: float = seconds(
        "How long a client may take nothing of an answer, or send nothing of a request, that it has begun.",
        "5m", "1s", "1d",
    )  # fmt: skip
    keep_alive: float = seconds("How long a connection may wait for its next request.", "75s", "1s", "1d")
