"""How a workload's answer is read: whole, byte by byte, and when it makes no sense."""

from __future__ import annotations

import pytest

from guestd.lifecycle.health import judge, read_answer

OK = b"HTTP/1.1 200 OK\r\n"
PING = b'{"status": "HealthyBusy", "time_of_last_update": 1795246993}'


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (OK + b"Content-Length: 2\r\n\r\nhi", (200, b"hi")),
        (OK + b"content-length:2\r\n\r\nhi and more", (200, b"hi")),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n5;x=y\r\n ther\r\n0\r\n\r\n", (200, b"hi ther")),
        (b"HTTP/1.0 503 No\r\n\r\n", (503, b"")),
        (b"HTTP/1.1 204 Nothing\r\nContent-Length: 0\r\n\r\n", (204, b"")),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", (0, b"")),
        (b"HTTP/1.1 fine\r\n\r\n", (0, b"")),
    ],
)
def test_an_answer_is_read_when_it_is_whole(answer: bytes, found: tuple[int, bytes]) -> None:
    assert read_answer(answer, at_end=True) == found
    head = answer.index(b"\r\n\r\n")
    for size in range(head):
        assert read_answer(answer[:size], at_end=False) is None
    assert read_answer(answer, at_end=False) == found


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    answer = b"HTTP/1.0 200 OK\r\n\r\n" + PING
    assert read_answer(answer, at_end=False) is None
    assert read_answer(answer, at_end=True) == (200, PING)


@pytest.mark.parametrize(
    "cut", [OK + b"Content-Length: 20\r\n\r\nhi", OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhi"]
)
def test_an_answer_that_was_cut_off_is_none(cut: bytes) -> None:
    assert read_answer(cut, at_end=True) is None


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, b'{"status": "Healthy"}', "healthy"),
        (200, PING, "busy"),
        (200, b"", "healthy"),
        (200, b"pong", "healthy"),
        (200, b"[1]", "healthy"),
        (200, b'{"status": 3}', "healthy"),
        (200, b'{"status": "Draining"}', "failing"),
        (500, b'{"status": "Healthy"}', "failing"),
        (0, b"", "failing"),
    ],
)
def test_what_it_says(status: int, body: bytes, state: str) -> None:
    assert judge(status, body).state == state
