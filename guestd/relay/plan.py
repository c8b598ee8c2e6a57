"""What a relay is in the end: the settings of one, on top of the ready one of its name. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from guestd.wire.address import Address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd._config_relay import Relay

#: The machine this one runs on, as vsock counts.
HOST_CID = 2
#: `stream` passes bytes on; `http` too, and tells a program in HTTP why there is nothing; `otlp` reads what passes.
STREAM, HTTP, OTLP = "stream", "http", "otlp"
_NO_PROXY = "localhost,127.0.0.1,::1"


class Ready(NamedTuple):
    """One that comes ready to be switched on."""

    port: int
    kind: str
    env: dict[str, str]


READY = {
    "otlp": Ready(
        4318,
        OTLP,
        # Many an SDK would speak gRPC if it was not told.
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ),
    "mcp": Ready(4319, HTTP, {"MCP_SERVER_URL": "{url}/mcp"}),
    "llm": Ready(
        4320,
        HTTP,
        {
            "ANTHROPIC_BASE_URL": "{url}",
            "OPENAI_BASE_URL": "{url}/v1",
            "OPENAI_API_BASE": "{url}/v1",
            "GOOGLE_GEMINI_BASE_URL": "{url}",
        },
    ),
    "egress": Ready(
        3128,
        HTTP,
        # Upper case for some, lower case for others; curl takes http_proxy in lower case alone.
        {
            name: value
            for upper, value in (
                ("HTTP_PROXY", "{url}"), ("HTTPS_PROXY", "{url}"), ("ALL_PROXY", "{url}"), ("NO_PROXY", _NO_PROXY),
            )
            for name in (upper, upper.lower())
        },
    ),
}  # fmt: skip


class Plan(NamedTuple):
    """A relay with nothing left open."""

    name: str
    listen: Address
    to: Address
    kind: str
    preface: str
    connections: int
    idle: float
    connect_timeout: float
    body: int
    attributes: Mapping[str, str]
    env: Mapping[str, str]


def plan_of(name: str, relay: Relay) -> Plan:
    """Fill in what the settings do not say."""
    ready = READY.get(name)
    listen, to = relay.listen, relay.to
    if ready is not None:
        listen = listen or Address("tcp", host="127.0.0.1", port=ready.port)
        to = to or Address("vsock", cid=HOST_CID, port=ready.port)
    if listen is None or to is None:
        raise ValueError(name)
    env = dict(relay.env)
    if ready is not None:
        env = {**{each: text for each, text in ready.env.items() if _can(listen, text)}, **env}
    return Plan(
        name=name, listen=listen, to=to, kind=relay.kind or (ready.kind if ready else STREAM), preface=relay.preface,
        connections=relay.connections, idle=relay.idle, connect_timeout=relay.connect_timeout, body=relay.body,
        attributes=relay.attributes,
        env={each: text.replace("{url}", url_of(listen)) for each, text in env.items() if text},
    )  # fmt: skip


def plans_of(relays: Mapping[str, Relay]) -> list[Plan]:
    """All that are switched on."""
    return [plan_of(name, relay) for name, relay in relays.items() if relay.enabled]


def environment_of(relays: Mapping[str, Relay]) -> dict[str, str]:
    """The variables that tell programs of the relays; below what the session and the request say."""
    env: dict[str, str] = {}
    for plan in plans_of(relays):
        env.update(plan.env)
    return env


def url_of(listen: Address) -> str:
    """Where a program connects, as a URL. Where it listens everywhere, it is reached at home."""
    if listen.scheme != "tcp":
        return ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104  compared, not listened on
    return f"http://[{host}]:{listen.port}" if ":" in host else f"http://{host}:{listen.port}"


def _can(listen: Address, text: str) -> bool:
    return listen.scheme == "tcp" or "{url}" not in text
