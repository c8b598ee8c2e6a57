"""Tasks that end with a block."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@asynccontextmanager
async def background() -> AsyncGenerator[trio.Nursery]:
    """A nursery whose tasks end with the block, and that hands on the block's own exception as it is.

    A plain nursery wraps it into a group, and `except NotFound` around a `with connect(...)` would never match.
    """
    caught: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as error:  # noqa: BLE001 - raised again below, outside of the nursery
            caught = error
        nursery.cancel_scope.cancel()
    if caught is not None:
        raise caught
