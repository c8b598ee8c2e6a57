"""From the options to a connection."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from guestd.client import connect
from guestd.ctl.parser import DEFAULT_ADDRESS, inside_address
from guestd.errors import BadRequest, Forbidden, Unavailable
from guestd.wire.address import parse_address

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from guestd.client import Client
    from guestd.errors import GuestdError

#: A machine that is just starting takes the connection long before guestd can answer.
_TIMEOUT = 30.0


def dialer(
    options: argparse.Namespace, *, heartbeat: float = 30.0
) -> Callable[[], AbstractAsyncContextManager[Client]]:
    """What connects to the guest, each time it is called. A guest that is silent for twice `heartbeat` is gone."""
    return partial(
        connect, parse_address(options.to), _token(options.token_file), timeout=_TIMEOUT, heartbeat=heartbeat
    )


def inside_dialer(options: argparse.Namespace) -> Callable[[], AbstractAsyncContextManager[Client]]:
    """The same, for what the guest's own programs may ask for too. Where nobody says otherwise and guestd's socket is
    not this user's to open, it connects to the one that is there for them.
    """
    if options.to != DEFAULT_ADDRESS:
        return dialer(options)
    return partial(_from_inside, options, inside_address())


@asynccontextmanager
async def _from_inside(options: argparse.Namespace, inside: str) -> AsyncGenerator[Client]:
    async with AsyncExitStack() as stack:
        client: Client | None = None
        refusal: GuestdError | None = None
        # A job of a guestd whose directory is another one is not a job of the guestd that may be in the usual one.
        if inside.rpartition("/")[0] == DEFAULT_ADDRESS.rpartition("/")[0]:
            try:
                client = await stack.enter_async_context(dialer(options)())
            except (Unavailable, Forbidden) as error:
                refusal = error
        if client is None:
            try:
                client = await stack.enter_async_context(connect(parse_address(inside), timeout=_TIMEOUT))
            except Unavailable:
                raise refusal or Unavailable(
                    f"nobody answers at {inside}; it is guestd's socket for programs of the guest, and agent.socket"
                    " switches it off"
                ) from None
        yield client


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
