"""Two versions that know each other only by their hellos find what both can do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.errors import BadRequest, VersionMismatch
from guestd.wire.frames import FRAME_LIMIT, Frame, Kind
from guestd.wire.hello import DEFAULT_WINDOW, Hello
from guestd.wire.messages import pack, unpack

hellos = st.builds(
    Hello,
    agent=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=256),
    features=st.lists(st.sampled_from(["spool", "cgroup", "new thing"])).map(tuple),
    frame=st.integers(16 * 1024, 2**31),
    window=st.integers(0, 2**40),
    channels=st.integers(0, 10**6),
    token=st.none()
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100),
    identity=st.dictionaries(
        st.sampled_from(["boot_id", "session_id", "generation", "later"]), st.integers(0, 5)
    ),
)


@given(hello=hellos)
def test_it_arrives_as_it_was_sent(hello: Hello) -> None:
    frame = Frame(Kind.HELLO, 0, memoryview(pack(hello.to_map())))
    assert Hello.from_map(unpack(frame)) == hello


def test_the_least_hello() -> None:
    """A client may say nothing but its version."""
    hello = Hello.from_map({"version": 1})
    assert hello == Hello("unknown")
    assert (hello.frame, hello.window, hello.token) == (FRAME_LIMIT, DEFAULT_WINDOW, None)


def test_a_newer_peer_is_spoken_to_in_the_version_both_know() -> None:
    hello = Hello.from_map(
        {"version": 7, "agent": "guestd 9.0", "limits": {"frame": 1 << 20, "streams": 5}, "x": [1]}
    )
    assert (hello.version, hello.frame) == (1, 1 << 20)
    assert hello.identity == {"x": [1]}


def test_a_peer_older_than_the_first_version_is_told_which_one_it_needs() -> None:
    with pytest.raises(VersionMismatch, match="version 0; this one needs 1 or later"):
        Hello.from_map({"version": 0})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "version"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"version": -1}, "version"),
        ({"version": 1, "agent": 5}, "agent"),
        ({"version": 1, "agent": "x" * 257}, "agent"),
        ({"version": 1, "features": "spool"}, "features"),
        ({"version": 1, "features": [1]}, "features[0]"),
        ({"version": 1, "limits": []}, "limits"),
        ({"version": 1, "limits": {"frame": 16 * 1024 - 1}}, "frame"),
        ({"version": 1, "limits": {"frame": 2**31 + 1}}, "frame"),
        ({"version": 1, "limits": {"window": -1}}, "window"),
        ({"version": 1, "limits": {"window": 2**40 + 1}}, "window"),
        ({"version": 1, "limits": {"channels": 1.5}}, "channels"),
        ({"version": 1, "token": 5}, "token"),
        ({"version": 1, "token": "x" * 4097}, "token"),
    ],
)
def test_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as raised:
        Hello.from_map(fields)
    assert raised.value.details["field"] == field


def test_a_token_is_never_shown() -> None:
    assert "secret" not in repr(Hello("x", token="secret"))
