"""For the tiers in which no process is created: a jumping clock jumps while a child runs, pure rooms have none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_CREATES = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})

_forbidden = False
_installed = False


def _hook(event: str, _args: tuple[object, ...]) -> None:
    if _forbidden and event in _CREATES:
        raise AssertionError(
            f"{event}: this tier never creates a process; such a test belongs in tests/system"
        )


@pytest.fixture(autouse=True)
def no_children() -> Iterator[None]:
    """An audit hook, because it sees every way there is. It cannot be taken out again, only be told to look away."""
    global _forbidden, _installed  # noqa: PLW0603  # the interpreter has one list of audit hooks
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _forbidden = True
    yield
    _forbidden = False
