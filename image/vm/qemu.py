"""The command line of QEMU for a machine, and what it is asked over its monitor (QMP)."""

from __future__ import annotations

import json
import select
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from image.vm import accelerator
from image.vm import vsock as vsocks
from image.vm.failure import Failure, find

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from image.vm.manifest import Manifest

_ANSWER_SECONDS = 60.0
#: Who a guest is in QEMU's user network.
_GUEST = "10.0.2.15"
#: Only the guest's root can read what QEMU passes so.
_TOKEN = "opt/guestd.token"
#: What guestd asks of a token.
_TOKEN_LEAST = 16
#: In megabytes. Less is taken for a mistake in the unit; what a kernel needs beyond it, its console says.
_MEMORY_LEAST = 64


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a machine is to have. `workspace`: a folder is shared (virtiofs), a file is a disk."""

    memory: int = 1024
    cpus: int = 2
    workspace: Path | None = None
    #: Who the guest is on the network: none, or user (QEMU's own, outwards only).
    network: str = "none"
    append: str = ""
    #: systemd's system credentials, by name: told in the firmware's tables (SMBIOS type 11).
    credentials: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Not over vsock but over the user network: a port of this machine's loopback, and the token that is asked for.
    #: Such a machine tells nobody of its phases, and QEMU can save it (`savevm`), when all its disks are qcow2.
    port: int = 0
    token: str = ""
    #: A guest that starts itself again does so; else that is its end.
    reboots: bool = True
    #: More for QEMU itself.
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.port and self.network != "user":
            raise Failure(
                f"a machine at port {self.port} of this one is reached over QEMU's user network, and its network is "
                f'{self.network!r}: give network="user" with it, or no port, and it is reached over vsock'
            )
        if self.port and len(self.token) < _TOKEN_LEAST:
            raise Failure(
                f"a machine at port {self.port} of this one asks for a token, of at least {_TOKEN_LEAST} characters; "
                f"this has {len(self.token)}: give token=secrets.token_hex(16)"
            )
        if self.cpus < 1 or self.memory < _MEMORY_LEAST:
            raise Failure(
                f"{self.cpus} processors and {self.memory} MB are no machine: one processor and {_MEMORY_LEAST} MB are "
                "the least (--cpus, --memory)"
            )


def command(
    manifest: Manifest,
    hardware: Hardware,
    *,
    monitor: Path,
    console: Path,
    vsock: Path | int | None,
    share: Path | None,
) -> list[str]:
    """`vsock`: the device's socket (vhost-user), or the guest's CID where the kernel has the device; None without."""
    words = [
        find("qemu-system-x86_64"), *accelerator.arguments(accelerator.choose()),
        # q35 has what a machine's life needs: a power button, a reset, a generation id; microvm boots Debian's kernel
        # under KVM alone.
        "-M", "q35,memory-backend=memory,usb=off,smbus=off,vmport=off", "-smp", str(hardware.cpus),
        "-m", f"{hardware.memory}M",
        # Devices outside of QEMU read the guest's memory.
        "-object", f"memory-backend-memfd,id=memory,size={hardware.memory}M,share=on",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-qmp", f"unix:{monitor},server=on,wait=off", "-serial", f"file:{console}",
        "-kernel", str(manifest.file("kernel")), "-initrd", str(manifest.file("initramfs")),
        "-append", cmdline(manifest, hardware),
        "-drive", f"file={_escaped(manifest.file('root'))},format=raw,if=none,id=root,readonly=on",
        "-device", "virtio-blk-pci,drive=root",
        "-device", "virtio-rng-pci",
        # Another one for each QEMU: what is loaded into it (`-loadvm`) learns that it is a copy.
        "-device", "vmgenid,guid=auto",
    ]  # fmt: skip
    if isinstance(vsock, int):
        words += ["-device", f"vhost-vsock-pci,guest-cid={vsock}"]
    elif vsock is not None:
        words += vsocks.words(vsock)
    if share is not None:
        words += [
            "-chardev",
            f"socket,id=share,path={share}",
            "-device",
            "vhost-user-fs-pci,chardev=share,tag=workspace",
        ]
    elif hardware.workspace is not None:
        form = "qcow2" if hardware.workspace.suffix == ".qcow2" else "raw"
        words += [
            "-drive", f"file={_escaped(hardware.workspace)},format={form},if=none,id=workspace,discard=unmap",
            "-device", "virtio-blk-pci,drive=workspace,serial=workspace",
        ]  # fmt: skip
    if hardware.network == "user":
        forward = f",hostfwd=tcp:127.0.0.1:{hardware.port}-{_GUEST}:{manifest.port}" if hardware.port else ""
        words += ["-netdev", f"user,id=net{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
    if hardware.token:
        words += ["-fw_cfg", f"name={_TOKEN},string={hardware.token}"]
    for name, value in hardware.credentials.items():
        words += ["-smbios", f"type=11,value=io.systemd.credential:{name}={value.replace(',', ',,')}"]
    if not hardware.reboots:
        words.append("-no-reboot")
    return [*words, *hardware.more]


def _escaped(path: Path) -> str:
    """In a list of QEMU's, where a comma ends a value."""
    return str(path).replace(",", ",,")


def cmdline(manifest: Manifest, hardware: Hardware) -> str:
    """The console is the first serial line; QEMU's user network has fixed addresses."""
    network = f"ip={_GUEST}::10.0.2.2:255.255.255.0:::off:10.0.2.3" if hardware.network == "user" else ""
    reached = ""
    if hardware.port:
        token = f"guestd.token_file=/sys/firmware/qemu_fw_cfg/by_name/{_TOKEN}/raw"
        reached = f"guestd.listen=unix:/run/guestd/guestd.sock,tcp:0.0.0.0:{manifest.port} {token}"
    return " ".join(filter(None, ("console=ttyS0", manifest.cmdline, network, reached, hardware.append)))


class Monitor:
    """QMP: one question at a time; what happens in between is kept until somebody waits for it."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._data = b""
        self.events: list[dict[str, Any]] = []
        try:
            self._sock.connect(str(path))
            self._message(time.monotonic() + _ANSWER_SECONDS)
            self.ask("qmp_capabilities")
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        self._sock.close()

    def ask(self, what: str, **arguments: object) -> Any:  # noqa: ANN401  whatever QEMU answers
        """Failure when QEMU refuses."""
        question = {"execute": what, "arguments": arguments}
        self._sock.sendall(json.dumps(question).encode() + b"\n")
        due = time.monotonic() + _ANSWER_SECONDS
        while True:
            found = self._message(due)
            if "event" in found:
                self.events.append(found)
            elif "error" in found:
                raise Failure(f"QEMU: {what}: {found['error']['desc']}")
            else:
                return found["return"]

    def human(self, line: str) -> str:
        """What only its monitor for people can."""
        return self.ask("human-monitor-command", **{"command-line": line})

    def wait(self, event: str, seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """The next event of that name, heard before or not; it is taken off."""
        due = time.monotonic() + seconds
        while True:
            for at, each in enumerate(self.events):
                if each["event"] == event:
                    return self.events.pop(at)
            self.events.append(self._message(due))

    def _message(self, due: float) -> dict[str, Any]:
        while b"\n" not in self._data:
            if not select.select([self._sock], [], [], max(0.0, due - time.monotonic()))[0]:
                raise Failure("QEMU does not answer on its monitor")
            piece = self._sock.recv(65536)
            if not piece:
                raise Failure("QEMU has ended")
            self._data += piece
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)
