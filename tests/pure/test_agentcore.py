"""The AgentCore surface without its sockets: event streams, text, channel messages, routes, tokens, errors."""

from __future__ import annotations

import base64
import binascii
import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd import errors
from guestd.errors import GuestdError
from guestd.service.agentcore import bearer, channels, eventstream, failures, routes
from guestd.service.agentcore.text import Text
from guestd.wire.result import Outcome, Result

ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/agent-AbC"
ENCODED = "arn%3Aaws%3Abedrock-agentcore%3Aus-west-2%3A123456789012%3Aruntime%2Fagent-AbC"


# -------------------------------------------------------------------------------------------------------- event streams


def decode(message: bytes) -> tuple[dict[str, str], bytes]:
    """One message, read by its specification and nothing else."""
    total, head = (int.from_bytes(message[at : at + 4], "big") for at in (0, 4))
    assert total == len(message)
    assert int.from_bytes(message[8:12], "big") == binascii.crc32(message[:8])
    assert int.from_bytes(message[-4:], "big") == binascii.crc32(message[:-4])
    rest, headers = message[12 : 12 + head], dict[str, str]()
    while rest:
        name, rest = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
        assert rest[0] == 7
        size = int.from_bytes(rest[1:3], "big")
        headers[name.decode()], rest = rest[3 : 3 + size].decode(), rest[3 + size :]
    return headers, message[12 + head : -4]


@pytest.mark.parametrize(
    ("headers", "payload", "message"),
    [
        ({}, b"", "000000100000000005c248eb7d98c8ff"),
        ({}, b"{'foo':'bar'}", "0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936"),
        (
            {":content-type": "a"},
            b"x",
            None,
        ),
    ],
)
def test_vectors(headers: dict[str, str], payload: bytes, message: str | None) -> None:
    """The first two are those that every SDK of AWS is tested with."""
    encoded = eventstream.encode(headers, payload)
    if message is not None:
        assert encoded.hex() == message
    assert decode(encoded) == (headers, payload)


def test_an_event_and_an_exception_are_named_as_the_model_names_them() -> None:
    headers, payload = decode(eventstream.chunk({"contentStart": {}}))
    assert headers == {
        ":event-type": "chunk",
        ":content-type": "application/json",
        ":message-type": "event",
    }
    assert json.loads(payload) == {"contentStart": {}}
    headers, payload = decode(eventstream.exception("InternalServerException", "why"))
    assert headers[":message-type"] == "exception"
    assert headers[":exception-type"] == "internalServerException"
    assert json.loads(payload) == {"message": "why"}


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 40_000))
def test_deltas_are_bounded_and_lose_nothing(text: str, times: int) -> None:
    whole = (text * times)[:150_000]
    said = ""
    for message in eventstream.deltas("stdout", whole) if whole else ():
        _, payload = decode(message)
        assert len(payload) <= eventstream.PAYLOAD_MAX
        said += json.loads(payload)["contentDelta"]["stdout"]
    assert said == whole


def test_control_characters_take_six_bytes_each_and_are_still_bounded() -> None:
    messages = list(eventstream.deltas("stderr", "\x01" * 48 * 1024))
    assert len(messages) > 1
    assert all(len(decode(message)[1]) <= 64 * 1024 for message in messages)


# ----------------------------------------------------------------------------------------------------------------- text


@given(st.binary(), st.lists(st.integers(0, 64), max_size=20))
def test_text_is_the_same_however_its_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    text, rest, said = Text(), data, ""
    for size in cuts:
        said += text.feed(rest[:size])
        rest = rest[size:]
    said += text.feed(rest) + text.end()
    assert said == data.decode("utf-8", "replace")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_character_is_ever_split(whole: str) -> None:
    text = Text()
    said = [text.feed(bytes((each,))) for each in whole.encode()]
    assert "".join(said) == whole
    assert text.end() == ""


def test_after_an_end_it_begins_anew() -> None:
    text = Text()
    assert text.feed("€".encode()[:2]) == ""
    assert text.end() == "\ufffd"
    assert text.feed(b"ok") == "ok"


# ------------------------------------------------------------------------------------------------------------- channels


