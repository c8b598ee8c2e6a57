"""When a client may take a guest for the one it knew."""

from __future__ import annotations

from typing import Any

import pytest

from guestd.client.guest import has_same_jobs

KNOWN = {"boot_id": "b", "session_id": "one", "generation": 0, "previous": None}


@pytest.mark.parametrize(
    ("now", "same"),
    [
        (KNOWN, True),
        # Handed on to another guestd: its jobs are still there.
        ({**KNOWN, "generation": 1}, True),
        # Resumed, once and more than once.
        ({**KNOWN, "session_id": "two", "generation": 1, "previous": ["one"]}, True),
        ({**KNOWN, "session_id": "three", "generation": 2, "previous": ["one", "two"]}, True),
        # Started anew, and resumed since.
        ({**KNOWN, "session_id": "other"}, False),
        ({**KNOWN, "session_id": "other", "previous": ["another"]}, False),
        ({**KNOWN, "boot_id": "c"}, False),
        # What a guest of another mind may say.
        ({"boot_id": "b"}, False),
        ({"boot_id": "b", "session_id": "other", "previous": "one"}, False),
    ],
)
def test_whose_jobs_these_are(now: dict[str, Any], same: bool) -> None:
    assert has_same_jobs(KNOWN, now) is same


def test_a_guest_that_tells_nothing_is_known_by_nothing() -> None:
    assert has_same_jobs({}, {"session_id": None}) is True
    assert has_same_jobs({}, {"session_id": "one", "previous": [None]}) is False
