"""The units for systemd and the image agree with the guestd that they start."""

from __future__ import annotations

import re
import socket
from collections import defaultdict

import pytest

from guestd.cli import EXIT_CONFIG
from guestd.config import resolve
from tests.package.conftest import ROOT

DEFAULTS = resolve().settings
UNITS = ("guestd.service", "guestd.socket", "guestd-vsock.socket")


def _read(name: str) -> dict[str, list[str]]:
    """A unit's settings. Not by configparser: a key may come several times."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (ROOT / "systemd" / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, equals, value = line.partition("=")
            assert equals, f"{name}: not a setting: {line}"
            found[key].append(value)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_each_says_what_it_is_and_is_wanted_at_boot(name: str) -> None:
    unit = _read(name)
    assert unit["Description"]
    assert unit["WantedBy"] == ["sockets.target" if name.endswith(".socket") else "multi-user.target"]


def test_the_service_leaves_guestd_the_time_it_takes() -> None:
    (seconds,) = _read("guestd.service")["TimeoutStopSec"]
    # Five seconds more for the last steps, and as many again for a machine under load.
    assert float(seconds) >= DEFAULTS.stop.grace + 10


def test_a_configuration_that_cannot_be_used_is_not_tried_again() -> None:
    assert _read("guestd.service")["RestartPreventExitStatus"] == [str(EXIT_CONFIG)]


def test_the_sockets_are_where_guestd_would_listen_by_itself() -> None:
    assert _read("guestd.socket")["ListenStream"] == [f"{DEFAULTS.runtime_dir}/guestd.sock"]
    assert _read("guestd.socket")["SocketMode"] == ["0600"]
    assert _read("guestd-vsock.socket")["ListenStream"] == [f"vsock:{socket.VMADDR_CID_ANY}:1024"]


def test_the_service_starts_what_the_image_installs() -> None:
    (command,) = _read("guestd.service")["ExecStart"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    entry = re.search(r"^ENTRYPOINT \[(.*)\]$", dockerfile, re.MULTILINE)
    assert entry is not None
    # The same program: under systemd as its service, alone as PID 1.
    assert [word.strip(' "') for word in entry[1].split(",")] == [command.split()[0], "init"]
    assert command.split()[1:] == ["serve"]
    assert "image/opt /opt/guestd " in dockerfile