def status(message: bytes) -> dict[str, object]:
    assert message[0] == channels.STATUS
    found = json.loads(message[1:])
    assert (found.pop("kind"), found.pop("apiVersion")) == ("Status", "v1")
    return found


def test_the_first_status_says_what_is_shown() -> None:
    said = channels.confirmation("s1", reconnected=False, dropped=0)
    assert status(said) == {"metadata": {"shellId": "s1", "reconnected": False}, "status": "Success"}
    said = channels.confirmation("s1", reconnected=True, dropped=7)
    assert status(said)["metadata"] == {"shellId": "s1", "reconnected": True, "bytesDropped": 7}


def test_the_last_status_says_how_it_ended() -> None:
    ended = channels.ending(Result("s", Outcome.EXITED, code=0))
    assert status(ended) == {"metadata": {}, "status": "Success"}
    ended = channels.ending(Result("s", Outcome.EXITED, code=3))
    assert status(ended) == {
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": "command terminated with exit code 3",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
    }  # fmt: skip
    ended = status(channels.ending(Result("s", Outcome.SIGNALED, signal=9)))
    assert ended["details"] == {
        "causes": [{"reason": "ExitCode", "message": "137"}, {"reason": "Signal", "message": "9"}]
    }
    ended = status(channels.ending(Result("s", Outcome.UNKNOWN, message="lost")))
    assert (ended["reason"], ended["message"], ended["code"]) == ("InternalError", "lost", 500)


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        (b'{"width":120,"height":40}', (120, 40)),
        (b'{"width":0,"height":0,"more":1}', (0, 0)),
        (b'{"width":1}', None),
        (b'{"width":-1,"height":1}', None),
        (b'{"width":65536,"height":1}', None),
        (b'{"width":true,"height":1}', None),
        (b'{"width":1.5,"height":1}', None),
        (b"[1,2]", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_sizes(payload: bytes, wanted: tuple[int, int] | None) -> None:
    assert channels.read_resize(payload) == wanted


def test_an_allowance_is_a_rate_with_a_second_at_once() -> None:
    allowance = channels.Allowance(8, 100.0)
    assert [allowance.take(100.0) for _ in range(9)] == [True] * 8 + [False]
    assert allowance.take(100.125)
    assert not allowance.take(100.125)
    assert [allowance.take(200.0) for _ in range(9)] == [True] * 8 + [False], "a pause saves up no more"
    assert all(channels.Allowance(0, 0.0).take(0.0) for _ in range(1000))


# --------------------------------------------------------------------------------------------------------------- routes


@pytest.mark.parametrize("arn", [ARN, ENCODED, "agent-AbC"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/commands", (routes.COMMANDS, "", 0)),
        ("/commands?qualifier=x&accountId=1", (routes.COMMANDS, "", 0)),
        ("/ws/shells?shellId=a", (routes.SHELLS, "", 0)),
        ("/stopruntimesession", (routes.STOP, "", 0)),
        ("/invocations", (routes.WORKLOAD, "", 0)),
        ("/invocations/.well-known/a%2Fb.json", (routes.WORKLOAD, "/.well-known/a%2Fb.json", 0)),
        ("/ping", (routes.PING, "", 0)),
        ("/ws", (routes.SOCKET, "", 0)),
        ("/ports/9000", (routes.PORT, "", 9000)),
        ("/ports/9000/a/b?c=d", (routes.PORT, "/a/b", 9000)),
        ("/ports/0/a", (routes.UNKNOWN, "", 0)),
        ("/ports/x/a", (routes.UNKNOWN, "", 0)),
        ("/ports/99999/a", (routes.UNKNOWN, "", 0)),
        ("/commandsx", (routes.UNKNOWN, "", 0)),
        ("/", (routes.UNKNOWN, "", 0)),
        ("", (routes.UNKNOWN, "", 0)),
    ],
)
def test_what_is_asked_of_a_runtime(arn: str, path: str, expected: tuple[str, str, int]) -> None:
    route = routes.parse(f"/runtimes/{arn}{path}")
    assert route is not None
    assert (route.operation, route.rest, route.port) == expected
    if route.operation != routes.UNKNOWN:
        assert route.arn == (ARN if arn == ENCODED else arn)


@pytest.mark.parametrize(
    ("target", "operation"),
    [
        ("/ping", routes.PING),
        ("/invocations", routes.WORKLOAD),
        ("/invocations/x", routes.WORKLOAD),
        ("/ws", routes.SOCKET),
        ("/healthz", routes.LIVE),
        ("/readyz?x", routes.READY),
        ("/ports/8000/mcp", routes.PORT),
        ("/", None),
        ("/any/path", None),
        ("/wsx", None),
        ("/commands", None),
        ("*", None),
        ("http://host/ping", None),
    ],
)
def test_what_is_asked_for_without_a_runtime(target: str, operation: str | None) -> None:
    route = routes.parse(target)
    assert (None if route is None else route.operation) == operation


def test_parameters_are_found_whatever_their_case() -> None:
    route = routes.parse(f"/runtimes/{ENCODED}/ws/shells?SHELLID=a%2Db&x&shellId=c")
    assert route is not None
    assert route.parameter("shellId") == "a-b"
    assert route.parameter("x") == ""
    assert route.parameter("y") is None


@given(st.text(st.characters(codec="ascii")))
def test_any_target_has_a_route_or_none(text: str) -> None:
    routes.parse(text)
    routes.parse(f"/runtimes/{text}")


# --------------------------------------------------------------------------------------------------------------- tokens

TOKEN = b"a-token-of-the-tests"
IN_SUBPROTOCOL = b"base64UrlBearerAuthorization." + base64.urlsafe_b64encode(TOKEN).rstrip(b"=")


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ([(b"Authorization", b"Bearer " + TOKEN)], True),
        ([(b"authorization", b"bearer  " + TOKEN)], True),
        ([(b"X-Guestd-Token", TOKEN), (b"Authorization", b"AWS4-HMAC-SHA256 x")], True),
        ([(b"Sec-WebSocket-Protocol", IN_SUBPROTOCOL + b", base64UrlBearerAuthorization")], True),
        ([], False),
        ([(b"Authorization", TOKEN)], False),
        ([(b"Authorization", b"Bearer " + TOKEN + b"x")], False),
        ([(b"Authorization", b"Bearer")], False),
        ([(b"Sec-WebSocket-Protocol", b"base64UrlBearerAuthorization.!!!")], False),
        ([(b"Sec-WebSocket-Protocol", TOKEN)], False),
    ],
)
def test_who_has_the_token(headers: list[tuple[bytes, bytes]], admitted: bool) -> None:
    assert bearer.admits(headers, TOKEN) is admitted


