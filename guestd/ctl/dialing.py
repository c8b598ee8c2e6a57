"""From the options to a connection."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from guestd.client import connect
from guestd.errors import BadRequest
from guestd.wire.address import parse_address

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from guestd.client import Client

#: A machine that is just starting takes the connection long before guestd can answer.
_TIMEOUT = 30.0


def dialer(
    options: argparse.Namespace, *, heartbeat: float = 30.0
) -> Callable[[], AbstractAsyncContextManager[Client]]:
    """What connects to the guest, each time it is called. A guest that is silent for twice `heartbeat` is gone."""
    return partial(
        connect, parse_address(options.to), _token(options.token_file), timeout=_TIMEOUT, heartbeat=heartbeat
    )


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadRequest(f"cannot read the token file {path!r}: {reason}", field="token_file") from error
    if not token:
        raise BadRequest(
            f"the token file {path!r} is empty", field="token_file", expected="the guest's token"
        )
    return token
