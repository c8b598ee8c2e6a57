"""`image/try --vm`: a machine of its own, and a shell or one command in it.

Without `--keep` it is gone when it is left, with its disks. With `--keep NAME` its workspace stays, and the same name
comes back to it. The command's status is this program's; 125 when there was no machine to run it in.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from image.vm import base, build, cache, inputs, manifest
from image.vm.failure import Failure, say
from image.vm.machine import Machine
from image.vm.qemu import Hardware
from image.vm.run import add_hardware, make_disk, workspace_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

USAGE = """\
image/try --vm [options]                 a machine of its own, and a shell in it
image/try --vm [options] -- COMMAND…     runs one command that way, and ends with its status"""
BANNER = """\
guestd is PID 1 of this machine (ready after {took:.1f} s), and this is a shell in it.
/mnt/workspace is its workspace: {workspace}. What to type, for instance:
    guestctl status                            the supervisor, and how long each part of the boot took
    guestctl exec -- uname -a                  run a command; ends with the command's own status
From another terminal on the host:
    {guestctl} --to {address} shell
`exit` switches the machine off."""
_WORKSPACE_SIZE = 10 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STOP_SECONDS = 60.0


def main(arguments: Sequence[str]) -> int:
    """The command."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="image/try --vm", usage=USAGE, allow_abbrev=False)
    parser.add_argument("--keep", metavar="NAME", help="its workspace stays, for the next one of that name")
    parser.add_argument("--forget", metavar="NAME", help="take a kept workspace away")
    parser.add_argument("--network", action="store_true", help="let it out (QEMU's user network)")
    parser.add_argument("--image", metavar="DIR", type=Path, help="a machine that image/build has made")
    add_hardware(parser)
    given = parser.parse_args(words[:at])
    command = words[at + 1 :]
    if given.forget:
        return _forget(given.forget)
    if given.keep and given.workspace:
        raise Failure(
            f"--keep {given.keep} and --workspace {given.workspace} are two workspaces, and a machine has one: a "
            "folder or a disk of yours stays as well, so --workspace is enough"
        )
    with contextlib.ExitStack() as undo:
        # Before a machine is made: one that cannot be had is not waited for.
        place = undo.enter_context(_held(given.keep)) if given.keep else None
        found = manifest.read(given.image or machine())
        if given.workspace is not None:
            workspace, what = workspace_of(given.workspace), f"{given.workspace}, of the host's"
        else:
            what = f"kept as {given.keep}" if place else "empty, gone when you leave"
            scratch = undo.enter_context(tempfile.TemporaryDirectory(prefix="guestd-try-"))
            workspace = (place or Path(scratch)) / "workspace.img"
            if not workspace.exists():
                make_disk(workspace, _WORKSPACE_SIZE)
        hardware = Hardware(
            memory=given.memory, cpus=given.cpus, workspace=workspace, network="user" if given.network else "none",
            # It ends when its shell does, and not before, however long that is left alone.
            append="guestd.idle.timeout=0 guestd.idle.lifetime=0",
        )  # fmt: skip
        return _sit(found, hardware, command, what)


def machine() -> Path:
    """The one that is tried: a Debian with this checkout's guestd. It is made once for each version of that."""
    opt = build.guestd(grpc=False)
    name = cache.named(cache.sum_of(opt.parent), base.PACKAGES, inputs.of_machine())

    def make(place: Path) -> None:
        say("making a machine (once for each version of guestd)")
        place.rmdir()
        build.build(build.Plan(output=place, guestd=opt))

    while not cache.hold(found := cache.keep("built", name, make)):
        pass
    # An older one is of an older guestd: half a gigabyte that nobody starts again, when nobody runs it now.
    for old in cache.kept("built")[2:]:
        cache.drop(old)
    return found


def _drop(_number: int, _frame: object) -> None:
    pass


def _kept(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise Failure(
            f"{name!r} is no name for a workspace that is kept: at most 64 letters, digits, dots, dashes and "
            "underscores, a letter or a digit first"
        )
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.environ.get("HOME") or "/tmp", ".local/state")
    return Path(base, "guestd", "machines", name)


@contextlib.contextmanager
def _held(name: str) -> Generator[Path]:
    """Its folder, and nobody else has it meanwhile: a disk is one machine's at a time."""
    place = _kept(name)
    place.mkdir(parents=True, exist_ok=True)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"{name} is running, and its workspace is one machine's at a time: leave that one, or take another name"
            ) from None
        yield place
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()  # where no disk came to be
        os.close(fd)


def _forget(name: str) -> int:
    place = _kept(name)
    if not place.is_dir():
        there = sorted(each.name for each in place.parent.glob("*"))
        raise Failure(f"nothing is kept as {name}; what is kept: {', '.join(there) or 'nothing'}")
    with _held(name):
        shutil.rmtree(place)
    return 0


def _sit(found: manifest.Manifest, hardware: Hardware, command: Sequence[str], what: str) -> int:
    guestctl = os.environ.get("GUESTD_TEST_GUESTCTL") or str(Path(sys.executable).with_name("guestctl"))
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        if child is None:
            raise SystemExit(128 + number)
        child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    with Machine(found, hardware) as running:
        took = running.wait_until_ready()
        # The keyboard's signals are for the command; caught and not ignored, since what is ignored stays so in a child.
        signal.signal(signal.SIGINT, _drop)
        signal.signal(signal.SIGQUIT, _drop)
        to = [guestctl, "--to", running.address]
        if command:
            argv = [*to, "exec", *([] if os.isatty(0) else ["-i"]), "--", *command]
        elif os.isatty(0) and os.isatty(1):
            say(BANNER.format(took=took, workspace=what, guestctl=guestctl, address=running.address))
            argv = [*to, "shell", "--detach-key", "none"]
        else:
            argv = [*to, "exec", "-i", "--", "/bin/sh"]
        child = subprocess.Popen(argv)
        ended = os.pidfd_open(child.pid)
        running.hear_until(ended)
        os.close(ended)
        status = child.wait()
        if running.running:
            # In order, so that a kept workspace is whole.
            subprocess.run([*to, "stop"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            running.wait_for_end(_STOP_SECONDS)
        return status if status >= 0 else 128 - status
