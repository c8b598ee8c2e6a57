"""The configurations for Firecracker and Cloud Hypervisor are what their published API descriptions allow; and which
vsock QEMU is given.

They cannot be started here: both need KVM. What is written down of the descriptions (Firecracker's swagger, Cloud
Hypervisor's OpenAPI, both of August 2026) are the fields that are used, what they may hold, and which are required.
"""

from __future__ import annotations

import itertools
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from image.vm import qemu, vmm
from image.vm.failure import Failure
from image.vm.herald import is_pid_1s
from image.vm.manifest import Manifest
from image.vm.qemu import Hardware
from image.vm.vsock import has_vhost

#: A field that must be there has a `!`. A list has one element, of which all its items are.
FIRECRACKER: dict[str, Any] = {
    "boot-source": {"kernel_image_path!": str, "initrd_path": str, "boot_args": str},
    "drives": [{
        "drive_id!": str, "is_root_device!": bool, "path_on_host": str, "is_read_only": bool,
        "cache_type": {"Unsafe", "Writeback"},
    }],
    "machine-config": {"vcpu_count!": range(1, 33), "mem_size_mib!": int},
    "vsock": {"guest_cid!": range(3, 1 << 32), "uds_path!": str},
    "entropy": {},
    "network-interfaces": [{"iface_id!": str, "host_dev_name!": str}],
}  # fmt: skip
MODES = {"Off", "Pty", "Tty", "File", "Socket", "Null"}
CLOUD_HYPERVISOR: dict[str, Any] = {
    "cpus": {"boot_vcpus!": int, "max_vcpus!": int},
    "memory": {"size!": int, "shared": bool},
    "payload!": {"kernel": str, "initramfs": str, "cmdline": str},
    "disks": [{"path": str, "readonly": bool, "serial": str}],
    "rng": {"src!": str},
    "vsock": {"cid!": range(3, 1 << 63), "socket!": str},
    "serial": {"mode!": MODES},
    "console": {"mode!": MODES},
    "platform": {"oem_strings": [str]},
    "fs": [{"tag!": str, "socket!": str, "num_queues!": int, "queue_size!": int}],
    "net": [{"tap": str}],
}


def _check(value: object, wanted: Any, where: str = "") -> None:  # noqa: ANN401  a description, of several kinds
    match wanted:
        case dict():
            fields = cast("dict[str, Any]", wanted)
            assert isinstance(value, dict), where
            given = cast("dict[str, object]", value)
            known = {name.removesuffix("!"): inner for name, inner in fields.items()}
            assert given.keys() <= known.keys(), f"{where}: {given.keys() - known.keys()}"
            assert {name[:-1] for name in fields if name.endswith("!")} <= given.keys(), where
            for name, inner in given.items():
                _check(inner, known[name], f"{where}.{name}")
        case list():
            assert isinstance(value, list), where
            for each in cast("list[object]", value):
                _check(each, wanted[0], where)
        case set() | range():
            assert value in wanted, where
        case _:
            assert type(value) is wanted, where


@pytest.fixture
def found(tmp_path: Path) -> Manifest:
    fields: dict[str, Any] = {name: {"file": name} for name in ("kernel", "vmlinux", "initramfs", "root")}
    return Manifest(tmp_path, {**fields, "cmdline": "root=/dev/vda ro init=/i", "ports": {"guestd": 1024}})


def test_firecrackers(found: Manifest, tmp_path: Path) -> None:
    disk = tmp_path / "work.img"
    disk.touch()
    hardware = Hardware(workspace=disk, network="tap0", cpus=2, memory=2048)
    made = vmm.firecracker(found, hardware, Path("/run/vm/vsock"))
    _check(made, FIRECRACKER)
    # Its first disk is the root, and its kernel is the unpacked one; it ends when the guest starts again.
    assert [each["is_root_device"] for each in made["drives"]] == [True, False]
    assert made["boot-source"]["kernel_image_path"].endswith("vmlinux")
    assert "guestd.init.power_off=reboot" in made["boot-source"]["boot_args"].split()
    assert (
        "systemd.set_credential=vmm.notify_socket:vsock-stream:2:9999"
        in made["boot-source"]["boot_args"].split()
    )


def test_cloud_hypervisors(found: Manifest, tmp_path: Path) -> None:
    for workspace in (tmp_path, tmp_path / "work.img"):
        made = vmm.cloud_hypervisor(
            found, Hardware(workspace=workspace, network="tap0"), Path("/run/vm/vsock")
        )
        _check(made, CLOUD_HYPERVISOR)
        # A folder is read by another process, out of the guest's memory.
        assert made["memory"]["shared"] is ("fs" in made) is workspace.is_dir()


def test_what_firecracker_cannot_do_is_said(found: Manifest, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="shares no folders"):
        vmm.firecracker(found, Hardware(workspace=tmp_path), Path("v"))
    with pytest.raises(Failure, match="an even number"):
        vmm.firecracker(found, Hardware(cpus=3), Path("v"))
    without = replace(found, fields={**found.fields, "vmlinux": None})
    with pytest.raises(Failure, match="install lz4"):
        vmm.firecracker(without, Hardware(), Path("v"))


def test_the_kernels_vsock_is_taken_where_its_device_opens(tmp_path: Path) -> None:
    """A device file may be there without a driver behind it: the node of a socket refuses to be opened as well."""
    device, stale = tmp_path / "device", tmp_path / "stale"
    device.touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
        found = {each: has_vhost(str(tmp_path / each)) for each in ("device", "stale", "missing")}
    assert found == {"device": True, "stale": False, "missing": False}


@pytest.mark.parametrize(
    ("vsock", "device"),
    [
        (77, "vhost-vsock-pci,guest-cid=77"),
        (Path("/run/vm/v"), "vhost-user-vsock-pci,id=vsock,chardev=vsock,bus=vsock-slot"),
        (None, None),
    ],
)
def test_qemu_is_given_that_vsock(found: Manifest, vsock: Path | int | None, device: str | None) -> None:
    words = qemu.command(
        found, Hardware(), monitor=Path("/m"), console=Path("/c"), vsock=vsock, share=None
    )  # fmt: skip
    devices = [word for option, word in itertools.pairwise(words) if option == "-device"]
    assert [each for each in devices if "vsock-pci" in each] == ([device] if device else [])
    assert ("socket,id=vsock,path=/run/vm/v" in words) is isinstance(vsock, Path)


@pytest.mark.parametrize(
    ("address", "heard"), [((77, 1023), True), ((77, 1024), False), ((78, 5), False), ((1, 5), False)]
)
def test_only_pid_1_of_that_guest_is_heard_over_the_kernels_vsock(
    address: tuple[int, int], heard: bool
) -> None:
    """All guests of a machine, and its own programs, reach the port."""
    assert is_pid_1s(address, 77) is heard
