"""Every failure travels by name and comes back as itself."""

from __future__ import annotations

from typing import Any

import pytest

from guestd import errors
from guestd.errors import GuestdError, InternalError, StartFailed
from guestd.wire.frames import Frame, Kind
from guestd.wire.messages import pack, unpack

ALL: list[type[GuestdError]] = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, GuestdError) and each is not GuestdError
]
#: StartFailed is no answer to a request: it becomes a result, `not_started`.
TRAVELLING = [each for each in ALL if each is not StartFailed]


@pytest.mark.parametrize("cls", TRAVELLING)
def test_it_arrives_as_itself(cls: type[GuestdError]) -> None:
    sent = cls("what was asked, what is wrong, what would be right")
    sent.details.update(field="argv", expected="a list", limit=5, setting="limits.jobs")
    for kind, channel in [(Kind.REJECT, 1), (Kind.RESET, 1), (Kind.GOAWAY, 0)]:
        frame = Frame(kind, channel, memoryview(pack(sent.to_map())))
        found = errors.from_map(unpack(frame))
        assert type(found) is cls
        assert (found.message, found.details, str(found)) == (sent.message, sent.details, sent.message)
        assert found.to_map() == sent.to_map()


def test_each_has_a_code_of_its_own_and_statuses_that_exist() -> None:
    assert len({each.code for each in ALL}) == len(ALL)
    for each in ALL:
        assert each.exit_status in {124, 125}
        assert 400 <= each.http_status < 600


def test_details_that_are_not_given_are_not_sent() -> None:
    assert errors.BadRequest("no").to_map() == {"code": "bad_request", "message": "no"}
    assert errors.LimitReached("no", limit=0, setting="x").to_map()["limit"] == 0


def test_details_do_not_replace_code_and_message() -> None:
    assert GuestdError("real", code="fake").to_map() == {"code": "internal", "message": "real"}


@pytest.mark.parametrize(
    "fields", [{}, {"code": "of a later version"}, {"code": None}, {"code": []}, {"message": 5}, {1: 2}]
)
def test_what_is_not_known_keeps_its_words(fields: dict[Any, Any]) -> None:
    found = errors.from_map(fields)
    assert type(found) is InternalError
    assert found.message == str(fields.get("message", "no message was given"))


def test_start_failed_says_how_far_it_got() -> None:
    failed = StartFailed("no such directory: /nope", stage="cwd", errno=2)
    assert failed.to_map() == {
        "code": "not_started", "message": "no such directory: /nope", "stage": "cwd", "errno": 2,
    }  # fmt: skip
