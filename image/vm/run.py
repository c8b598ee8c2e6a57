"""`image/run`: one machine, until it ends or is told to."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from image.vm import manifest, vmm
from image.vm.failure import Failure, run, say
from image.vm.machine import TOLD_BY, Machine
from image.vm.qemu import Hardware

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

USAGE = """\
image/run DIR [options]                                 a machine under QEMU
image/run DIR --write firecracker|cloud-hypervisor      its configuration, for those

DIR is what image/build has made. Ctrl+C, SIGTERM and the end of this program press the machine's power button."""
#: What guestd gives its programs, its disks and itself, and some for a slow machine.
_STOP_SECONDS = 60.0
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
#: A journal has to fit.
_DISK_LEAST = 16 << 20


class _Stopped(Exception):
    """By a signal: its number."""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="image/run", usage=USAGE, allow_abbrev=False)
    parser.add_argument("built", type=Path, metavar="DIR")
    add_hardware(parser)
    parser.add_argument(
        "--network", default="none", metavar="none|user|TAP",
        help="user: outwards only, QEMU's own; TAP: the name of one, for the others (none)",
    )  # fmt: skip
    parser.add_argument("--append", default="", metavar="WORDS", help="more for the kernel's command line")
    parser.add_argument(
        "--credential",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one of systemd's system credentials",
    )
    parser.add_argument(
        "--no-reboot", action="store_true", help="when the machine starts again, that is its end"
    )
    parser.add_argument("--console", action="store_true", help="show what it says on its console")
    parser.add_argument("--json", action="store_true", help="print where it is reached as JSON")
    parser.add_argument(
        "--write", choices=("firecracker", "cloud-hypervisor"), help="print its configuration instead"
    )
    parser.add_argument(
        "--vsock",
        type=Path,
        default=Path("vsock"),
        metavar="PATH",
        help="with --write: the Unix socket (vsock)",
    )
    given = parser.parse_args(arguments)
    found = manifest.read(given.built)
    if not given.write and given.network not in {"none", "user"}:
        raise Failure(
            f"QEMU is given no TAP here ({given.network}): --network user, or --write for another hypervisor"
        )
    hardware = Hardware(
        memory=given.memory, cpus=given.cpus, workspace=workspace_of(given.workspace), network=given.network,
        append=given.append, credentials=dict(_credential(each) for each in given.credential),
        reboots=not given.no_reboot,
    )  # fmt: skip
    if given.write:
        write = vmm.firecracker if given.write == "firecracker" else vmm.cloud_hypervisor
        print(json.dumps(write(found, hardware, given.vsock), indent=1))
        return 0
    found.check()
    return _run(found, hardware, console=given.console, as_json=given.json)


def add_hardware(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", type=_mebibytes, default=1024, metavar="SIZE", help="(1G)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="(2)")
    parser.add_argument(
        "--workspace", metavar="WHERE",
        help="a folder that is shared, or a disk: a file, made when it is not there (FILE or FILE:SIZE, 10G)",
    )  # fmt: skip


def _mebibytes(text: str) -> int:
    """Of memory; a number alone is of megabytes."""
    return size(text, "--memory", 1 << 20) >> 20


def size(text: str, of: str, bare: int = 1) -> int:
    """`512M`, `10G`, a number. `of`: what it was given for."""
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    digits = text[: len(text) - len(unit)]
    if not (digits.isascii() and digits.isdecimal()) or unit not in _UNITS:
        raise Failure(f"{of}: {text!r} is no size; write 512M or 10G")
    return int(digits) * (_UNITS[unit] if unit else bare)


def _credential(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Failure(f"--credential {text}: NAME=VALUE is wanted")
    if name == TOLD_BY:
        raise Failure(
            f"--credential {text}: that one is image/run's own, which knows by it when the machine is ready; "
            "--json prints all that it hears"
        )
    return name, value


def workspace_of(text: str | None) -> Path | None:
    """The folder or the disk; a disk that is not there is made, with the label that the guest looks for."""
    if text is None:
        return None
    if not text:
        raise Failure("--workspace: a folder is wanted, or a file that is a disk or becomes one")
    # A name with a colon in it is one, when there is something of that name.
    whole = Path(text).absolute()
    name, colon, wanted = ("", "", "") if whole.exists() else text.rpartition(":")
    path = Path(name).absolute() if colon else whole
    if path.is_dir() and "," in str(path):
        raise Failure(f"--workspace {path}: virtiofsd shares no folder with a comma in its name")
    if path.is_dir() or path.is_file() or path.is_block_device():
        return path
    if path.exists() or path.is_symlink():
        raise Failure(f"--workspace {path}: neither a folder nor a disk; give another name, or remove it")
    if not path.parent.is_dir():
        raise Failure(f"--workspace {path}: there is no folder {path.parent}; make it, or name another")
    length = size(wanted, f"--workspace {text}") if colon else 10 << 30
    if length < _DISK_LEAST:
        raise Failure(f"--workspace {text}: a disk of {length} bytes holds nothing; write 512M or 10G")
    make_disk(path, length)
    return path


def make_disk(path: Path, length: int) -> None:
    """An empty ext4, as large as it says and as small as it is full. Its owner is the user that commands run as."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.truncate(length)
    try:
        run(
            "mke2fs", "-q", "-t", "ext4", "-L", manifest.WORKSPACE, "-m", "0",
            "-E", "lazy_itable_init=1,lazy_journal_init=1", fresh,
        )  # fmt: skip
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


def _run(found: manifest.Manifest, hardware: Hardware, *, console: bool, as_json: bool) -> int:
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def stop(number: int, _frame: object) -> None:
        for each in signals:
            # The second one is not patient.
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(number)

    def tell(words: dict[str, str]) -> None:
        if as_json:
            _print(json.dumps({"told": words}))

    for number in signals:
        signal.signal(number, stop)
    machine = Machine(found, hardware)
    try:
        with machine, contextlib.ExitStack() as undo:
            try:
                if console:
                    undo.enter_context(_shown(machine))
                _announce(machine, machine.wait_until_ready(), as_json=as_json)
                return machine.wait_for_end(None, tell)
            except _Stopped:
                # One that is still starting does not hear its button yet.
                machine.wait_until_ready()
                machine.power_button()
                return machine.wait_for_end(_STOP_SECONDS, tell)
    except _Stopped as stopped:
        # There was no machine yet.
        return 128 + int(stopped.args[0])


@contextlib.contextmanager
def _shown(machine: Machine) -> Generator[None]:
    """What is on its console, on this program's standard error; to its last word, when it has ended by itself."""
    command = ["tail", "-c", "+1", "-s", "0.1", f"--pid={machine.pid('qemu')}", "-f", str(machine.console)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    ) as tail:
        try:
            yield
        finally:
            if machine.running:
                tail.kill()


def _announce(machine: Machine, took: float, *, as_json: bool) -> None:
    if as_json:
        where = {"address": machine.address, "ready": round(took, 3), "pid": machine.pid("qemu")}
        _print(json.dumps({**where, "told": machine.herald.seen}))
    else:
        say(f"the machine is ready after {took:.1f} s")
        _print(f"guestctl --to {machine.address} shell")


def _print(line: str) -> None:
    """For whoever still reads: one who has read where the machine is and gone does not take it along."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
