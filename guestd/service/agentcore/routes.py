"""Which request means what, by its path alone. Pure.

An ARN comes percent-encoded or plain, with its own colons and slash. It is not looked at: whose runtime this is, the
control plane has decided when it sent the request here.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

COMMANDS, SHELLS, STOP, WORKLOAD, PING, SOCKET, PORT, LIVE, READY = (
    "commands", "ws/shells", "stopruntimesession", "invocations", "ping", "ws", "ports", "healthz", "readyz",
)  # fmt: skip
UNKNOWN = "unknown"
_PREFIX = "/runtimes/"
#: What a request for a runtime may end with, the longest first.
_OPERATIONS = (SHELLS, COMMANDS, STOP, WORKLOAD, PING, SOCKET, PORT)
#: What may be asked for without an ARN: the container's own contract.
_PLAIN = {f"/{name}": name for name in (WORKLOAD, PING, SOCKET, LIVE, READY)}


class Route(NamedTuple):
    """`rest` is what follows, as it came: for what is passed on. `arn` is None where none was given."""

    operation: str
    arn: str | None = None
    rest: str = ""
    port: int = 0
    query: str = ""

    def parameter(self, name: str) -> str | None:
        """A query parameter, upper and lower case alike."""
        for key, value in parse_qsl(self.query, keep_blank_values=True):
            if key.lower() == name.lower():
                return value
        return None


def parse(target: str) -> Route | None:
    """The route of a request's target; None when it is nothing of this surface."""
    path, _, query = target.partition("?")
    if path.startswith(_PREFIX):
        return _of_a_runtime(path[len(_PREFIX) :], query)
    if path in _PLAIN:
        return Route(_PLAIN[path], query=query)
    first, _, rest = path[1:].partition("/")
    if first == PORT:
        return _port(None, rest, query)
    if first == WORKLOAD:
        return Route(WORKLOAD, rest=f"/{rest}", query=query)
    return None


def _of_a_runtime(path: str, query: str) -> Route:
    name, slash, rest = path.partition("/")
    if name.startswith("arn:") and name.endswith(":runtime"):
        # A plain ARN has one slash of its own.
        resource, slash, rest = rest.partition("/")
        name = f"{name}/{resource}"
    arn = unquote(name)
    if not slash or not arn:
        return Route(UNKNOWN, arn, query=query)
    for operation in _OPERATIONS:
        if rest == operation:
            return Route(operation, arn, query=query)
        if operation in {WORKLOAD, PORT} and rest.startswith(f"{operation}/"):
            more = rest[len(operation) + 1 :]
            return (
                _port(arn, more, query)
                if operation == PORT
                else Route(WORKLOAD, arn, f"/{more}", query=query)
            )
    return Route(UNKNOWN, arn, query=query)


def _port(arn: str | None, rest: str, query: str) -> Route:
    number, slash, more = rest.partition("/")
    if not (number.isascii() and number.isdecimal() and len(number) <= 5 and 0 < int(number) <= 65535):
        return Route(UNKNOWN, arn, query=query)
    return Route(PORT, arn, f"/{more}" if slash else "", int(number), query)