def test_what_opens_guestd_does_not_go_into_the_guest() -> None:
    headers = [
        (b"Host", b"a"), (b"Authorization", b"Bearer " + TOKEN), (b"X-Guestd-Token", b"whatever"),
        (b"X-Amz-Security-Token", b"s"), (b"Sec-WebSocket-Protocol", IN_SUBPROTOCOL + b", chat"),
    ]  # fmt: skip
    assert bearer.without(headers, TOKEN) == [(b"Host", b"a"), (b"Sec-WebSocket-Protocol", b"chat")]
    own = [(b"Authorization", b"Bearer of-the-workload")]
    assert bearer.without(own, TOKEN) == own
    assert bearer.without(own, None) == own
    assert bearer.without([(b"AUTHORIZATION", b"AWS4-HMAC-SHA256 Credential=x")], None) == []


# --------------------------------------------------------------------------------------------------------------- errors


def test_every_error_has_a_name_of_aws() -> None:
    named = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, GuestdError)]
    for each in named:
        error = each.__new__(each)
        GuestdError.__init__(error, "what is wrong")
        failure, body = failures.body_of(error)
        assert json.loads(body)["message"] == "what is wrong"
        assert 400 <= failure.status < 600
        if each is not GuestdError:
            assert failure.status == 500 or failure is not failures.INTERNAL


def test_a_bad_field_is_named() -> None:
    failure, body = failures.body_of(errors.BadRequest("`x` is odd", field="x", expected="even"))
    assert failure == ("ValidationException", 400)
    assert json.loads(body) == {
        "message": "`x` is odd",
        "reason": "FieldValidationFailed",
        "fieldList": [{"name": "x", "message": "`x` is odd"}],
    }
