"""A manifest as Firecracker and Cloud Hypervisor want it said: a machine's whole configuration, as their APIs take it.

    firecracker --no-api --config-file firecracker.json
    curl --unix-socket API -X PUT http://localhost/api/v1/vm.create -d @cloud-hypervisor.json

Both offer vsock as QEMU has it here: a Unix socket for the host (`hybrid:PATH:1024`), and PATH_PORT for what the guest
says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from image.vm.failure import Failure

if TYPE_CHECKING:
    from pathlib import Path

    from image.vm.manifest import Manifest
    from image.vm.qemu import Hardware

_CID = 3
HERALD = "vsock-stream:2:9999"
#: Firecracker adds its own words for the root it is given (root=/dev/vda ro); the rest is as elsewhere. Its keyboard
#: controller is how the host says ctrl-alt-del; it has no power to switch off, and ends when the guest starts again.
_FIRECRACKER = "console=ttyS0 reboot=k guestd.init.power_off=reboot"


def firecracker(manifest: Manifest, hardware: Hardware, vsock: Path) -> dict[str, Any]:
    """The file for --config-file."""
    if manifest.fields["vmlinux"] is None:
        raise Failure(
            "Firecracker wants an unpacked kernel, and none was made: install lz4 and zstd, and build again"
        )
    if hardware.workspace is not None and hardware.workspace.is_dir():
        raise Failure(
            "Firecracker shares no folders: give the workspace as a disk, or over the network (NFS, S3)"
        )
    if hardware.cpus != 1 and hardware.cpus % 2:
        raise Failure(
            f"Firecracker gives a machine one processor or an even number of them, not {hardware.cpus}"
        )
    drives = [_drive("root", manifest.file("root"), root=True, read_only=True)]
    if hardware.workspace is not None:
        drives.append(_drive("workspace", hardware.workspace, root=False, read_only=False))
    words = [_FIRECRACKER, _credential("vmm.notify_socket", HERALD), manifest.cmdline, hardware.append]
    found: dict[str, Any] = {
        "boot-source": {
            "kernel_image_path": str(manifest.file("vmlinux")),
            "initrd_path": str(manifest.file("initramfs")),
            "boot_args": " ".join(filter(None, words)),
        },
        "drives": drives,
        "machine-config": {"vcpu_count": hardware.cpus, "mem_size_mib": hardware.memory},
        "vsock": {"guest_cid": _CID, "uds_path": str(vsock)},
        "entropy": {},
    }
    if hardware.network != "none":
        found["network-interfaces"] = [{"iface_id": "eth0", "host_dev_name": hardware.network}]
    return found


def _drive(name: str, path: Path, *, root: bool, read_only: bool) -> dict[str, Any]:
    return {
        "drive_id": name, "path_on_host": str(path.absolute()), "is_root_device": root, "is_read_only": read_only,
        # What the guest has flushed is on the host's disk.
        **({} if read_only else {"cache_type": "Writeback"}),
    }  # fmt: skip


def _credential(name: str, value: str) -> str:
    """For a guest without the firmware's tables."""
    return f"systemd.set_credential={name}:{value}"


def cloud_hypervisor(manifest: Manifest, hardware: Hardware, vsock: Path) -> dict[str, Any]:
    """The body of vm.create. A shared folder needs a virtiofsd at PATH.share, PATH being the vsock's."""
    shares = hardware.workspace is not None and hardware.workspace.is_dir()
    disks: list[dict[str, Any]] = [{"path": str(manifest.file("root").absolute()), "readonly": True}]
    if hardware.workspace is not None and not shares:
        disks.append({"path": str(hardware.workspace.absolute()), "serial": "workspace"})
    found: dict[str, Any] = {
        "cpus": {"boot_vcpus": hardware.cpus, "max_vcpus": hardware.cpus},
        # Shared where a process beside it reads it.
        "memory": {"size": hardware.memory << 20, "shared": shares},
        "payload": {
            "kernel": str(manifest.file("kernel")),
            "initramfs": str(manifest.file("initramfs")),
            "cmdline": " ".join(filter(None, ("console=ttyS0", manifest.cmdline, hardware.append))),
        },
        "disks": disks,
        "rng": {"src": "/dev/urandom"},
        "vsock": {"cid": _CID, "socket": str(vsock)},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "platform": {"oem_strings": [f"io.systemd.credential:vmm.notify_socket={HERALD}"]},
    }
    if shares:
        found["fs"] = [{"tag": "workspace", "socket": f"{vsock}.share", "num_queues": 1, "queue_size": 1024}]
    if hardware.network != "none":
        found["net"] = [{"tap": hardware.network}]
    return found
