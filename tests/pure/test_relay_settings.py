"""Relays as they are written in settings, and what becomes of it; and what `guestctl forward` is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guestd.config import resolve
from guestd.ctl.forward_spec import parse_spec
from guestd.relay.plan import environment_of, plans_of

if TYPE_CHECKING:
    from guestd.relay.plan import Plan


def plans(text: str, **environ: str) -> dict[str, Plan]:
    found = resolve(file=text.encode(), environ=environ).checked()
    return {plan.name: plan for plan in plans_of(found.relay)}


def test_a_ready_one_is_switched_on_by_a_word_wherever_words_are_written() -> None:
    by_file = resolve(file=b"[relay]\notlp = true").checked()
    by_table = resolve(file=b"[relay.otlp]").checked()
    by_kernel = resolve(cmdline="guestd.relay.otlp").checked()
    by_environment = resolve(environ={"GUESTD_RELAY_OTLP": "on"}).checked()
    for found in (by_file, by_table, by_kernel, by_environment):
        (plan,) = plans_of(found.relay)
        assert (str(plan.listen), str(plan.to), plan.kind) == ("tcp:127.0.0.1:4318", "vsock:2:4318", "otlp")


def test_an_address_alone_says_where_it_leads_and_a_later_source_switches_off() -> None:
    assert str(plans("[relay]\nllm = 'tcp:10.0.0.1:80'")["llm"].to) == "tcp:10.0.0.1:80"
    assert str(plans("", GUESTD_RELAY_LLM="unix:/run/llm")["llm"].to) == "unix:/run/llm"
    assert plans("[relay]\nllm = true\nmcp = true", GUESTD_RELAY_LLM="off").keys() == {"mcp"}
    assert plans("", GUESTD_RELAY_X="{listen = 'tcp:127.0.0.1:9', to = 'vsock:2:9'}")["x"].kind == "stream"


def test_what_jobs_are_told() -> None:
    def env(text: str) -> dict[str, str]:
        return environment_of(resolve(file=text.encode()).checked().relay)

    assert env("[relay.otlp]") == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    egress = env("[relay.egress]\nlisten = 'tcp:[::1]:3128'")
    assert egress["HTTPS_PROXY"] == egress["https_proxy"] == egress["ALL_PROXY"] == "http://[::1]:3128"
    assert egress["no_proxy"] == "localhost,127.0.0.1,::1"
    assert env("[relay.llm]")["OPENAI_BASE_URL"] == "http://127.0.0.1:4320/v1"
    # One's own above the ready ones, an empty one for none.
    assert env("[relay.llm]\nenv = {X = '{url}/x', OPENAI_BASE_URL = '', OPENAI_API_BASE = ''}") == {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:4320",
        "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:4320",
        "X": "http://127.0.0.1:4320/x",
    }
    assert env("[relay.mcp]\nlisten = 'unix:/run/mcp.sock'") == {}
    assert (
        env("[relay.mcp]\nlisten = 'tcp:0.0.0.0:4319'\npublic = true")["MCP_SERVER_URL"]
        == "http://127.0.0.1:4319/mcp"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[relay.x]", "relay.x has no `listen`, and no ready relay is called that; give `listen` and `to`"),
        ("[relay.x]\nlisten = 'tcp:127.0.0.1:1'", "relay.x has no `to`"),
        ("[relay.mcp]\nlisten = 'tcp:0.0.0.0:1'", "relay.mcp.listen has tcp:0.0.0.0:1, which others than this machine"),
        ("[relay.mcp]\nlisten = 'tcp:127.0.0.1:0'", "without a port; programs are told the port: write one"),
        ("[relay.mcp]\nlisten = 'vsock:2:1'", 'relay.mcp.listen is "vsock:2:1"; expected tcp:HOST:PORT or unix:PATH'),
        ("[relay.mcp]\nto = 'vsock:any:1'", 'relay.mcp.to is "vsock:any:1"; expected vsock:CID:PORT (2 is the host)'),
        ("[relay.mcp]\nto = 'x'", "relay.mcp.to cannot be used: address 'x': there is no scheme in it"),
        ("[relay.mcp]\ntoo = 'x'", "relay.mcp.too is no setting"),
        ("[relay]\nmcp = true\nllm = {listen = 'tcp:127.0.0.1:4319'}", "as mcp does; choose another address"),
        ("[relay.mcp]\nlisten = 'unix:/x'\nenv = {U = '{url}'}", "relay.mcp sets U to a URL, and listens on unix:/x"),
        ("[relay.'a b']\nto = 'unix:/x'", "has a name that cannot be used"),
        ("[relay]\nmcp = 5", "relay.mcp is 5; expected true, an address such as vsock:2:4318, or a table"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_what_to_do(text: str, said: str) -> None:
    problems = [str(each) for each in resolve(file=text.encode()).problems]
    assert len(problems) == 1
    assert said in problems[0]


@pytest.mark.parametrize(
    ("text", "local", "guest"),
    [
        ("3000", "tcp:127.0.0.1:3000", "tcp:localhost:3000"),
        ("8080:3000", "tcp:127.0.0.1:8080", "tcp:localhost:3000"),
        ("0:3000", "tcp:127.0.0.1:0", "tcp:localhost:3000"),
        ("127.0.0.1:8080:3000", "tcp:127.0.0.1:8080", "tcp:localhost:3000"),
        ("[::1]:8080:3000", "tcp:[::1]:8080", "tcp:localhost:3000"),
        ("8080:10.0.0.5:80", "tcp:127.0.0.1:8080", "tcp:10.0.0.5:80"),
        ("8080:[fe80::1]:80", "tcp:127.0.0.1:8080", "tcp:[fe80::1]:80"),
        ("0.0.0.0:8080:db:5432", "tcp:0.0.0.0:8080", "tcp:db:5432"),
        ("8080:unix:/run/app.sock", "tcp:127.0.0.1:8080", "unix:/run/app.sock"),
        ("[::1]:8080:unix:/run/a:b", "tcp:[::1]:8080", "unix:/run/a:b"),
        ("unix:/tmp/a.sock:3000", "unix:/tmp/a.sock", "tcp:localhost:3000"),
        ("unix:a.sock:db:3000", "unix:a.sock", "tcp:db:3000"),
        ("unix:/tmp/a:b/c.sock:3000", "unix:/tmp/a:b/c.sock", "tcp:localhost:3000"),
        ("unix:/tmp/a.sock:unix:/run/b.sock", "unix:/tmp/a.sock", "unix:/run/b.sock"),
    ],
)  # fmt: skip
def test_what_forward_is_asked_for(text: str, local: str, guest: str) -> None:
    spec = parse_spec(text)
    assert (str(spec.local), str(spec.guest)) == (local, guest)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no port"), ("web", "'web' is no port"), ("8080:web", "'web' is no port"), ("8080:0", "port 0 of"),
        ("70000:1", "'70000' is no port"), ("1:2:3:4:5", "too many parts"), ("unix:/tmp/x", "is missing"),
        ("unix::3000", "the path is missing"),
        ("8080:unix:", "the path is missing"), (":8080:3000", "the host is missing"),
        ("::1:80:80", "too many parts"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="write PORT") as caught:
        parse_spec(text)
    assert said in str(caught.value)
