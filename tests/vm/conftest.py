"""One machine serves all tests that leave it as it was; who ends one has one of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import vm

if TYPE_CHECKING:
    from collections.abc import Iterator


HERE = Path(__file__).resolve().parent
#: Above what a machine's start and its end may take: whose limit it was is told by that.
_SECONDS = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture(autouse=True, scope="session")
def _machines() -> None:
    why = vm.unavailable()
    if why is not None:
        pytest.fail(f"no machine can be started here: {why}", pytrace=False)
    vm.built()


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vm.Guest]:
    """Shared. With a disk as its workspace, a network that leads to the host, and a relay to a port of the host's."""
    disk = vm.disk(tmp_path_factory.mktemp("workspace") / "workspace.img")
    relay = f"{{ listen = 'tcp:127.0.0.1:{vm.RELAY}', to = 'vsock:2:{vm.RELAY}', preface = 'proxy-v2' }}"
    append = f'guestd.init.modules=vsock_loopback guestd.relay.x="{relay}"'
    with vm.running(disk, network="user", append=append) as found:
        yield found
