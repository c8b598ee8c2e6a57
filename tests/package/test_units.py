"""The units for systemd and the image agree with the guestd that they start."""

from __future__ import annotations

import re
import shutil
import socket
import stat
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from guestd.cli import EXIT_CONFIG
from guestd.config import resolve
from guestd.init.reap import HAND_OVER
from guestd.process.handed import AGENT
from guestd.process.identity import AGENT as AGENT_USER
from tests.package.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS = resolve().settings
#: The systemd that has FileDescriptorStorePreserve.
PRESERVES = 254
UNITS = ("guestd.service", "guestd.socket", "guestd-vsock.socket", "guestd-agent.socket")
#: As exposed as what else hands out shells on a machine: the same tool gives systemd's own getty@.service 9.6.
#: What would lower it would be forbidden to every command as well; guestd.service says so option by option.
EXPOSURE_MAX = 96


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
    agent = _read("guestd-agent.socket")
    assert agent["ListenStream"] == [f"{DEFAULTS.runtime_dir}/agent.sock"]
    assert agent["SocketMode"] == ["0666"]
    assert agent["FileDescriptorName"] == [AGENT]


def test_the_service_takes_every_socket_there_is() -> None:
    sockets = {name for name in UNITS if name.endswith(".socket")}
    service = _read("guestd.service")
    assert set(service["Sockets"][0].split()) == sockets
    assert set(service["Requires"][0].split()) | set(service["Wants"][0].split()) == sockets


def test_a_guestd_that_dies_costs_no_job() -> None:
    service = _read("guestd.service")
    assert service["KillMode"] == ["process"]
    assert service["FileDescriptorStoreMax"] == [str(DEFAULTS.init.fd_store)]
    # Before systemd 254 nobody else tells guestd that its descriptors are kept.
    assert service["Environment"] == [f"FDSTORE={DEFAULTS.init.fd_store}"]
    assert service["RestartForceExitStatus"] == [str(HAND_OVER)]
    assert service["StartLimitIntervalSec"] == ["0"]
    assert float(service["WatchdogSec"][0]) == DEFAULTS.init.watchdog


# What systemd itself says.


def _systemd() -> int:
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1])


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that there is on this machine."""
    for name in UNITS:
        text = (ROOT / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/guestd/bin/guestd", sys.executable))
    if _systemd() >= PRESERVES:
        shutil.copytree(ROOT / "systemd" / "guestd.service.d", tmp_path / "guestd.service.d")
    return tmp_path


def test_systemd_finds_nothing_to_complain_of(units: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(f"./{name}" for name in UNITS)],
        cwd=units, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_a_mistake_in_a_unit_would_be_found(units: Path) -> None:
    service = units / "guestd.service"
    service.write_text(service.read_text().replace("KillMode=process", "KillMod=process"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "./guestd.service"],
        cwd=units, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "KillMod" in done.stderr


def test_the_service_is_no_more_exposed_than_a_login(units: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "./guestd.service"],
        cwd=units, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_that_would_lower_it_has_its_reason() -> None:
    text = (ROOT / "systemd" / "guestd.service").read_text()
    options = (
        "NoNewPrivileges RestrictSUIDSGID User CapabilityBoundingSet ProtectSystem ProtectHome PrivateTmp"
        " PrivateDevices PrivateMounts ProtectKernelModules ProtectKernelTunables ProtectControlGroups ProtectHostname"
        " RestrictNamespaces ProtectKernelLogs ProtectClock ProtectProc PrivateUsers PrivateNetwork IPAddressDeny"
        " RestrictAddressFamilies SystemCallFilter SystemCallArchitectures LockPersonality MemoryDenyWriteExecute"
        " RestrictRealtime"
    )
    assert [option for option in options.split() if option not in text] == []
    assert not set(options.split()) & set(_read("guestd.service"))


def test_what_only_later_systemds_know_is_apart() -> None:
    assert "FileDescriptorStorePreserve=yes" in (ROOT / "systemd/guestd.service.d/254.conf").read_text()
    assert "FileDescriptorStorePreserve=" not in (ROOT / "systemd/guestd.service").read_text()


def test_the_user_and_the_directories_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    snippets = ROOT / "systemd"
    for words in (
        ["systemd-sysusers", f"--root={tmp_path}", str(snippets / "sysusers.d/guestd.conf")],
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(snippets / "tmpfiles.d/guestd.conf")],
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    users = dict(line.split(":", 1) for line in (tmp_path / "etc/passwd").read_text().splitlines())
    uid, _, _, home, shell = users[AGENT_USER].split(":", 1)[1].split(":")
    assert (home, shell) == ("/home/agent", "/bin/bash")
    owners = {name: (tmp_path / name).stat() for name in ("run/guestd", "home/agent", "mnt/workspace")}
    assert {name: (each.st_uid, stat.S_IMODE(each.st_mode)) for name, each in owners.items()} == {
        "run/guestd": (0, 0o755), "home/agent": (int(uid), 0o700), "mnt/workspace": (int(uid), 0o755),
    }  # fmt: skip


def test_the_service_starts_what_the_image_installs() -> None:
    (command,) = _read("guestd.service")["ExecStart"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    entry = re.search(r"^ENTRYPOINT \[(.*)\]$", dockerfile, re.MULTILINE)
    assert entry is not None
    # The same program: under systemd as its service, alone as PID 1.
    assert [word.strip(' "') for word in entry[1].split(",")] == [command.split()[0], "init"]
    assert command.split()[1:] == ["serve"]
    assert "image/opt /opt/guestd " in dockerfile
