"""The engine, and the images that are built once for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import base_image, engine, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engine import Engine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: The first to ask for an image waits for it to be built, from mirrors that may be slow.
_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture(autouse=True, scope="session")
def _private_namespace() -> None:
    namespace.require()


@pytest.fixture(scope="session")
def docker(_private_namespace: None) -> Iterator[Engine]:
    with engine.started() as running:
        base_image.plain_debian(running, "debian:12-slim", "bookworm")
        yield running


@pytest.fixture(scope="session")
def agent(docker: Engine) -> str:
    """The agent machine. Before the others: it is what takes longest, and /opt/guestd is made beside it."""
    docker("build", "--network=host", "--target=agent", "--tag=guestd-agent", str(ROOT), timeout=900)
    return "guestd-agent"


@pytest.fixture(scope="session")
def small(docker: Engine, agent: str) -> str:
    """The README's own line."""
    docker("build", "--network=host", "-t", "guestd", str(ROOT), timeout=900)
    return "guestd"


@pytest.fixture(scope="session")
def opt(docker: Engine, agent: str) -> str:
    """/opt/guestd and nothing else."""
    docker("build", "--network=host", "--target=guestd", "--tag=guestd-opt", str(ROOT))
    return "guestd-opt"
