"""This tier runs in a private mount and PID namespace, and nowhere else."""

from __future__ import annotations

import pytest

from tests.support import namespace


@pytest.fixture(autouse=True, scope="session")
def _private_namespace() -> None:
    namespace.require()
