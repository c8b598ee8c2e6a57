"""How a workload says how it is: one question over HTTP, one connection, or one command; each bounded.

`GET /ping` answers `{"status": "Healthy"}` or `{"status": "HealthyBusy"}`, as container platforms for agents have it.
Any other answer of 200 is healthy too. A workload that cannot be asked is `failing`, which is told and nothing more.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import trio

from guestd.errors import GuestdError
from guestd.lifecycle.idle import BUSY
from guestd.lifecycle.own import own_request, run_own

if TYPE_CHECKING:
    from guestd.config import Settings
    from guestd.session.jobs import Jobs

HEALTHY, FAILING, UNKNOWN = "healthy", "failing", "unknown"
#: An answer longer than this is none that is meant here.
_ANSWER_MAX = 64 * 1024
_PIECE = 8192


class Health(NamedTuple):
    """What one look has found. `why`: what is wrong, for people."""

    state: str
    why: str | None = None


async def ask(health: str, jobs: Jobs, settings: Settings) -> Health:
    """Ask once, as `workload.health` says, within `workload.health_timeout`."""
    timeout = settings.workload.health_timeout
    scheme, _, rest = health.partition(":")
    if scheme == "command":
        workload = settings.workload
        request = own_request(settings, rest, user=workload.user or None, env=workload.env, grace=0.0)
        try:
            done = await run_own(jobs, "workload-health", request, timeout)
        except GuestdError as error:
            return Health(FAILING, error.message)
        return Health(HEALTHY) if done.went_well else Health(FAILING, done.why)
    try:
        with trio.fail_after(timeout):
            return await (_connect(int(rest)) if scheme == "tcp" else _get(health))
    except trio.TooSlowError:
        return Health(FAILING, f"no answer within {timeout:g} s (workload.health_timeout)")
    except (OSError, trio.BrokenResourceError) as error:
        cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
        return Health(FAILING, getattr(cause, "strerror", None) or str(cause))


async def _connect(port: int) -> Health:
    with trio.socket.socket() as sock:
        await sock.connect(("127.0.0.1", port))
    return Health(HEALTHY)


async def _get(url: str) -> Health:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    sock = trio.socket.socket(family)
    stream = trio.SocketStream(sock)
    try:
        # Only addresses come here, so nothing is resolved.
        await sock.connect((host, port))
        stream = trio.SocketStream(sock)
        await stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: guestd\r\nAccept: application/json\r\n"
            "Connection: close\r\n\r\n".encode("ascii")
        )
        data = bytearray()
        while (found := read_answer(data, at_end=False)) is None:
            piece = await stream.receive_some(_PIECE)
            if not piece:
                found = read_answer(data, at_end=True)
                break
            data += piece
            if len(data) > _ANSWER_MAX:
                return Health(FAILING, f"its answer is longer than {_ANSWER_MAX} bytes")
    finally:
        sock.close()
    if found is None:
        return Health(FAILING, "it closed the connection before its answer was whole")
    status, body = found
    return judge(status, body)


def judge(status: int, body: bytes) -> Health:
    """What an answer says."""
    if status != 200:
        return Health(FAILING, f"it answered with status {status}")
    try:
        said: object = json.loads(body)
    except ValueError:
        return Health(HEALTHY)
    word = said.get("status") if isinstance(said, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  whatever JSON holds
    if word == "HealthyBusy":
        return Health(BUSY)
    if isinstance(word, str) and word not in {"Healthy", "healthy", "ok", "OK"}:
        return Health(FAILING, f"it says {word[:80]!r}")
    return Health(HEALTHY)


def read_answer(data: bytes | bytearray, *, at_end: bool) -> tuple[int, bytes] | None:
    """Status and body of an HTTP answer; None while it is not whole. Nonsense is an answer of status 0."""
    head, found, body = bytes(data).partition(b"\r\n\r\n")
    if not found:
        return (0, b"") if at_end and data else None
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ", 2)
    if not first.startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        return 0, b""
    status = int(words[1])
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        whole = _joined(body)
    elif fields.get(b"content-length", b"").isdigit():
        size = int(fields[b"content-length"])
        whole = body[:size] if len(body) >= size else None
    else:
        # It ends with the connection; of a status that is bad enough, nobody needs the body.
        whole = body if at_end or status != 200 else None
    return None if whole is None else (status, whole)


def _joined(body: bytes) -> bytes | None:
    """The chunks of a body; None while the last has not come."""
    whole = b""
    while True:
        line, found, rest = body.partition(b"\r\n")
        if not found:
            return None
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            return whole
        if size == 0:
            return whole
        if len(rest) < size + 2:
            return None
        whole += rest[:size]
        body = rest[size + 2 :]
